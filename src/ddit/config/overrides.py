"""What a user changes in a run: assignments such as "optimizer.lr=1e-3", refused where they would have no effect."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ddit.config.renamed import refuse_old_key
from ddit.config.runs import AutoencoderRun, DualRun, LatentsRun, TextEncoderRun
from ddit.errors import near_misses
from ddit.schema import parse, to_data
from ddit.world.presets import WorldConfig

Config = TypeVar("Config")


def override_run(config: Config, assignments: Sequence[str]) -> Config:
    """Returns `config` with assignments made; values are JSON, or else plain texts.

    Keys go into lists by index ("data.t2i.0.path=..."), and a list is replaced as a whole by JSON.

    Raises:
        ValueError: one line that names the key: unknown (with near misses), of the wrong type, or never read by the
            run that results.
    """
    data, keys = to_data(config), []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"override {assignment!r} is not of the form key=value")
        keys.append(key.strip())
        refuse_old_key(keys[-1])
        _assign(data, keys[-1], text.strip())
    changed = parse(type(config), data)
    unread = never_read(changed)
    for key in keys:
        for dead, reason in unread.items():
            if key == dead or key.startswith(f"{dead}."):
                raise ValueError(f"{key} would never be read: {reason}")
    return changed


# --- assignments ---


def _assign(data: Any, key: str, text: str) -> None:
    """Sets the dotted `key` in JSON values; an unknown last part is left to the parser, which knows the fields.

    Raises:
        ValueError: for a key that leads nowhere, with near misses.
    """
    node, (*way, last) = data, key.split(".")
    for depth, part in enumerate(way):
        node = node[_place(node, part, way[:depth], key, data)]
    place = _place(node, last, way, key, data, may_be_new=True)
    old = node[place] if isinstance(place, int) else node.get(place)
    new = _value(text, old)
    if place == "kind" and way and new != old:
        raise ValueError(f"{key} is {old!r}: give '{'.'.join(way)}' as a whole to change its kind")
    node[place] = new


def _place(node: Any, part: str, way: list[str], key: str, data: Any, may_be_new: bool = False) -> str | int:
    """`part` of a key as a key of the object or an index of the list that `way` leads to."""
    if isinstance(node, dict):
        if part in node or may_be_new:
            return part
        raise ValueError(f"unknown key '{key}'{near_misses(key, list_keys(data))}")
    if not isinstance(node, list):
        raise ValueError(f"unknown key '{key}': '{'.'.join(way)}' has no fields of its own")
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    entries = f"{len(node)} entr{'y' if len(node) == 1 else 'ies'}"
    raise ValueError(
        f"unknown key '{key}': {'.'.join(way)} has {entries}, counted from 0{near_misses(key, list_keys(data))}"
    )


def _value(text: str, old: Any) -> Any:
    """JSON, or the text itself: if it is no JSON, or in the place of a text other than "auto"."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    is_text = isinstance(old, str) and old != "auto"
    return text if is_text and not isinstance(value, str | None) else value


