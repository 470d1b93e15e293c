"""A JSON list or JSON lines of metadata, one picture an entry."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ddit.config.data import JsonData
from ddit.data.samples import CorruptSample, Sample
from ddit.data.sources.images import all_sizes, file_size, load_image
from ddit.data.sources.records import Records, existing_folder
from ddit.data.sources.sidecar import Arrays, kept_beside
from ddit.data.sources.texts import captioned, choose_caption


class JsonSource:
    """The published form: each entry names a picture and holds its captions."""

    def __init__(self, cfg: JsonData) -> None:
        self.cfg = cfg
        self.records = Records(cfg.path)
        self.images = existing_folder(cfg.images, self.records.path)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return self.records.name(index)

    def sample(self, index: int, rng: random.Random, *, reading: bool, with_picture: bool = True) -> Sample:
        entry, cfg, name = self.records[index], self.cfg, self.name(index)
        caption = choose_caption(entry, cfg.caption_key, cfg.original_key, cfg.original_share, rng, name)
        picture = load_image(self.images / image_name(entry, cfg.image_key, name)) if with_picture else None
        return captioned(picture, caption, reading=reading)

    def sizes(self) -> np.ndarray:
        return recorded_sizes(self.records, self._size, f"{self.images}/{self.cfg.image_key}")

    def _size(self, index: int) -> tuple[int, int]:
        try:
            entry = self.records[index]
            return stated_size(entry) or file_size(self.images / image_name(entry, self.cfg.image_key, ""))
        except CorruptSample:
            return 0, 0


def image_name(entry: dict[str, Any], key: str, name: str) -> str:
    """The picture's path within the folder of pictures; `CorruptSample` ("no picture") if the entry names none."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise CorruptSample("no picture", f"{name}: no path under {key}")
    return value


def stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """The picture's width and height if the metadata hold them."""
    width, height = entry.get("width"), entry.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def recorded_sizes(records: Records, size_of: Callable[[int], tuple[int, int]], settings: str) -> np.ndarray:
    """`size_of` every entry, kept beside the JSON file: (n, 2)."""

    def build() -> Arrays:
        return {"sizes": all_sizes(size_of, range(len(records)))}

    return kept_beside(records.path, "sizes", build, settings=settings)["sizes"]
