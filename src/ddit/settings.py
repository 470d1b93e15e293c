"""Options of sampling, scoring and loading, each declared once: range, help and default.

The defaults are the published settings. Nothing here needs torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field

from ddit.schema import Panel, override, strict

Sampler = Literal["euler", "adams", "dpm", "paper"]
Order = Literal["random", "confidence", "margin", "threshold", "entropy"]
ORDERS: tuple[Order, ...] = get_args(Order)
CaptionStyle = Literal["plain", "detailed"]

MAX_LENGTH = 4096
"""Tokens of a text."""

BatchSize = Annotated[int, Field(ge=1, description="samples computed at a time"), Panel("Performance")]


# --- sampling of images ---


@strict
class ImageSampling:
    """How images are sampled: the ODE solver, its times and its guidance."""

    num_steps: Annotated[int, Field(ge=1, description="sampling steps")] = 28
    guidance_scale: Annotated[
        float,
        Field(
            ge=0, description="how closely an image follows its prompt (classifier-free guidance); 1: none"
        ),
    ] = 7.0
    sampler: Annotated[
        Sampler,
        Field(
            description="ODE solver: euler, or of second order adams (Adams-Bashforth) or dpm (DPM-Solver++ 2M); "
            "paper: all published settings"
        ),
    ] = "euler"
    shift: Annotated[
        float, Field(gt=0, description="timestep shift s t / (1 + (s - 1) t): above 1, more steps near noise")
    ] = 3.0
    shift_by_size: Annotated[
        bool,
        Field(
            description="multiply the shift by the square root of the pixels' ratio to the model's own size"
        ),
    ] = False
    guidance_interval: Annotated[
        tuple[float, float],
        Field(strict=False, description="lowest and highest time, 0 to 1, at which guidance is on"),
    ] = (0.0, 1.0)
    guidance_rescale: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="rescale guided velocities to the standard deviation of the conditional ones; 0: off, 1: fully",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval must be two rising times in 0 to 1, got {self.guidance_interval}"
            )
        if self.sampler == "paper":
            object.__setattr__(self, "sampler", "euler")

    def at_size(self, num_pixels: int, own_pixels: int) -> Self:
        """With the shift for images of so many pixels, by a model whose shift was set at `own_pixels`.

        SD3, arXiv 2403.03206, section 5.3.2.
        """
        if not self.shift_by_size:
            return self
        return replace(self, shift=self.shift * math.sqrt(num_pixels / own_pixels), shift_by_size=False)

    def is_guided(self, t: float) -> bool:
        """Whether the velocity at time t is a guided one, of two evaluations."""
        return self.guidance_scale > 1 and self.guidance_interval[0] <= t <= self.guidance_interval[1]


@strict
class ImageSize:
    """Of the images that a call generates or reads; by default the model's own size."""

    height: Annotated[int | None, Field(ge=1, description="height in pixels")] = None
    width: Annotated[int | None, Field(ge=1, description="width in pixels")] = None


@strict
class ImageOptions:
    """Options of a call that generates images."""

    sampling: ImageSampling = field(default_factory=ImageSampling)
    size: ImageSize = field(default_factory=ImageSize)
    negative_prompt: Annotated[
        str | Sequence[str] | None,
        Field(description="text that guidance leads away from [default: the empty prompt]"),
        Panel("Input"),
    ] = None
    batch_size: BatchSize = 16


# --- sampling of text ---


@strict
class UnmaskingRule:
    """Which masked positions a step fills, and with what."""

    order: Annotated[
        Order,
        Field(
            description="which positions a step fills: random (as published), confidence or margin (the same number "
            "every step), threshold or entropy (as many as are safe)"
        ),
    ] = "random"
    temperature: Annotated[
        float, Field(ge=0, description="randomness of the tokens; 0 takes the most likely one")
    ] = 1.0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="sample from the fewest tokens that add up to this probability")
    ] = 1.0
    threshold: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="with order threshold: fill positions above this probability (arXiv 2505.22618)",
        ),
    ] = 0.9
    entropy_bound: Annotated[
        float, Field(ge=0, description="with order entropy: nats that a step may spend (arXiv 2505.24857)")
    ] = 0.1
    commit_above: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="fill all positions once every token is above this probability; 1: never (arXiv 2508.19982)",
        ),
    ] = 1.0
    edit_above: Annotated[
        float,
        Field(
            ge=0.5,
            le=1,
            description="fill a position of the block at work anew where another token is above this probability; 1: "
            "never (LLaDA2.1)",
        ),
    ] = 1.0
    block_size: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_LENGTH,
            description="positions in a block; blocks are filled left to right; 0: one block",
        ),
    ] = 0


@strict
class TextSampling:
    """How texts are sampled: the unmasking rule, guidance, and what is kept between steps."""

    rule: UnmaskingRule = field(default_factory=UnmaskingRule)
    text_guidance_scale: Annotated[
        float,
        Field(
            ge=0,
            description="guidance of texts, away from the null image; 1: off, otherwise a step takes two passes",
        ),
    ] = 1.0
    image_refresh: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_LENGTH,
            description="reuse the image's keys and values for so many steps; 1 is exact, 0: for a whole block",
        ),
    ] = 1
    text_refresh: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_LENGTH,
            description="reuse the text encoder's states for so many steps; 1 is exact, 0: for a whole block",
        ),
    ] = 1


@strict
class TextOptions:
    """Options of a call that writes texts."""

    sampling: TextSampling = field(default_factory=TextSampling)
    num_steps: Annotated[
        int, Field(ge=1, description="sampling steps; of a model that writes in blocks, of each block")
    ] = 64
    length: Annotated[
        int | None,
        Field(ge=1, le=MAX_LENGTH, description="tokens of the text that is generated, with its padding"),
    ] = None
    size: ImageSize = field(default_factory=ImageSize)
    batch_size: BatchSize = 16


