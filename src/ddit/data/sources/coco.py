"""COCO's `captions_*.json`: a list of images and one of captions, which name their image by its id."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddit.data.sources.finding import find_file
from ddit.data.sources.records import LINES_SUFFIXES, Entries, Records

_START = 1 << 16


class CocoCaptions:
    """An image with all its captions is one entry: `image_path`, `caption` (a list) and COCO's own keys.

    Captions of an image that is not listed make an entry without an image. The entries are held as packed JSON: Python
    objects would be ten times as large, and would be copied by every process that loads.

    Raises:
        ValueError: the lists hold something else, or two images have one id.
    """

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self.path = path
        packed = [json.dumps(entry).encode() for entry in _entries(path, found)]
        self._ends = np.cumsum([0, *map(len, packed)])
        self._packed = b"".join(packed)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self._packed[self._ends[index] : self._ends[index + 1]])

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"


def open_captions(path: str | Path) -> Entries:
    """The entries of COCO's file, or else of a JSON list or JSON lines; `ValueError` as theirs."""
    file = find_file(path)
    found = read_lists(file)
    return Records(file) if found is None else CocoCaptions(file, found)


def read_lists(path: Path) -> dict[str, Any] | None:
    """What a file holds that is a single object with COCO's lists, `images` or `annotations`; None: it is none."""
    if path.suffix.lower() in LINES_SUFFIXES:
        return None
    with path.open("rb") as file:
        start = file.read(_START).removeprefix(codecs.BOM_UTF8).lstrip()
        if not start.startswith(b"{") or not (b'"images"' in start or b'"annotations"' in start):
            return None
        file.seek(0)
        first = file.readline()
        try:
            json.loads(first)
            if file.read(_START).strip():
                return None  # JSON lines
        except (ValueError, RecursionError):
            pass
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not whole JSON: {error}") from None
    has_lists = isinstance(found.get("annotations"), list) and ("images" in found or "questions" not in found)
    return found if has_lists else None


def is_captions(found: dict[str, Any]) -> bool:
    """Whether lists as `read_lists` gives them are of images and captions."""
    first = next(iter(found["annotations"]), None)
    return isinstance(found.get("images"), list) and isinstance(first, dict) and "caption" in first


def _entries(path: Path, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not is_captions(found):
        raise ValueError(f"'{path}' has no list of images with one of annotations that have a caption")
    captions: dict[str, list[Any]] = {}
    for item in _objects(path, found, "annotations"):
        captions.setdefault(str(item.get("image_id")), []).append(item.get("caption"))
    seen: set[str] = set()
    for image in _objects(path, found, "images"):
        key = str(image.get("id"))
        if key in seen:
            raise ValueError(
                f"'{path}' has two images with the id {key}: their captions cannot be told apart"
            )
        seen.add(key)
        yield {**image, "image_path": image.get("file_name"), "caption": captions.pop(key, [])}
    for key, texts in captions.items():
        yield {"id": key, "image_path": None, "caption": texts}


def _objects(path: Path, found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = found[key]
    if not all(isinstance(item, dict) for item in items):
        raise ValueError(f"'{path}' has something else than objects under {key!r}")
    return items
