"""Data sets of the `datasets` library: parquet on this machine, or the hub."""

from __future__ import annotations

import glob
import random
from pathlib import Path
from typing import Any

import numpy as np

from ddit.config.data import HuggingFaceData
from ddit.data.samples import CorruptSample, Sample, Turn
from ddit.data.sources.images import decode_image, load_image, measure_all, measure_file, measure_image
from ddit.data.sources.json_list import get_stated_size
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.texts import make_caption_sample, pick_text, refuse_t2i


class HuggingFaceSource:
    """Rows of a data set. Its images are decoded here, so that the same limits hold as for every other source."""

    def __init__(self, cfg: HuggingFaceData) -> None:
        if not cfg.caption_key and not (cfg.question_key and cfg.answer_key):
            raise ValueError("set caption_key, or question_key and answer_key, to the columns of the texts")
        self.cfg = cfg
        self.rows = _open(cfg)
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
        return cache_beside(Path(files[0]["filename"]), "sizes", build, settings=self.cfg.image_key)["sizes"]

    def _size(self, row: dict[str, Any]) -> tuple[int, int]:
        data, path = _content(row[self.cfg.image_key])
        stated = get_stated_size(row)
        if stated is not None:
            return stated
        if data is not None:
            return measure_image(lambda count: data if count < 0 else data[:count])
        return (0, 0) if path is None else measure_file(Path(path))

    def _load_image(self, row: dict[str, Any], name: str) -> Any:
        data, path = _content(row[self.cfg.image_key])
        if data is not None:
            return decode_image(data, name)
        if path is None:
            raise CorruptSample("no image", name)
        return load_image(Path(path))


def _content(value: Any) -> tuple[bytes | None, str | None]:
    """An image's bytes, or else its path."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value if isinstance(value, str) else None)


def _open(cfg: HuggingFaceData) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "a source of kind huggingface needs the datasets library: pip install 'ddit[data]'"
        ) from None
    local = _local_files(cfg.path, cfg.split)
    try:
        if local is None:
            rows = datasets.load_dataset(cfg.path, cfg.name, split=cfg.split)
        elif local == []:
            loaded = datasets.load_from_disk(cfg.path)
            rows = loaded[cfg.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            rows = datasets.load_dataset("parquet", data_files=local, split="train")
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot load '{cfg.path}' ({cfg.split}): {first}") from None
    assert isinstance(rows, datasets.Dataset)
    if isinstance(rows.features.get(cfg.image_key), datasets.Image):
        rows = rows.cast_column(cfg.image_key, datasets.Image(decode=False))
    return rows


def _local_files(path: str, split: str) -> list[str] | None:
    """The parquet files of a split; [] for a folder written by `save_to_disk`; None for an id of the hub.

    Where some files' names begin with the split, as in `train-00000-of-00002.parquet`, those are meant.
    """
    plain = Path(path).expanduser()
    if plain.is_dir():
        if any((plain / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return []
        found = sorted(plain.rglob("*.parquet"))
    elif plain.is_file():
        found = [plain]
    elif glob.has_magic(path):
        found = sorted(Path(name) for name in glob.glob(str(plain), recursive=True))
    elif path.count("/") > 1 or path.startswith((".", "/", "~")) or path.endswith(".parquet"):
        raise ValueError(f"'{path}' does not exist: give a folder or pattern of parquet files, or a hub id")
    else:
        return None
    if not found:
        raise ValueError(f"there is no parquet file at '{path}'")
    named = [file for file in found if file.name.startswith(split)] if len(found) > 1 else []
    return [str(file) for file in named or found]
