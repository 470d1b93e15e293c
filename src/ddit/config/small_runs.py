"""The runs that make what a small model stands on: autoencoder, text encoder, and a teacher of its features."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat

from ddit.config.data import SourceConfig
from ddit.schema import strict
from ddit.settings import PositiveInt
from ddit.world.presets import WorldConfig
from ddit.world.wide.presets import WideConfig


@strict
class AutoencoderRun:
    """Training of the small patch autoencoder on images of the sources, from the linear solution (PCA).

    Attributes:
        sources: of the images; each gives its share of `num_images` by its weight, or all that it has.
        held_out: sources of the images by which it is judged, never trained on; empty: images of `sources` set aside.
        image_size: pixels a side, to which images are resized and cut.
        crop_size: pixels a side of a part of each image that is trained on (the autoencoder is convolutional); None:
            the whole.
        downsample: pixels a latent along a side.
        max_seconds: as of `DualRun`.
        target_psnr: dB of held-out reconstructions that are enough; the run says whether it came to them, and how many
            channels would. None: no target.
    """

    out: str
    sources: tuple[SourceConfig, ...]
    held_out: tuple[SourceConfig, ...] = ()
    kind: Literal["autoencoder"] = "autoencoder"
    image_size: PositiveInt = 64
    crop_size: PositiveInt | None = None
    downsample: Literal[2, 4, 8, 16] = 4
    latent_channels: PositiveInt = 8
    target_psnr: PositiveFloat | None = None
    num_images: PositiveInt = 20_000
    num_pca_images: PositiveInt = 1000
    num_held_out: PositiveInt = 256
    batch_size: PositiveInt = 32
    max_steps: PositiveInt = 3000
    max_seconds: PositiveFloat | None = None
    lr: PositiveFloat = 2e-3
    warmup_steps: NonNegativeInt = 50
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        _check_sources(self)
        for name in ("image_size", "crop_size"):
            if (getattr(self, name) or 0) % self.downsample:
                raise ValueError(f"{name} must be a multiple of downsample {self.downsample}")
        if (self.crop_size or 0) > self.image_size:
            raise ValueError(f"crop_size {self.crop_size} is above image_size {self.image_size}")


@strict
class TextEncoderRun:
    """A tokenizer and the masked modelling of a tiny T5 encoder with the mask token: every mask rate in (0, 1].

    A third of the texts are prompts (captions), the others what a model writes: captions, questions with answers.

    Attributes:
        sources: of the texts, mixed by weight. Those without captions give questions alone.
        held_out: sources of the texts by which it is judged; empty: samples of `sources` set aside.
        num_pieces: tokens of a tokenizer of pieces of words, learnt from the texts. None: one of the small world's
            whole words.
        num_tokenizer_texts: samples at most that the tokenizer is learnt from.
        init: folder of a tokenizer and an encoder to go on with, of whose weights the embeddings from token
            `first_trained` on are trained, and no others; the sizes below are then its own.
        hidden_size, depth, num_heads, mlp_size: of the encoder.
        visible_weight: of the loss at visible positions, beside that at masked ones.
        padding_weight: of the loss at padding.
        compute_dtype: of products over float32 weights; "auto" is bfloat16 where the CPU is quick at it.
        max_seconds: as of `DualRun`.
    """

    out: str
    sources: tuple[SourceConfig, ...]
    held_out: tuple[SourceConfig, ...] = ()
    kind: Literal["text_encoder"] = "text_encoder"
    num_pieces: Annotated[int, Field(ge=512, le=8192)] | None = None
    num_tokenizer_texts: PositiveInt = 50_000
    init: str | None = None
    first_trained: NonNegativeInt = 0
    hidden_size: PositiveInt = 192
    depth: PositiveInt = 4
    num_heads: PositiveInt = 6
    mlp_size: PositiveInt = 448
    text_length: PositiveInt = 24
    batch_size: PositiveInt = 64
    max_steps: PositiveInt = 1500
    max_seconds: PositiveFloat | None = None
    lr: PositiveFloat = 2e-3
    warmup_steps: NonNegativeInt = 100
    padding_weight: float = 0.05
    visible_weight: float = 1.0
    num_held_out: PositiveInt = 512
    seed: NonNegativeInt = 0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        _check_sources(self)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if (
            self.num_pieces is None
            and self.init is None
            and any(source.kind != "world" for source in self.sources)
        ):
            raise ValueError("num_pieces is null, which is for sources of the small world alone")


def _check_sources(run: AutoencoderRun | TextEncoderRun) -> None:
    if not run.sources:
        raise ValueError("sources names no source")


@strict
class TeacherRun:
    """Training of a detector on the world's truth that is not the one of evaluation: the teacher of representation
    alignment, or with `decoys` the judge of a reward: chimeras, fragments and the like are then among its images, which
    are those of `train_wide_detector`, whatever preset of the wide world is named. With `check_steps` a second net then
    learns, on what the first one finds in `check_images` images, to tell what is there from what is not.
    """

    out: str
    world: WorldConfig | WideConfig
    kind: Literal["teacher"] = "teacher"
    width: PositiveInt = 48
    max_steps: PositiveInt = 800
    decoys: bool = False
    check_steps: NonNegativeInt = 0
    check_images: PositiveInt = 20_000
    seed: NonNegativeInt = 1234

    def __post_init__(self) -> None:
        if self.check_steps and not self.decoys:
            raise ValueError("check_steps needs decoys: what is there is told from them")
        if self.decoys and not isinstance(self.world, WideConfig):
            raise ValueError("decoys are of the wide world")
