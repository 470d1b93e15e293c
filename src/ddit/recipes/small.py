"""The chain of a small model, from nothing, on any sources: autoencoder, text encoder, latents and the stages.

`small` plans all of it for a size and a budget of hours. The single runs are functions too, of a `Chain`; the packaged
`mini` is made by them on the small world, with numbers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ddit.config.data import (
    DataConfig,
    FoldersData,
    HuggingFaceData,
    LlavaData,
    QuestionsData,
    SourceConfig,
    TextData,
)
from ddit.config.runs import (
    AutoencoderRun,
    DualRun,
    LatentsRun,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    ReportConfig,
    RunConfig,
    TextEncoderRun,
)
from ddit.errors import near_misses
from ddit.files import read_json
from ddit.model.config import DualDiTConfig
from ddit.model.folders import resolve, text_folders
from ddit.objectives import FlowConfig, MaskedConfig
from ddit.recipes.costs import expected_rate


class SmallSize(NamedTuple):
    """A size of the small model and of what comes before it.

    Attributes:
        patch_size: latents a side of an image token, unless told otherwise.
        num_pieces: of the tokenizer.
        text_size, text_depth: width and layers of the tiny T5.
        image_size: pixels a side, unless told otherwise.
        hours: the budget, unless told otherwise.
        flops: FLOP/s that training is expected to keep up: two CPU cores' for all but `l`, which is for one GPU.
    """

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    num_pieces: int
    text_size: int
    text_depth: int
    image_size: int
    batch_size: int
    hours: float
    flops: float


CPU_FLOPS, GPU_FLOPS = 1e11, 1.2e14
SMALL_SIZES = {
    "xs": SmallSize(192, 4, 3, 4, 512, 96, 2, 32, 128, 0.25, CPU_FLOPS),
    "s": SmallSize(256, 6, 4, 2, 2048, 192, 4, 64, 128, 3.0, CPU_FLOPS),
    "m": SmallSize(384, 8, 6, 2, 4096, 256, 4, 64, 128, 24.0, CPU_FLOPS),
    "l": SmallSize(640, 10, 10, 2, 8192, 512, 6, 128, 256, 12.0, GPU_FLOPS),
}
"""About 6, 15, 45 and 155 million parameters of the transformer."""
SHARES = {"image": 0.45, "joint": 0.35, "final": 0.2}
"""Of the time of the transformer, which is TRANSFORMER_SHARE of the whole; the rest is for what comes before."""
TRANSFORMER_SHARE = 0.85
SHORT_ANSWERS_SHARE = 0.9
"""Of the texts that are masked throughout, where all are answers of a word or two or the names of classes."""


@dataclass(frozen=True)
class Chain:
    """What the runs of a chain have in common.

    Attributes:
        name: before each run's own, in the folder `root`.
        vae, text: folders or hub ids of a frozen autoencoder and text encoder; the chain's own unless given.
    """

    root: Path
    name: str
    model: DualDiTConfig
    t2i: tuple[SourceConfig, ...]
    i2t: tuple[SourceConfig, ...]
    held_out: tuple[SourceConfig, ...]
    image_size: int
    text_length: int
    batch_size: int = 128
    vae: str | None = None
    text: str | None = None

    def out(self, run: str) -> str:
        return str(self.root / f"{self.name}-{run}")

    @property
    def vae_folder(self) -> str:
        return self.vae or f"{self.out('vae')}/export/vae"

    @property
    def text_folder(self) -> str:
        return self.text or f"{self.out('text')}/export"


def image_run(chain: Chain, *, max_steps: int) -> DualRun:
    """Images only: the part that SD3 has in the paper."""
    return DualRun(
        out=chain.out("image"),
        vae=chain.vae_folder,
        text=chain.text_folder,
        model=chain.model,
        data=DataConfig(
            t2i=chain.t2i,
            held_out=chain.held_out,
            image_size=chain.image_size,
            t2i_length=chain.text_length,
            i2t_length=chain.text_length,
            sample_latents=False,
            num_workers=0,
        ),
        prompts="mini",
        objective=ObjectiveConfig(
            i2t_fraction=0.0,
            flow=FlowConfig(logit_mean=0.6, logit_std=1.1),
            text=MaskedConfig(normalizer="answer", max_weight=10.0),
        ),
        optimizer=OptimizerConfig(
            name="muon",
            lr=1e-3,
            muon_lr=0.016,
            betas=(0.9, 0.95),
            max_grad_norm=1.0,
            warmup_steps=60,
            schedule="constant",
            ema_decay=0.999,
        ),
        parallel=ParallelConfig(reshard_after_forward=False),
        report=ReportConfig(evaluate_every=500, grid_every=1000, checkpoint_minutes=5.0),
        global_batch_size=chain.batch_size,
        max_steps=max_steps,
    )


def joint_run(chain: Chain, before: DualRun, *, name: str, max_steps: int) -> DualRun:
    """Both directions at once, from the image-only model `before`."""
    return replace(
        before,
        out=chain.out(name),
        init=f"{before.out}/export",
        data=replace(before.data, i2t=chain.i2t),
        objective=replace(before.objective, i2t_fraction=0.5, lambda_text=2.0),
        optimizer=replace(before.optimizer, lr=7e-4, muon_lr=0.014),
        max_steps=max_steps,
        seed=before.seed + 1,
    )


def final_run(chain: Chain, before: DualRun, *, name: str, max_steps: int, seed: int) -> DualRun:
    """`before` continued while the learning rate falls to 0."""
    return replace(
        before,
        out=chain.out(name),
        init=f"{before.out}/export",
        optimizer=replace(before.optimizer, schedule="linear", decay_fraction=1.0),
        max_steps=max_steps,
        seed=seed,
    )


def latents_run(chain: Chain, source: SourceConfig, *, name: str = "latents") -> LatentsRun:
    """The images of a source as latents."""
    return LatentsRun(
        out=chain.out(name),
        source=source,
        vae=chain.vae_folder,
        image_size=chain.image_size,
        bucket_unit=chain.image_size // chain.model.sample_size * chain.model.patch_size,
    )


# --- the plan for any sources ---


def small(
    root: str | Path,
    sources: Sequence[SourceConfig],
    size: str = "s",
    hours: float | None = None,
    *,
    held_out: Sequence[SourceConfig] = (),
    image_size: int | None = None,
    patch_size: int | None = None,
    text_length: int = 32,
    stem: Sequence[int] = (),
    refiner: int = 0,
    latent_channels: int = 8,
    downsample: Literal[2, 4, 8, 16] = 4,
    target_psnr: float | None = 26.0,
    vae: str | None = None,
    text: str | None = None,
    flops: float | None = None,
) -> list[RunConfig]:
    """The runs of a small model on `sources`, in their order; each starts from the one before it.

    Args:
        size: xs, s, m (CPUs: minutes, hours, a day) or l (one GPU).
        hours: the budget of all runs together, whose steps are as many as fit; default: the size's own.
        held_out: sources that the runs are watched by, never trained on.
        image_size: pixels a side; a multiple of the autoencoder's downsampling times `patch_size`.
        patch_size: latents a side of an image token: the cost goes down with its square, and so does the detail.
        text_length: tokens of a caption, or of a question with its answer.
        stem, refiner: widths of convolutions before and behind the tokens, see `DualDiTConfig`.
        latent_channels, downsample, target_psnr: of the chain's own autoencoder, see `AutoencoderRun`.
        vae: folder or hub id of a diffusers AutoencoderKL or AutoencoderTiny instead.
        text: folder or hub id of a T5 with its tokenizer instead of the chain's own.
        flops: FLOP/s that this machine keeps up in training; default: the size's expectation.

    Raises:
        ValueError: in one line, for an unknown size, no source, or numbers that do not fit.
    """
    if size not in SMALL_SIZES:
        raise ValueError(
            f"unknown size {size!r}; known: {', '.join(SMALL_SIZES)}{near_misses(size, SMALL_SIZES)}"
        )
    if not sources:
        raise ValueError("there is no source to train on")
    numbers, root = SMALL_SIZES[size], Path(root)
    hours = numbers.hours if hours is None else hours
    if not hours > 0:
        raise ValueError(f"hours must be above 0, got {hours}")
    image_size = image_size or numbers.image_size
    channels, pixels = (latent_channels, downsample) if vae is None else sizes_of_vae(vae)
    text_dim, vocab_size = (
        (numbers.text_size, numbers.num_pieces) if text is None else _sizes_of_text_encoder(text)
    )
    patch_size = patch_size or numbers.patch_size
    unit = pixels * patch_size
    if image_size % unit:
        raise ValueError(
            f"image_size must be a multiple of {unit} (downsampling times patch), got {image_size}"
        )
    model = DualDiTConfig(
        in_channels=channels,
        patch_size=patch_size,
        hidden_size=numbers.hidden_size,
        depth=numbers.depth,
        num_heads=numbers.num_heads,
        text_dim=text_dim,
        vocab_size=vocab_size,
        sample_size=image_size // pixels,
        pos_embed_max_size=2 * image_size // unit,
        stem=tuple(stem),
        refiner=refiner,
    )
    with_images = [source for source in sources if not isinstance(source, TextData)]
    if not with_images:
        raise ValueError("the sources are text alone: there is no image to learn from")
    folders = {id(source): f"latents_{number}" for number, source in enumerate(with_images)}
    cached = tuple(
        replace(source, latents=str(root / f"{size}-{folders[id(source)]}"))
        if id(source) in folders
        else source
        for source in sources
    )
    chain = Chain(
        root=root,
        name=size,
        model=model,
        t2i=tuple(source for source in cached if has_captions(source)),
        i2t=cached,
        held_out=tuple(held_out),
        image_size=image_size,
        text_length=text_length,
        batch_size=numbers.batch_size,
        vae=vae,
        text=text,
    )
    runs: list[RunConfig] = []
    if vae is None:
        own = _autoencoder_run(chain, with_images, hours)
        runs.append(replace(own, downsample=downsample, latent_channels=channels, target_psnr=target_psnr))
    if text is None:
        runs.append(_text_encoder_run(chain, sources, numbers, hours))
    runs += [latents_run(chain, source, name=folders[id(source)]) for source in with_images]
    return [*runs, *_transformer_runs(chain, hours, flops or numbers.flops)]


def _autoencoder_run(chain: Chain, sources: Sequence[SourceConfig], hours: float) -> AutoencoderRun:
    return AutoencoderRun(
        out=chain.out("vae"),
        sources=tuple(sources),
        held_out=tuple(source for source in chain.held_out if not isinstance(source, TextData)),
        image_size=chain.image_size,
        crop_size=None if chain.image_size <= 64 else 64,
        num_images=12_000,
        max_steps=_rounded(min(3000, 1500 * hours), least=100),
    )


def _text_encoder_run(
    chain: Chain, sources: Sequence[SourceConfig], numbers: SmallSize, hours: float
) -> TextEncoderRun:
    return TextEncoderRun(
        out=chain.out("text"),
        sources=tuple(sources),
        held_out=chain.held_out,
        num_pieces=numbers.num_pieces,
        hidden_size=numbers.text_size,
        depth=numbers.text_depth,
        num_heads=numbers.text_size // 32,
        mlp_size=7 * numbers.text_size // 3 // 8 * 8,
        text_length=chain.text_length,
        max_steps=_rounded(min(4000, 1000 * hours), least=200),
        compute_dtype="auto",
    )


def _transformer_runs(chain: Chain, hours: float, flops: float) -> list[DualRun]:
    """Image-only, joint and final run, with as many steps as the budget has room for."""
    seconds = {name: share * TRANSFORMER_SHARE * hours * 3600 for name, share in SHARES.items()}
    runs: list[DualRun] = []
    if chain.t2i:
        runs.append(image_run(chain, max_steps=1))
        joint = joint_run(chain, runs[-1], name="joint", max_steps=1)
    else:  # questions alone: nothing to draw from
        seconds["joint"] += seconds.pop("image")
        joint = joint_run(chain, image_run(chain, max_steps=1), name="joint", max_steps=1)
        joint = replace(joint, init=None, objective=replace(joint.objective, i2t_fraction=1.0))
    if all(isinstance(source, QuestionsData | FoldersData) for source in chain.i2t):
        text = replace(joint.objective.text, all_masked_share=SHORT_ANSWERS_SHARE)
        joint = replace(joint, objective=replace(joint.objective, text=text))
    runs += [joint, final_run(chain, joint, name="final", max_steps=1, seed=joint.seed + 1)]
    fitted: list[DualRun] = []
    for name, run in zip(seconds, runs, strict=True):
        steps = _rounded(seconds[name] * expected_rate(run, flops) / run.global_batch_size, least=20)
        warmup = min(run.optimizer.warmup_steps, steps // 10)
        report = replace(
            run.report, evaluate_every=max(1, min(500, steps // 4)), grid_every=max(1, min(1000, steps // 2))
        )
        fitted.append(
            replace(
                run,
                max_steps=steps,
                report=report,
                optimizer=replace(run.optimizer, warmup_steps=warmup),
                compute_dtype="auto",
            )
        )
    return fitted


def _rounded(steps: float, *, least: int) -> int:
    return max(least, int(steps))


def has_captions(source: SourceConfig) -> bool:
    """Whether images can be drawn from its texts: questions, conversations and text alone are no prompts."""
    if isinstance(source, HuggingFaceData):
        return source.caption_key is not None
    return not isinstance(source, LlavaData | QuestionsData | TextData)


def sizes_of_vae(name: str) -> tuple[int, int]:
    """Channels and downsampling of a frozen autoencoder."""
    from ddit.model.autoencoder import downsample_of  # which imports torch

    folder = resolve(name)
    folder = folder if (folder / "config.json").is_file() else folder / "vae"
    config = read_json(folder / "config.json")
    return config["latent_channels"], downsample_of(config)


def _sizes_of_text_encoder(name: str) -> tuple[int, int]:
    """Width of the states and rows of the embeddings of a frozen T5."""
    config = read_json(text_folders(resolve(name))[0] / "config.json")
    return config["d_model"], config["vocab_size"]
