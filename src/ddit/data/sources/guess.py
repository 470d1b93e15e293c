"""The configuration of a source from its path alone, by what the file looks like."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ddit.config.data import HuggingFaceData, JsonData, LlavaData, QuestionsData, SourceConfig, TarData
from ddit.data.samples import CorruptSample
from ddit.data.sources.records import LINES_SUFFIXES, Records
from ddit.errors import near_misses
from ddit.schema import parse

_AnySource: Any = SourceConfig
KINDS: tuple[str, ...] = tuple(cls.kind for cls in get_args(get_args(_AnySource)[0]))
_START = 1 << 16
_IMAGE_KEYS = ("image_path", "image", "file_name", "filename", "path")
_CAPTION_KEYS = ("re_caption", "caption", "captions", "text")


@dataclass(frozen=True)
class Hints:
    """What cannot be guessed from the path."""

    kind: str | None = None
    images: str | None = None
    annotations: str | None = None
    fields: tuple[tuple[str, str], ...] = ()
    """Other settings of the source, by name."""


def guess_source(path: str, hints: Hints = Hints()) -> SourceConfig:
    """The configuration of the source at `path`.

    `path` is a file of JSON (metadata, LLaVA, VQAv2 or VizWiz questions, or a source's own configuration, which has a
    `kind`), a tar file, a parquet file, a folder of either, or a pattern.

    Raises:
        ValueError: the kind cannot be told, or the settings do not fit it.
    """
    kind = hints.kind or _kind_of(path)
    if kind == "config":
        return parse(_AnySource, json.loads(Path(path).expanduser().read_text(encoding="utf-8")))
    if kind not in KINDS:
        raise ValueError(
            f"unknown kind of source {kind!r}: use {', '.join(KINDS)}{near_misses(str(kind), KINDS)}"
        )
    values: dict[str, Any] = {"kind": kind, "images": hints.images}
    if kind == "questions":
        values |= {"questions": path, "annotations": hints.annotations or ""}
    elif kind != "world":
        values["path"] = path
    if kind == "json":
        values |= _json_keys(path)
    if kind == "huggingface":
        values |= _columns(path)
    values |= {key: _value(text) for key, text in hints.fields}
    return parse(_AnySource, {key: value for key, value in values.items() if value is not None})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _kind_of(path: str) -> str:
    plain = Path(path).expanduser()
    if plain.is_dir():
        if any(plain.rglob("*.tar")):
            return TarData.kind
        if any(plain.rglob("*.parquet")):
            return HuggingFaceData.kind
        raise ValueError(
            f"'{path}' holds no .tar and no .parquet file: name the JSON file itself, or give --kind"
        )
    suffixes = {".tar": TarData.kind, ".parquet": HuggingFaceData.kind}
    if plain.suffix in suffixes:
        return suffixes[plain.suffix]
    if not plain.is_file():
        raise ValueError(
            f"'{path}' does not exist: give a file, a folder of .tar or .parquet files, or a pattern"
        )
    if plain.suffix not in (".json", *LINES_SUFFIXES):
        raise ValueError(
            f"the kind of '{path}' cannot be told from its name: give --kind, one of {', '.join(KINDS)}"
        )
    return _kind_of_json(plain)


def _kind_of_json(path: Path) -> str:
    """Objects are told apart by their keys, lists by those of the first entry that can be read."""
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(_START).lstrip()
    if start.startswith("{") and path.suffix not in LINES_SUFFIXES:
        if '"questions"' in start and '"kind"' not in start.partition('"questions"')[0]:
            return QuestionsData.kind
        if path.stat().st_size < _START and '"kind"' in start:
            return "config"
        if '"annotations"' in start:
            raise ValueError(
                f"'{path}' holds annotations: give the file of questions, and this one as --annotations"
            )
    entry = _first_entry(path)
    if "conversations" in entry:
        return LlavaData.kind
    return QuestionsData.kind if "question" in entry and "answers" in entry else JsonData.kind


def _first_entry(path: Path) -> dict[str, Any]:
    records = Records(path)
    for index in range(min(len(records), 100)):
        try:
            return records[index]
        except CorruptSample:
            continue
    return {}


def _json_keys(path: str) -> dict[str, str]:
    """The keys of images and captions, where an entry has others than the published form."""
    entry = _first_entry(Path(path).expanduser())
    image = next((key for key in _IMAGE_KEYS if key in entry), None)
    captions = [key for key in _CAPTION_KEYS if key in entry]
    found = {"image_key": image} if image else {}
    if captions and "re_caption" not in captions:
        found["caption_key"] = captions[0]
    return found


def _columns(path: str) -> dict[str, str]:
    """The text columns of the first parquet file."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        return {}
    plain = Path(path).expanduser()
    first = next(iter(sorted(plain.rglob("*.parquet"))), None) if plain.is_dir() else plain
    if first is None or not first.is_file():
        return {}
    names = parquet.read_schema(first).names
    caption = next((key for key in _CAPTION_KEYS if key in names), None)
    if caption is not None:
        return {"caption_key": caption}
    return (
        {"question_key": "question", "answer_key": "answer"} if {"question", "answer"} <= set(names) else {}
    )