def list_keys(data: Any, prefix: str = "") -> list[str]:
    """All dotted keys of JSON values, leaves only; entries of a list of objects by their index."""
    keys = []
    for name, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            keys += list_keys(value, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


# --- keys without effect ---

_WIDE_TEXTS = (
    "detailed_fraction", "conversation_fraction", "small_talk_fraction", "question_emphasis", "plain_descriptions",
)  # fmt: skip


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
    if isinstance(config, AutoencoderRun | TextEncoderRun):
        found |= dict(_unread_of_small_nets(config))
    return found


def _unread_of_small_nets(config: AutoencoderRun | TextEncoderRun) -> Iterator[tuple[str, str]]:
    for key, source in _sources(config):
        if len(getattr(config, key.split(".")[0])) == 1:
            yield f"{key}.weight", "there is a single source"
        yield f"{key}.latents", "the small networks are trained on images and texts"
        yield from _unread_of_source(source, key)
        if source.kind in ("world", "wide") and isinstance(config, AutoencoderRun):
            yield f"{key}.question_fraction", "the autoencoder reads no text"
        if source.kind == "wide" and isinstance(config, AutoencoderRun):
            for name in ("wordings", *_WIDE_TEXTS, "detailed_prompt_fraction"):
                yield f"{key}.{name}", "the autoencoder reads no text"
    if isinstance(config, TextEncoderRun) and config.num_pieces is None:
        yield "num_tokenizer_texts", "num_pieces is null"


def _unread_of_optimizer(config: DualRun) -> Iterator[tuple[str, str]]:
    optimizer = config.optimizer
    if optimizer.schedule != "linear":
        yield "optimizer.decay_fraction", f"optimizer.schedule is {optimizer.schedule}, not linear"
    if optimizer.schedule == "constant":
        yield "optimizer.final_lr_fraction", "optimizer.schedule is constant"
    if optimizer.name != "muon":
        yield "optimizer.muon_lr", f"optimizer.name is {optimizer.name}, not muon"
    if config.lora.rank == 0:
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
            yield key, "objective.i2t_fraction is 0: no text is trained on"
    if objective.i2t_fraction == 1:
        for name in ("image_weight", "caption_dropout", "flow", "alignment_weight", "alignment_block"):
            yield f"objective.{name}", "objective.i2t_fraction is 1: no image is generated"
        if config.data.i2t:
            yield "data.t2i", "objective.i2t_fraction is 1: no image is generated"
    density = objective.flow.time_density
    for name, reader in (
        ("logit_mean", "logit_normal"),
        ("logit_std", "logit_normal"),
        ("mode_scale", "mode"),
    ):
        if density != reader:
            yield f"objective.flow.{name}", f"objective.flow.time_density is {density}, not {reader}"


def _unread_of_report(config: DualRun) -> Iterator[tuple[str, str]]:
    report = config.report
    if not config.data.held_out or report.num_held_out == 0:
        why = "report.num_held_out is 0" if config.data.held_out else "data.held_out names no source"
        for name in ("evaluate_every", "grid_every", "num_grid"):
            yield f"report.{name}", why
        if not config.data.held_out:
            yield "report.num_held_out", why
    if report.checkpoint_steps is not None:
        yield "report.checkpoint_minutes", f"report.checkpoint_steps is {report.checkpoint_steps}"


def _unread_of_data(config: DualRun) -> Iterator[tuple[str, str]]:
    has_captions_only = bool(config.data.i2t) or config.objective.i2t_fraction == 0
    for key, source in _sources(config):
        _, name, index = key.split(".")
        if len(getattr(config.data, name)) == 1:
            yield f"{key}.weight", f"data.{name} has a single source"
        yield from _unread_of_source(source, key)
        if source.kind in ("world", "wide", "folders") and name == "t2i" and has_captions_only:
            for text in ("question_fraction", *(_WIDE_TEXTS if source.kind == "wide" else ())):
                yield f"data.t2i.{index}.{text}", "of the sources in data.t2i only captions are used"
        if source.kind == "wide" and name == "i2t":
            yield f"{key}.detailed_prompt_fraction", "prompts are of the sources in data.t2i"


def _unread_of_source(source: Any, key: str) -> Iterator[tuple[str, str]]:
    if source.kind == "tar" and source.original_key is None:
        yield f"{key}.original_share", f"{key}.original_key is null"
    if source.part == "all":
        yield f"{key}.held_out_share", f"{key}.part is all"
    if source.kind == "folders" and source.captions == "sidecar":
        for name in ("templates", "question_templates", "question_fraction"):
            yield f"{key}.{name}", f"{key}.captions is sidecar"


def _unread_of_worlds(config: Any) -> Iterator[tuple[str, str]]:
    own = getattr(config, "world", None)
    worlds: list[tuple[str, WorldConfig]] = [("world", own)] if isinstance(own, WorldConfig) else []
    worlds += [(f"{key}.world", source.world) for key, source in _sources(config) if source.kind == "world"]
    for key, world in worlds:
        name = "min_size" if world.layout == "fixed" else "jitter"
        yield f"{key}.{name}", f"{key}.layout is {world.layout}"


def _sources(config: Any) -> Iterator[tuple[str, Any]]:
    """Every source of a run, by its key."""
    if isinstance(config, LatentsRun):
        yield "source", config.source
    if isinstance(config, AutoencoderRun | TextEncoderRun):
        for name in ("sources", "held_out"):
            for index, source in enumerate(getattr(config, name)):
                yield f"{name}.{index}", source
    if isinstance(config, DualRun):
        for name in ("t2i", "i2t", "held_out"):
            for index, source in enumerate(getattr(config.data, name)):
                yield f"data.{name}.{index}", source
