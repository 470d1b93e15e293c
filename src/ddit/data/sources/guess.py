"""The configuration of a source from its path alone, by what the file looks like."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ddit.config.data import (
    FoldersData,
    HuggingFaceData,
    JsonData,
    LlavaData,
    QuestionsData,
    SourceConfig,
    TarData,
    TextData,
)
from ddit.data.samples import CorruptSample
from ddit.data.sources.coco import is_captions, open_captions, read_lists
from ddit.data.sources.finding import files_below, find_file
from ddit.data.sources.folders import find_image_folder, no_captions, scan_images
from ddit.data.sources.parquet_files import SAVED_FILES, has_configs, split_files, split_names
from ddit.data.sources.questions import locate_images
from ddit.data.sources.records import LINES_SUFFIXES
from ddit.data.sources.remote import RemotePath, is_url, open_file
from ddit.data.sources.tar import COMPRESSED_SUFFIXES, SUFFIX
from ddit.data.sources.text import DEFAULT_KEY, PLAIN_SUFFIXES, TABLE_SUFFIXES
from ddit.errors import near_misses
from ddit.files import read_json
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
    `kind`), a tar file, a parquet file, text or CSV, a folder or pattern of these, or a folder of images.

    Raises:
        ValueError: the kind cannot be told, or the settings do not fit it.
    """
    kind = hints.kind or _kind_of(path, has_images="image_key" in dict(hints.fields))
    if kind == "config":
        return parse(_AnySource, json.loads(find_file(path).read_text(encoding="utf-8-sig")))
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
    if kind == "folders":
        values["captions"] = _captions_of(find_image_folder(path))
    given = {key: _value(text) for key, text in hints.fields}
    if kind == "huggingface":
        values |= _columns(path, given.get("name"), str(given.get("split", HuggingFaceData.split)))
    values |= given
    found = parse(_AnySource, {key: value for key, value in values.items() if value is not None})
    return locate_images(found) if isinstance(found, QuestionsData) else found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _kind_of(path: str, *, has_images: bool) -> str:
    """has_images: it is known that the samples name images."""
    plain = Path(path).expanduser()
    if plain.is_dir():
        return _kind_of_folder(plain, has_images=has_images)
    suffixes = {SUFFIX: TarData.kind, ".parquet": HuggingFaceData.kind}
    suffixes |= dict.fromkeys((*PLAIN_SUFFIXES, *TABLE_SUFFIXES), TextData.kind)
    if is_url(path):
        plain = Path(RemotePath(path).name)
        if plain.suffix.lower() in (".json", *LINES_SUFFIXES):
            plain = find_file(path)
        elif plain.suffix.lower() not in suffixes:
            raise ValueError(
                f"the kind of '{path}' cannot be told from its name: give --kind tar, or another"
            )
    if plain.suffix.lower() == ".parquet" and not has_images:
        return _kind_of_parquet(path)
    if plain.suffix.lower() in suffixes:
        return suffixes[plain.suffix.lower()]
    if plain.name.lower().endswith(COMPRESSED_SUFFIXES):
        return TarData.kind
    if not plain.is_file():
        raise ValueError(
            f"'{path}' does not exist: give a file, a pattern, or a folder of images, .tar or .parquet files"
        )
    if plain.suffix.lower() not in (".json", *LINES_SUFFIXES):
        raise ValueError(
            f"the kind of '{path}' cannot be told from its name: give --kind, one of {', '.join(KINDS)}"
        )
    return _kind_of_json(plain, has_images=has_images)


def _kind_of_parquet(path: str) -> str:
    try:
        names = _column_names(path, None, HuggingFaceData.split)
    except ValueError:  # of another split
        return HuggingFaceData.kind
    return TextData.kind if _is_text_alone(names) else HuggingFaceData.kind


def _is_text_alone(keys: Collection[str]) -> bool:
    return DEFAULT_KEY in keys and not any(key in keys for key in _IMAGE_KEYS)