@strict
class CaptionOptions(TextOptions):
    """Options of a call that writes captions."""

    style: Annotated[
        CaptionStyle,
        Field(description="detailed: a long description of everything in the image"),
    ] = "plain"


@strict
class ScoreOptions:
    """Options of a call that scores texts."""

    null_weight: Annotated[
        float,
        Field(
            description="w of log p(text | image) - w log p(text): above 0, texts likely without the image count less"
        ),
    ] = 0.0
    num_samples: Annotated[
        int, Field(ge=2, description="random masks to score a text with; short texts are exact with fewer")
    ] = 32
    length: Annotated[
        int | None, Field(ge=1, le=MAX_LENGTH, description="tokens of a text, with its padding")
    ] = None
    size: ImageSize = field(default_factory=ImageSize)
    batch_size: BatchSize = 32


# --- a model ---


@strict
class LoadOptions:
    """How a model is loaded."""

    panel: ClassVar[str] = "Performance"

    device: Annotated[str | None, Field(description="cpu, cuda, ... [default: CUDA if there is one]")] = None
    dtype: Annotated[
        str | None,
        Field(
            description="float32, bfloat16 or float16 [default: bfloat16 on CUDA, elsewhere float32 if the memory is "
            "enough]"
        ),
    ] = None
    mask_embedding: Annotated[
        Path | None, Field(description="file of a trained embedding of T5's mask token"), Panel("Input")
    ] = None
    adapter: Annotated[
        Path | None,
        Field(description="folder of LoRA adapters, or a LoRA file made for SD3, merged into the model"),
        Panel("Input"),
    ] = None
    int8: Annotated[bool, Field(description="keep the text encoder's matrices in 8 bit: less memory")] = False
    offload: Annotated[
        bool, Field(description="keep text encoder and autoencoder on the CPU except while in use")
    ] = False
    offload_blocks: Annotated[
        bool,
        Field(
            description="also keep the blocks of transformer and text encoder on the CPU, except the one in use: for "
            "GPUs of 8 to 12 GB"
        ),
    ] = False
    compile: Annotated[bool, Field(description="torch.compile: minutes at the start, then faster steps")] = (
        False
    )


Task = Literal["answer", "infill"]
PositiveInt = Annotated[int, Field(ge=1)]

DETAILED_RULE = ("entropy_bound", "block_size")


@strict
class ModelSettings:
    """A model's own defaults, saved beside it as `ddit.json`.

    Attributes:
        prompt_style: fields of `prompts.PromptStyle`; those left out are the published ones.
        image_size: side of the images it was trained on, in pixels.
        prompt_length: tokens of a prompt to generate from.
        text_length: tokens of a caption, or of a question with its answer.
        caption_steps, answer_steps: sampling steps of the two; in-filling takes caption_steps.
        caption_length, answer_length: positions after the prompt; None fills up text_length, as detailed captions do.
        detailed_entropy_bound, detailed_block_size: of detailed captions; None: those of text_sampling.
    """

    image_sampling: ImageSampling = field(default_factory=ImageSampling)
    text_sampling: TextSampling = field(default_factory=TextSampling)
    prompt_style: dict[str, str | int | bool] = field(default_factory=dict)
    image_size: PositiveInt = 512
    prompt_length: PositiveInt = 256
    text_length: PositiveInt = 128
    caption_steps: PositiveInt = 64
    answer_steps: PositiveInt = 16
    caption_length: PositiveInt | None = None
    answer_length: PositiveInt | None = None
    detailed_entropy_bound: Annotated[float, Field(ge=0)] | None = None
    detailed_block_size: Annotated[int, Field(ge=0)] | None = None

    def with_defaults(self, given: Mapping[str, Any]) -> Self:
        """With other defaults: fields, and options of the two samplings, by name (None is not given).

        An `entropy_bound` or a `block_size` is that of detailed captions, too.

        Raises:
            ValueError, TypeError: as `image_options`.
        """
        own = ImageSampling() if given.get("sampler") == "paper" else self.image_sampling
        detailed = {f"detailed_{name}": None for name in DETAILED_RULE if given.get(name) is not None}
        return override(replace(self, image_sampling=own, **detailed), given)

    def image_options(self, given: Mapping[str, Any]) -> ImageOptions:
        """The model's own options with those that are given (None is not given).

        Raises:
            ValueError: for a value out of range.
            TypeError: for an option that there is not.
        """
        own = ImageSampling() if given.get("sampler") == "paper" else self.image_sampling
        return override(ImageOptions(sampling=own), given)

    def text_options(self, task: Task, given: Mapping[str, Any]) -> TextOptions:
        """As `image_options`, for a task."""
        num_steps, length = (
            (self.answer_steps, self.answer_length) if task == "answer" else (self.caption_steps, None)
        )
        return override(TextOptions(sampling=self.text_sampling, num_steps=num_steps, length=length), given)

    def caption_options(self, given: Mapping[str, Any]) -> CaptionOptions:
        """As `image_options`, for captions."""
        length, sampling = self.caption_length, self.text_sampling
        if given.get("style") == "detailed":
            length, sampling = None, replace(sampling, rule=override(sampling.rule, self.detailed_rule))
        own = CaptionOptions(sampling=sampling, num_steps=self.caption_steps, length=length)
        return override(own, given)

    @property
    def detailed_rule(self) -> dict[str, Any]:
        """The options of the unmasking rule that detailed captions have of their own."""
        own = {name: getattr(self, f"detailed_{name}") for name in DETAILED_RULE}
        return {name: value for name, value in own.items() if value is not None}
