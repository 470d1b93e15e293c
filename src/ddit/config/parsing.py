"""Frozen dataclasses from JSON values, strictly: an unknown key, a missing one or another type is one clear line."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ddit.errors import near_misses


def to_data(config: Any) -> Any:
    """A dataclass as JSON values: dictionaries, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def build(hint: Any, data: Any, key: str = "") -> Any:
    """JSON values as what a type hint says: a dataclass, one of several told apart by `kind`, a tuple of these, or
    anything that pydantic knows.

    Args:
        key: where the values stand in the whole, for messages: "data.t2i.0".

    Raises:
        ValueError: in one line that names the key.
    """
    hint = narrow(hint, data, key)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(hint, data, key)
    item = item_hint(hint)
    if item is not None and isinstance(data, list):
        return tuple(build(item, value, f"{key}.{index}") for index, value in enumerate(data))
    try:
        return TypeAdapter(hint).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ValueError(f"bad value for {key}: {data!r} ({error.errors()[0]['msg']})") from None


def _build_dataclass(cls: Any, data: Any, key: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"bad value for {key}: {data!r} (it should be an object with keys)")
    prefix, hints = f"{key}." if key else "", typing.get_type_hints(cls)
    for name in data:
        if name not in hints:
            raise ValueError(
                f"unknown key {prefix + name!r}{near_misses(prefix + name, [prefix + h for h in hints])}"
            )
    fields = dataclasses.fields(cls)
    for field in fields:
        if field.name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing key {prefix + field.name!r}")
    values = {name: build(hints[name], value, prefix + name) for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{key}: {error}" if key else str(error)) from None


def narrow(hint: Any, data: Any, key: str) -> Any:
    """The member of a union that `data` is meant for: None, or the dataclass whose `kind` it names."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = typing.get_args(hint)
    classes = [member for member in members if dataclasses.is_dataclass(member)]
    if not classes or not isinstance(data, dict):
        return hint
    if len(classes) == 1:
        return classes[0]
    kinds = {
        next(f.default for f in dataclasses.fields(member) if f.name == "kind"): member for member in classes
    }
    if data.get("kind") not in kinds:
        raise ValueError(
            f"{key}.kind is {data.get('kind')!r}; known: {', '.join(map(str, kinds))}"
            f"{near_misses(str(data.get('kind')), map(str, kinds))}"
        )
    return kinds[data["kind"]]


def item_hint(hint: Any) -> Any:
    """X of `tuple[X, ...]`, if X is or may be a dataclass; else None."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or len(arguments) != 2 or arguments[1] is not Ellipsis:
        return None
    members = typing.get_args(arguments[0]) or (arguments[0],)
    return arguments[0] if any(dataclasses.is_dataclass(member) for member in members) else None


def list_keys(data: Any, prefix: str = "") -> list[str]:
    """All dotted keys of JSON values, leaves only; entries of a list of objects by their index."""
    keys = []
    for name, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            keys += list_keys(value, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def assign(cls: Any, data: Any, key: str, text: str) -> None:
    """Sets the dotted `key` in the JSON values `data` of a `cls`; `text` is JSON, or else a plain string.

    Entries of a list are named by their index: "data.t2i.0.path".

    Raises:
        ValueError: in one line, for an unknown key or index, with near misses, or a value of another type.
    """
    hint: Any = cls
    node: Any = data
    place: Any
    parts = key.split(".")
    for depth, part in enumerate(parts):
        before = ".".join(parts[:depth])
        hint = narrow(hint, node, before)
        item = item_hint(hint)
        if dataclasses.is_dataclass(hint) and isinstance(node, dict):
            hints = typing.get_type_hints(hint)
            if part not in hints:
                raise ValueError(f"unknown key {key!r}{near_misses(key, list_keys(data))}")
            hint, place = hints[part], part
        elif item is not None and isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                hints_at = f"{before} has {len(node)} entr{'y' if len(node) == 1 else 'ies'}, counted from 0"
                raise ValueError(f"unknown key {key!r}: {hints_at}{near_misses(key, list_keys(data))}")
            hint, place = item, int(part)
        else:
            raise ValueError(f"unknown key {key!r}: {before!r} has no fields of its own")
        if depth == len(parts) - 1:
            node[place] = _parse(key, text, hint)
        else:
            node = node[place]


def _parse(key: str, text: str, hint: Any) -> Any:
    """The JSON value that fits the hint: `text` read as JSON, or as a string."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    try:
        build(hint, value, key)
        return value
    except ValueError as error:
        problem = str(error)
    try:
        build(hint, text, key)
        return text
    except ValueError:
        raise ValueError(problem) from None