def _kind_of_folder(folder: Path, *, has_images: bool) -> str:
    if any((folder / name).is_file() for name in SAVED_FILES):
        return HuggingFaceData.kind
    # Tars come first: img2dataset keeps a parquet file beside each.
    if files_below(folder, (SUFFIX, *COMPRESSED_SUFFIXES)):
        return TarData.kind
    if files_below(folder, (".parquet",)):
        return HuggingFaceData.kind if has_images else _kind_of_parquet(str(folder))
    if files_below(folder, PLAIN_SUFFIXES) and not scan_images(folder).names:
        return TextData.kind
    return FoldersData.kind


def _captions_of(folder: Path) -> str:
    """Where the captions of a folder of images are: in files beside the images if most have one, else in the folders'
    names.

    Raises:
        ValueError: there is no image, or all are at the top, without captions.
    """
    found = scan_images(folder)
    if 2 * found.num_texts > len(found.names):
        return "sidecar"
    if not any(found.folders[owner] for owner in found.owners):
        raise ValueError(no_captions(folder))
    return "folders"


def _kind_of_json(path: Path, *, has_images: bool) -> str:
    """Objects are told apart by their keys, lists by those of the first entry that can be read."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        start = file.read(_START).lstrip()
    if re.match(r"\[\s*\[", start):
        return QuestionsData.kind
    if start.startswith("{") and path.suffix.lower() not in LINES_SUFFIXES:
        if '"questions"' in start and '"kind"' not in start.partition('"questions"')[0]:
            return QuestionsData.kind
        if path.stat().st_size < _START and '"kind"' in start:
            return "config"
        lists = read_lists(path)
        if lists is not None:
            return _kind_of_lists(path, lists)
    entry = _first_entry(path)
    if "conversations" in entry:
        return LlavaData.kind
    if _is_text_alone(entry) and not has_images:
        return TextData.kind
    return QuestionsData.kind if "question" in entry and "answers" in entry else JsonData.kind


def _kind_of_lists(path: Path, found: dict[str, Any]) -> str:
    if is_captions(found):
        return JsonData.kind
    if any("question_id" in item for item in found["annotations"][:1] if isinstance(item, dict)):
        raise ValueError(
            f"'{path}' holds annotations: give the file of questions, and this one as --annotations"
        )
    raise ValueError(f"'{path}' holds neither captions nor questions: of COCO's files give captions_*.json")


def _first_entry(path: Path) -> dict[str, Any]:
    records = open_captions(path)
    for index in range(min(len(records), 100)):
        try:
            return records[index]
        except CorruptSample:
            continue
    return {}


def _json_keys(path: str) -> dict[str, str]:
    """The keys of images and captions, where an entry has others than the published form."""
    entry = _first_entry(find_file(path))
    image = next((key for key in _IMAGE_KEYS if key in entry), None)
    captions = [key for key in _CAPTION_KEYS if key in entry]
    found = {"image_key": image} if image else {}
    if captions and "re_caption" not in captions:
        found["caption_key"] = captions[0]
    return found


def _columns(path: str, name: str | None, split: str) -> dict[str, str]:
    """The text columns, of the first file of a split."""
    names = _column_names(path, name, split_names(split)[0])
    caption = next((key for key in _CAPTION_KEYS if key in names), None)
    if caption is not None:
        return {"caption_key": caption}
    return (
        {"question_key": "question", "answer_key": "answer"} if {"question", "answer"} <= set(names) else {}
    )


def _column_names(path: str, name: str | None, split: str) -> list[str]:
    plain = Path(path).expanduser()
    if any((plain / saved).is_file() for saved in SAVED_FILES):
        found = files_below(plain, ("dataset_info.json",))
        return list(read_json(found[0]).get("features", {})) if found else []
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        return []
    files = files_below(plain, (".parquet",)) if has_configs(plain) else split_files(path, name, split)
    if not files:
        return []
    with open_file(files[0]) as file:
        return parquet.read_schema(file).names
