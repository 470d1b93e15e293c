"""Run configurations: frozen dataclasses, composed and checked; JSON in and out.

A run is described by exactly one of the `*Run` classes below, so that every key that it has is read by its stage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ddit.config.checks import above_zero, at_least, fraction
from ddit.config.data import DataConfig, SourceConfig, WorldData
from ddit.config.parsing import build, to_data
from ddit.diffusion.flow import FlowConfig
from ddit.diffusion.masked import MaskedConfig
from ddit.model import DualDiTConfig
from ddit.world import WorldConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule; the defaults are the published ones (stage 1).

    `muon` takes the two-dimensional matrices of the transformer blocks (attention and MLP) with `muon_lr`;
    everything else, and everything under `adamw`, takes `lr`. The schedule scales both: warm-up, then `constant`,
    `linear` (constant, then down to `final_lr_fraction` over the last `decay_fraction` of the run) or `cosine`.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-5
    muon_lr: float = 0.02
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 2.0
    warmup_steps: int = 2000
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    decay_fraction: float = 0.4
    final_lr_fraction: float = 0.0
    ema_decay: float = 0.9995

    def __post_init__(self) -> None:
        above_zero(self, "lr", "muon_lr", "max_grad_norm")
        at_least(self, 0, "weight_decay", "warmup_steps")
        fraction(self, "decay_fraction", "final_lr_fraction")
        fraction(self, "ema_decay", below_one=True)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {list(self.betas)}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What one step optimises: L_image + lambda_text L_text + alignment_weight L_align.

    `i2t_fraction` is the share of each global batch whose text is masked (0: image only).
    """

    lambda_text: float = 0.2
    i2t_fraction: float = 0.5
    caption_dropout: float = 0.1
    flow: FlowConfig = field(default_factory=FlowConfig)
    text: MaskedConfig = field(default_factory=MaskedConfig)
    # Our deviation from the paper, off by default: image tokens after this block (0-based) against a frozen teacher.
    alignment_weight: float = 0.0
    alignment_block: int = 3

    def __post_init__(self) -> None:
        at_least(self, 0, "lambda_text", "alignment_weight", "alignment_block")
        fraction(self, "i2t_fraction", "caption_dropout")
        above_zero(self.flow, "logit_std")
        above_zero(self.text, "max_weight")


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks share the model and how memory is traded for work.

    Attributes:
        num_replicas: 1 shards the model over all ranks (FSDP2); more: so many replicas, each sharded over
            ranks / num_replicas (HSDP).
        reshard_after_forward: free the gathered weights of a block between its forward and backward pass.
        checkpoint_activations: recompute each block in the backward pass.
        compile_blocks: torch.compile, block by block.
        text_encoder: the frozen T5 on each rank whole, sharded like the model, or whole in 8 bit.
    """

    num_replicas: int = 1
    reshard_after_forward: bool = True
    checkpoint_activations: bool = False
    compile_blocks: bool = False
    text_encoder: Literal["whole", "sharded", "int8"] = "whole"

    def __post_init__(self) -> None:
        at_least(self, 1, "num_replicas")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of full weights; rank 0 trains everything.

    The text head and the null image, which SD3 does not have, are trained whole beside the adapters.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 0, "rank")
        above_zero(self, "alpha")
        fraction(self, "dropout", below_one=True)


@dataclass(frozen=True)
class ReportConfig:
    """How often a run says something (in steps) and saves (in minutes).

    Attributes:
        num_held_out: held-out samples that are measured; 0 measures nothing and draws no sheets.
        num_sheet: pictures on a sheet, and rows of its table.
        tensorboard: event files too, where TensorBoard is installed.
        wandb_project: of Weights & Biases; None: not used.
        peak_tflops: of one device, which model FLOP utilisation is measured against; None: looked up or measured.
    """

    log_every: int = 20
    evaluate_every: int = 500
    sheet_every: int = 2000
    num_held_out: int = 256
    num_sheet: int = 24
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None  # instead of the minutes: a checkpoint after every so many steps
    keep_checkpoints: int = 2
    sheet_steps: int = 20
    sheet_guidance: float = 3.0
    sheet_shift: float = 2.0
    tensorboard: bool = True
    wandb_project: str | None = None
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        at_least(
            self,
            1,
            "log_every",
            "evaluate_every",
            "sheet_every",
            "num_sheet",
            "sheet_steps",
            "keep_checkpoints",
        )
        at_least(self, 1, "checkpoint_steps")
        at_least(self, 0, "num_held_out", "sheet_guidance", "checkpoint_minutes")
        above_zero(self, "sheet_shift", "peak_tflops")


@dataclass(frozen=True)
class DualRun:
    """Training of the two-headed transformer: image only, joint, or question tuning, by `objective` and `data` alone.

    Attributes:
        init: a model folder (ours or SD3's) or a hub id, whose transformer is where this run begins.
        vae: folder of the frozen autoencoder, or a model folder that holds it; None: that of `init`.
        text: folder that holds the frozen text encoder and its tokenizer; None: `init`.
        prompts: the templates, see `ddit.prompts`.
        micro_batch_size: samples a rank holds at once; None: its whole part of the global batch.
        train_mask_embedding: the mask token's embedding row is trained too, and nothing else of the text encoder.
        compute_dtype: of products and activations over float32 weights; "auto" is bfloat16, on a CPU without quick
            products in it float32.
        non_finite: a loss or gradient that is not finite stops the run before the step, or skips the step (at most
            `max_skipped` in a row).
    """

    out: str
    model: DualDiTConfig
    data: DataConfig
    kind: Literal["dual"] = "dual"
    init: str | None = None
    vae: str | None = None
    text: str | None = None
    prompts: Literal["published", "mini"] = "published"
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    train_mask_embedding: bool = False
    global_batch_size: int = 256
    micro_batch_size: int | None = None
    max_steps: int = 60_000
    seed: int = 0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    non_finite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10

    def __post_init__(self) -> None:
        at_least(self, 1, "global_batch_size", "micro_batch_size", "max_steps")
        at_least(self, 0, "seed", "max_skipped")
        block, weight = self.objective.alignment_block, self.objective.alignment_weight
        if weight > 0 and block >= self.model.depth:
            raise ValueError(f"objective.alignment_block {block} is not below model.depth {self.model.depth}")


@dataclass(frozen=True)
class AutoencoderRun:
    """Training of the small autoencoder on rendered scenes, from the linear solution (PCA)."""

    out: str
    world: WorldConfig
    kind: Literal["autoencoder"] = "autoencoder"
    num_scenes: int = 20_000
    num_pca_scenes: int = 1000
    num_held_out: int = 256
    batch_size: int = 32
    max_steps: int = 3000
    lr: float = 2e-3
    warmup_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "num_scenes", "num_pca_scenes", "num_held_out", "batch_size", "max_steps")
        at_least(self, 0, "seed")
        at_least(self, 0, "warmup_steps")
        above_zero(self, "lr")


@dataclass(frozen=True)
class TextEncoderRun:
    """Masked modelling of the tiny T5 encoder with the mask token: every mask rate in (0, 1]."""

    out: str
    world: WorldConfig
    kind: Literal["text_encoder"] = "text_encoder"
    text_length: int = 24
    batch_size: int = 64
    max_steps: int = 1500
    lr: float = 2e-3
    warmup_steps: int = 100
    padding_weight: float = 0.05
    visible_weight: float = 1.0  # of the loss at visible positions, beside that at masked ones
    num_held_out: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "text_length", "batch_size", "max_steps", "num_held_out")
        at_least(self, 0, "seed")
        at_least(self, 0, "warmup_steps")
        above_zero(self, "lr")


@dataclass(frozen=True)
class TeacherRun:
    """Training of the teacher for representation alignment on the world's truth; never the judge's weights."""

    out: str
    world: WorldConfig
    kind: Literal["teacher"] = "teacher"
    width: int = 48
    max_steps: int = 800
    seed: int = 1234

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "max_steps")
        at_least(self, 0, "seed")


@dataclass(frozen=True)
class LatentsRun:
    """Precomputation of a source's latents (and a teacher's features), the form in which `latents` of a source reads
    them. Several processes (torchrun) share the work.

    `image_size` and `num_buckets` are those of the run that is to read them, and `bucket_unit` its autoencoder's
    downsampling times its patch size.
    """

    out: str
    vae: str
    source: SourceConfig = field(default_factory=WorldData)
    teacher: str | None = None  # a teacher's weights file; its features are pooled to `feature_side` a side
    feature_side: int = 4
    kind: Literal["latents"] = "latents"
    image_size: int = 64
    num_buckets: int = 1
    bucket_unit: int = 16
    shard_size: int = 1000
    batch_size: int = 100

    def __post_init__(self) -> None:
        at_least(
            self, 1, "feature_side", "image_size", "num_buckets", "bucket_unit", "shard_size", "batch_size"
        )


RunConfig = DualRun | AutoencoderRun | TextEncoderRun | TeacherRun | LatentsRun
_RUN_CLASSES: dict[str, type[RunConfig]] = {
    "dual": DualRun,
    "autoencoder": AutoencoderRun,
    "text_encoder": TextEncoderRun,
    "teacher": TeacherRun,
    "latents": LatentsRun,
}


def to_json(config: RunConfig) -> str:
    return json.dumps(to_data(config), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`; an unknown key or a value of the wrong type is a `ValueError`."""
    data = json.loads(text)
    kind = data.get("kind")
    if kind not in _RUN_CLASSES:
        raise ValueError(f"unknown kind of run {kind!r}; known: {', '.join(_RUN_CLASSES)}")
    return build(_RUN_CLASSES[kind], data)


def save_config(config: RunConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
