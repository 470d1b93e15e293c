"""What a user changes in a run: assignments such as "optimizer.lr=1e-3", refused where they would have no effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ddit.config.data import DataConfig
from ddit.config.parsing import assign, build, to_data
from ddit.config.runs import DualRun, LatentsRun
from ddit.world import WorldConfig

Config = TypeVar("Config")


def override_run(config: Config, overrides: Sequence[str]) -> Config:
    """Returns `config` with assignments made; values are JSON, or else plain strings.

    Keys go into lists by index ("data.t2i.0.path=..."), and a list is replaced as a whole by JSON.

    Raises:
        ValueError: one line that names the key: unknown (with near misses), of the wrong type, or never read by the
            run that results.
    """
    data, keys = to_data(config), []
    for assignment in overrides:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ValueError(f"override {assignment!r} is not of the form key=value")
        keys.append(key.strip())
        assign(type(config), data, keys[-1], value.strip())
    changed = build(type(config), data)
    unread = never_read(changed)
    for key in keys:
        for dead, reason in unread.items():
            if key == dead or key.startswith(f"{dead}."):
                raise ValueError(f"{key} would never be read: {reason}")
    return changed


def never_read(config: Any) -> dict[str, str]:
    """Keys that a run with these settings does not read, each with the reason; a key stands for all below it."""
    found = dict(_unread_of_worlds(config))
    if isinstance(config, DualRun):
        for part in (_unread_of_optimizer, _unread_of_objective, _unread_of_report, _unread_of_data):
            found |= dict(part(config))
    if isinstance(config, LatentsRun):
        found |= dict(_unread_of_source(config.source, "source"))
        found["source.weight"] = "there is a single source"
        if config.teacher is None:
            found["feature_side"] = "teacher is null"
    return found


def _unread_of_optimizer(config: DualRun) -> Iterator[tuple[str, str]]:
    optimizer, lora = config.optimizer, config.lora
    if optimizer.schedule != "linear":
        yield "optimizer.decay_fraction", f"optimizer.schedule is {optimizer.schedule}, not linear"
    if optimizer.schedule == "constant":
        yield "optimizer.final_lr_fraction", "optimizer.schedule is constant"
    if optimizer.name != "muon":
        yield "optimizer.muon_lr", f"optimizer.name is {optimizer.name}, not muon"
    if lora.rank == 0:
        yield "lora.alpha", "lora.rank is 0"
        yield "lora.dropout", "lora.rank is 0"
    if config.non_finite == "stop":
        yield "max_skipped", "non_finite is stop"


def _unread_of_objective(config: DualRun) -> Iterator[tuple[str, str]]:
    objective = config.objective
    if objective.alignment_weight == 0:
        yield "objective.alignment_block", "objective.alignment_weight is 0"
    if objective.i2t_fraction == 0:
        for key in ("objective.lambda_text", "objective.text", "data.i2t", "train_mask_embedding"):
            yield key, "objective.i2t_fraction is 0: no text is read"
    if objective.i2t_fraction == 1:
        keys = [
            f"objective.{name}" for name in ("caption_dropout", "flow", "alignment_weight", "alignment_block")
        ]
        if config.data.i2t:
            keys.append("data.t2i")
        for key in keys:
            yield key, "objective.i2t_fraction is 1: no picture is drawn"


def _unread_of_report(config: DualRun) -> Iterator[tuple[str, str]]:
    report = config.report
    if not config.data.held_out or report.num_held_out == 0:
        why = "report.num_held_out is 0" if config.data.held_out else "data.held_out names no source"
        for name in ("evaluate_every", "sheet_every", "num_sheet"):
            yield f"report.{name}", why
        if not config.data.held_out:
            yield "report.num_held_out", why
    if report.checkpoint_steps is not None:
        yield "report.checkpoint_minutes", f"report.checkpoint_steps is {report.checkpoint_steps}"


def _unread_of_data(config: DualRun) -> Iterator[tuple[str, str]]:
    data, i2t_fraction = config.data, config.objective.i2t_fraction
    for name in ("t2i", "i2t", "held_out"):
        sources = getattr(data, name)
        if len(sources) == 1:
            yield f"data.{name}.0.weight", f"data.{name} has a single source"
        for index, source in enumerate(sources):
            yield from _unread_of_source(source, f"data.{name}.{index}")
            only_draws = name == "t2i" and (data.i2t or i2t_fraction == 0)
            if source.kind == "world" and only_draws:
                yield (
                    f"data.t2i.{index}.question_fraction",
                    "the sources in data.t2i are drawn, not asked about",
                )


def _unread_of_source(source: Any, key: str) -> Iterator[tuple[str, str]]:
    if source.kind == "tar" and source.original_key is None:
        yield f"{key}.original_share", f"{key}.original_key is null"


def _unread_of_worlds(config: Any) -> Iterator[tuple[str, str]]:
    for key, world in _worlds(config):
        name = "min_size" if world.layout == "fixed" else "jitter"
        yield f"{key}.{name}", f"{key}.layout is {world.layout}"


def _worlds(config: Any) -> Iterator[tuple[str, WorldConfig]]:
    """Every configuration of a world in a run, by its key."""
    own = getattr(config, "world", None)
    if own is not None:
        yield "world", own
    sources = [("source", config.source)] if isinstance(config, LatentsRun) else []
    data = getattr(config, "data", None)
    if isinstance(data, DataConfig):
        for name in ("t2i", "i2t", "held_out"):
            sources += [(f"data.{name}.{i}", source) for i, source in enumerate(getattr(data, name))]
    for key, source in sources:
        if source.kind == "world":
            yield f"{key}.world", source.world
