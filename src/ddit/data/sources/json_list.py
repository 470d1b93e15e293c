"""A JSON list or JSON lines of metadata, one image an entry."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ddit.config.data import JsonData
from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, Sample
from ddit.data.sources.coco import open_captions
from ddit.data.sources.finding import find_folder
from ddit.data.sources.images import content_of, load_image, measure_all, measure_file
from ddit.data.sources.records import Entries
from ddit.data.sources.remote import AnyPath
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.texts import choose_caption, make_caption_sample

_MAX_STATED = 2**31 - 1  # a size is an int32


class JsonSource:
    """The published form, where each entry names an image and holds its captions, or COCO's file of captions."""

    def __init__(self, cfg: JsonData) -> None:
        self.cfg = cfg
        self.records = open_captions(cfg.path)
        self.images = find_folder(cfg.images, cfg.path)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return self.records.name(index)

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        entry, cfg, name = self.records[index], self.cfg, self.name(index)
        caption = choose_caption(entry, cfg.caption_key, cfg.original_key, cfg.original_share, rng, name)
        image = load_image(self._image_path(entry, name)) if with_image else None
        return make_caption_sample(image, caption, i2t=i2t)

    def sizes(self) -> np.ndarray:
        return measure_records(self.records, self._size, f"{self.images}/{self.cfg.image_key}")

    def digests(self) -> np.ndarray:
        return digest_records(self.records, self._image_path, f"{self.images}/{self.cfg.image_key}")

    def _image_path(self, entry: dict[str, Any], name: str) -> AnyPath:
        return self.images / get_image_path(entry, self.cfg.image_key, name)

    def _size(self, index: int) -> tuple[int, int]:
        try:
            entry = self.records[index]
            path = self._image_path(entry, "")
            return get_stated_size(entry) or measure_file(path)
        except CorruptSample:
            return 0, 0


def get_image_path(entry: dict[str, Any], key: str, name: str) -> str:
    """The image's path within the folder of images; a list of one path is that path.

    Raises:
        CorruptSample: "no image": the entry names none; "several images".
    """
    value = entry.get(key)
    if isinstance(value, list) and len(value) > 1:
        raise CorruptSample("several images", f"{name}: {len(value)} under {key}")
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not value:
        raise CorruptSample("no image", f"{name}: no path under {key}")
    return value


def get_stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """The image's width and height if the metadata hold them."""
    width, height = entry.get("width"), entry.get("height")
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        return (width, height) if max(width, height) <= _MAX_STATED else None
    return None


def measure_records(records: Entries, size_of: Callable[[int], tuple[int, int]], settings: str) -> np.ndarray:
    """`size_of` every entry, cached beside the JSON file: (n, 2)."""

    def build() -> Arrays:
        return {"sizes": measure_all(size_of, range(len(records)))}

    return cache_beside(records.path, "sizes", build, settings=settings)["sizes"]


def digest_records(
    records: Entries, path_of: Callable[[dict[str, Any], str], AnyPath | None], settings: str
) -> np.ndarray:
    """Hashes of every entry's image, or where `path_of` it is None, of the entry; cached beside the file: (n,)."""

    def content(index: int) -> bytes:
        entry = records[index]
        path = path_of(entry, "")
        return json.dumps(entry).encode() if path is None else content_of(path)

    def build() -> Arrays:
        return {"digests": digest_all(content, records.name, range(len(records)))}

    return cache_beside(records.path, "digests", build, settings=settings)["digests"]
