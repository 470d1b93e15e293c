"""Run configurations: frozen dataclasses, composed; strict overrides; JSON in and out.

A run is described by exactly one of the `*Run` classes below, so that every key that it has is read by its stage.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from ddit.data.config import DataConfig, SourceConfig, WorldData
from ddit.flow import FlowConfig
from ddit.masked import MaskedConfig
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


@dataclass(frozen=True)
class ObjectiveConfig:
    """What one step optimises: L_image + lambda_text L_text + alignment_weight L_align.

    `read_fraction` is the share of each global batch whose text is masked (0: image only).
    """

    lambda_text: float = 0.2
    read_fraction: float = 0.5
    caption_dropout: float = 0.1
    flow: FlowConfig = field(default_factory=FlowConfig)
    text: MaskedConfig = field(default_factory=MaskedConfig)
    # Our deviation from the paper, off by default: image tokens after this block (0-based) against a frozen teacher.
    alignment_weight: float = 0.0
    alignment_block: int = 3


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


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of full weights; rank 0 trains everything.

    The text head and the null image, which SD3 does not have, are trained whole beside the adapters.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0


@dataclass(frozen=True)
class ReportConfig:
    """How often a run says something (in steps) and saves (in minutes)."""

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
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    non_finite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10


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


@dataclass(frozen=True)
class TeacherRun:
    """Training of the teacher for representation alignment on the world's truth; never the judge's weights."""

    out: str
    world: WorldConfig
    kind: Literal["teacher"] = "teacher"
    width: int = 48
    max_steps: int = 800
    seed: int = 1234


@dataclass(frozen=True)
class LatentsRun:
    """Precomputation of a source's latents (and a teacher's features), the form in which `latents` of a source reads
    them. Several processes (torchrun) share the work."""

    out: str
    vae: str
    source: SourceConfig = field(default_factory=WorldData)
    teacher: str | None = None  # a teacher's weights file; its features are pooled to `feature_side` a side
    feature_side: int = 4
    kind: Literal["latents"] = "latents"
    image_size: int = 64
    num_buckets: int = 1
    shard_size: int = 1000
    batch_size: int = 100


RunConfig = DualRun | AutoencoderRun | TextEncoderRun | TeacherRun | LatentsRun
Config = TypeVar("Config")
_RUN_CLASSES: dict[str, type[RunConfig]] = {
    "dual": DualRun,
    "autoencoder": AutoencoderRun,
    "text_encoder": TextEncoderRun,
    "teacher": TeacherRun,
    "latents": LatentsRun,
}


def apply_overrides(config: Config, overrides: typing.Sequence[str]) -> Config:
    """Returns `config` with assignments such as "optimizer.lr=1e-3" made; values are JSON, or else plain strings.

    Raises `ValueError` (one line, naming the key) for an unknown key, with near misses, and for a value of the wrong
    type.
    """
    for assignment in overrides:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ValueError(f"override {assignment!r} is not of the form key=value")
        config = _assign(config, key.strip(), key.strip().split("."), value.strip())
    return config


def _assign(config: Any, key: str, path: list[str], value: str) -> Any:
    hints = typing.get_type_hints(type(config))
    name, rest = path[0], path[1:]
    if name not in hints:
        near = difflib.get_close_matches(key, list_keys_of(config, key, path), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown key {key!r}{hint}")
    if not rest:
        return dataclasses.replace(config, **{name: _parse(key, value, hints[name])})
    inner = getattr(config, name)
    if not dataclasses.is_dataclass(inner):
        raise ValueError(f"unknown key {key!r}: {name!r} has no fields of its own")
    return dataclasses.replace(config, **{name: _assign(inner, key, rest, value)})


def list_keys(config: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, leaves only."""
    keys = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            keys += list_keys(value, f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def list_keys_of(config: Any, key: str, path: list[str]) -> list[str]:
    """Candidates for a near miss of `key`, whose last `len(path)` parts are to be looked up in `config`."""
    prefix = key[: len(key) - len(".".join(path))]
    return list_keys(config, prefix)


def _parse(key: str, text: str, hint: Any) -> Any:
    adapter = TypeAdapter(hint)
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    try:
        return adapter.validate_json(json.dumps(text), strict=True)
    except ValidationError:
        raise ValueError(f"bad value for {key}: {text!r} ({problem})") from None


def to_json(config: RunConfig) -> str:
    return json.dumps(dataclasses.asdict(typing.cast(Any, config)), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`; an unknown key or a value of the wrong type is a `ValueError`."""
    data = json.loads(text)
    kind = data.get("kind")
    if kind not in _RUN_CLASSES:
        raise ValueError(f"unknown kind of run {kind!r}; known: {', '.join(_RUN_CLASSES)}")
    cls = _RUN_CLASSES[kind]
    _refuse_unknown(data, cls, "")
    try:
        return TypeAdapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"bad value for {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _refuse_unknown(data: dict[str, Any], cls: Any, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    for name, value in data.items():
        if name not in hints:
            raise ValueError(f"unknown key {prefix + name!r}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            _refuse_unknown(value, hints[name], f"{prefix}{name}.")


def save_config(config: RunConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
