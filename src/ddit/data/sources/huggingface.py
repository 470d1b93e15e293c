"""Data sets of the `datasets` library: parquet on this machine, or the hub."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from ddit.config.data import HuggingFaceData
from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, Sample, Turn
from ddit.data.sources.images import (
    content_of,
    decode_image,
    load_image,
    measure_all,
    measure_file,
    measure_image,
)
from ddit.data.sources.json_list import get_stated_size
from ddit.data.sources.parquet_files import SAVED_FILES, has_configs, split_files, split_names
from ddit.data.sources.remote import AnyPath, RemotePath, is_url
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.texts import make_caption_sample, pick_text, refuse_t2i


class HuggingFaceSource:
    """Rows of a data set. Its images are decoded here, so that the same limits hold as for every other source."""

    def __init__(self, cfg: HuggingFaceData) -> None:
        if not cfg.caption_key and not (cfg.question_key and cfg.answer_key):
            raise ValueError("set caption_key, or question_key and answer_key, to the columns of the texts")
        self.cfg = cfg
        self.rows = open_rows(cfg)
        wanted = (cfg.image_key, cfg.caption_key, cfg.question_key, cfg.answer_key)
        missing = [key for key in wanted if key and key not in self.rows.column_names]
        if missing:
            known = ", ".join(self.rows.column_names)
            raise ValueError(f"'{cfg.path}' has no column {' or '.join(missing)}; it has {known}")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.cfg.path}/{self.cfg.split}[{index}]"

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        cfg, name = self.cfg, self.name(index)
        if not i2t and not cfg.caption_key:
            refuse_t2i(name)
        row = self.rows[int(index)]
        if cfg.caption_key:
            caption = pick_text(row[cfg.caption_key], rng)
            if not caption:
                raise CorruptSample("no caption", f"{name}: no text under {cfg.caption_key}")
            image = self._load_image(row, name) if with_image else None
            return make_caption_sample(image, caption, i2t=i2t)
        question, answer = pick_text(row[cfg.question_key], rng), pick_text(row[cfg.answer_key], rng)
        if not question or not answer:
            raise CorruptSample("no answer" if question else "no question", name)
        image = self._load_image(row, name) if with_image else None
        return Sample(image, None, (Turn(question, answer),), short_answers=True)

    def sizes(self) -> np.ndarray:
        keys = [self.cfg.image_key, *(k for k in ("width", "height") if k in self.rows.column_names)]
        rows = self.rows.select_columns(keys)

        def build() -> Arrays:
            return {"sizes": measure_all(lambda index: self._size(rows[index]), range(len(self)))}

        files = self.rows.cache_files
        if not files:
            return build()["sizes"]
        # Several splits, and parts of one, may be rows of the same files.
        settings = f"{self.cfg.image_key}/{self.cfg.split}/{len(self)}/{[file['filename'] for file in files]}"
        return cache_beside(Path(files[0]["filename"]), "sizes", build, settings=settings)["sizes"]

    def digests(self) -> np.ndarray:
        """Of every row anew: the library keeps no file for rows that were chosen from others."""
        rows = self.rows.select_columns([self.cfg.image_key])

        def content(index: int) -> bytes:
            data, path = _content(rows[index][self.cfg.image_key])
            if data is None and path is None:
                raise CorruptSample("no image", "")
            return data if data is not None else content_of(self._find(path or ""))

        return digest_all(content, self.name, range(len(self)))

    def _size(self, row: dict[str, Any]) -> tuple[int, int]:
        data, path = _content(row[self.cfg.image_key])
        stated = get_stated_size(row)
        if stated is not None:
            return stated
        if data is not None:
            return measure_image(lambda count: data if count < 0 else data[:count])
        return (0, 0) if path is None else measure_file(self._find(path))

    def _load_image(self, row: dict[str, Any], name: str) -> Any:
        data, path = _content(row[self.cfg.image_key])
        if data is not None:
            return decode_image(data, name)
        if path is None:
            value = row[self.cfg.image_key]
            several = isinstance(value, list) and len(value) > 1
            raise CorruptSample("several images" if several else "no image", name)
        return load_image(self._find(path))

    def _find(self, path: str) -> AnyPath:
        """A file that a row names: beside the data, or else as it stands."""
        if is_url(self.cfg.path):
            return RemotePath(self.cfg.path).parent / path
        plain = Path(self.cfg.path).expanduser()
        beside = (plain if plain.is_dir() else plain.parent) / path
        return beside if beside.is_file() else Path(path)


def _content(value: Any) -> tuple[bytes | None, str | None]:
    """An image's bytes, or else its path; a list of one image is that image."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value if isinstance(value, str) else None)


def open_rows(cfg: HuggingFaceData) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ValueError(
            "a source of kind huggingface needs the datasets library: pip install 'ddit[data]'"
        ) from None
    is_saved = any((Path(cfg.path).expanduser() / name).is_file() for name in SAVED_FILES)
    files: dict[str, Any] = {}
    if not is_saved and not has_configs(Path(cfg.path).expanduser()):  # which are the hub's own descriptions
        files = {split: split_files(cfg.path, cfg.name, split) for split in split_names(cfg.split)}
    try:
        if is_saved:
            rows = _load_saved(cfg, datasets)
        elif any(files.values()):
            named = {split: [str(file) for file in found] for split, found in files.items()}
            rows = datasets.load_dataset("parquet", data_files=named, split=cfg.split)
        else:
            rows = datasets.load_dataset(os.path.expanduser(cfg.path), cfg.name, split=cfg.split)
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot load '{cfg.path}' ({cfg.split}): {first}") from None
    assert isinstance(rows, datasets.Dataset)
    feature = rows.features.get(cfg.image_key)
    if isinstance(feature, datasets.Image):
        rows = rows.cast_column(cfg.image_key, datasets.Image(decode=False))
    elif isinstance(getattr(feature, "feature", None), datasets.Image):
        rows = rows.cast_column(cfg.image_key, datasets.List(datasets.Image(decode=False)))
    return rows


def _load_saved(cfg: HuggingFaceData, datasets: Any) -> Any:
    """What `save_to_disk` wrote: the split of a dictionary, or the rows that were saved alone."""
    loaded = datasets.load_from_disk(str(Path(cfg.path).expanduser()))
    known = list(loaded) if isinstance(loaded, datasets.DatasetDict) else [str(loaded.split or "no split")]
    if isinstance(loaded, datasets.DatasetDict):
        if cfg.split in loaded:
            return loaded[cfg.split]
    elif cfg.split in (HuggingFaceData.split, *known):
        return loaded
    raise ValueError(f"it has no split {cfg.split!r}, but {', '.join(known)}")
