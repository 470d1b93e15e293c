"""Tar shards as img2dataset and webdataset write them, read at random."""

from __future__ import annotations

import json
import os
import platform
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ddit.config.data import TarData
from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, LeftOut, Sample
from ddit.data.sources.finding import files_below, match_files, match_urls
from ddit.data.sources.images import decode_image, measure_all, measure_image
from ddit.data.sources.json_list import get_stated_size
from ddit.data.sources.remote import AnyPath, RemotePath, is_url
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.tar_index import NUM_NAMES, load_index
from ddit.data.sources.texts import choose_caption, make_caption_sample

Found = TypeVar("Found")

SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_NUM_SHARDS_AT_ONCE = 4


class TarSource:
    """All samples of all shards. A shard that ends early adds one corrupt sample, which stands for what is lost.

    Shards are opened for each read, so that any number of processes and threads may share this object.
    """

    def __init__(self, cfg: TarData) -> None:
        self.cfg = cfg
        self.shards = find_shards(cfg.path)
        indices = _for_each_shard(lambda shard: load_index(self.shards[shard]), len(self.shards), "indexing")
        self._ends = [index.end for index in indices]
        counts = [len(index.stems) + bool(index.end) for index in indices]
        self._starts = np.cumsum([0, *counts])
        self._indices = indices

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        shard, place = self._locate(index)
        stems = self._indices[shard].stems
        stem = stems[place].decode(errors="replace") if place < len(stems) else "end"
        return f"{self.shards[shard]}:{stem}"

    def left_out(self) -> dict[str, LeftOut]:
        """The members of all shards that no sample uses, by cause; folders do not count."""
        total: dict[str, LeftOut] = {}
        for shard, index in zip(self.shards, self._indices, strict=True):
            for cause, (num, first) in index.left_out.items():
                before = total.get(cause, LeftOut(0, ()))
                names = (*before.first, *(f"{shard}:{name}" for name in first))
                total[cause] = LeftOut(before.num + num, names[:NUM_NAMES])
        return total

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        shard, place = self._locate(index)
        found, name, cfg = self._indices[shard], self.name(index), self.cfg
        if place == len(found.stems):
            raise CorruptSample(found.end, f"{self.shards[shard]}: what follows its last sample is lost")
        if found.faults[place]:
            raise CorruptSample(found.faults[place].decode(), name)
        if not found.images[place].any():
            raise CorruptSample("no image", name)
        if cfg.caption_key is None:
            entry, key = {"txt": self._text(shard, found.texts[place], name)}, "txt"
            if cfg.original_key is not None:
                entry |= self._metadata(shard, found.metadata[place], name)
        else:
            entry, key = self._metadata(shard, found.metadata[place], name), cfg.caption_key
        caption = choose_caption(entry, key, cfg.original_key, cfg.original_share, rng, name)
        image = decode_image(self._read(shard, found.images[place], name), name) if with_image else None
        return make_caption_sample(image, caption, i2t=i2t)

    def sizes(self) -> np.ndarray:
        found = _for_each_shard(self._shard_sizes, len(self.shards), "measuring")
        return np.concatenate(found)

    def _shard_sizes(self, shard: int) -> np.ndarray:
        found = self._indices[shard]

        def size_of(place: int) -> tuple[int, int]:
            try:
                if found.metadata[place, 1]:
                    size = get_stated_size(self._metadata(shard, found.metadata[place], ""))
                    if size is not None:
                        return size
                offset, count = found.images[place].tolist()
                return measure_image(
                    lambda n: self._read(shard, (offset, min(n, count) if n >= 0 else count), "")
                )
            except CorruptSample:
                return 0, 0

        def build() -> Arrays:
            return {"sizes": measure_all(size_of, range(len(found.stems)))}

        sizes = cache_beside(self.shards[shard], "sizes", build)["sizes"]
        return np.concatenate([sizes, np.zeros((int(bool(found.end)), 2), np.int32)])

    def digests(self) -> np.ndarray:
        found = _for_each_shard(self._shard_digests, len(self.shards), "hashing")
        return np.concatenate(found)

    def _shard_digests(self, shard: int) -> np.ndarray:
        found, first = self._indices[shard], int(self._starts[shard])
        num = len(found.stems) + bool(found.end)

        def content(place: int) -> bytes:
            if place == len(found.stems) or not found.images[place].any():
                raise CorruptSample("no image", "")
            if isinstance(self.shards[shard], RemotePath):
                return self.name(first + place).encode()
            return self._read(shard, found.images[place], "")

        def build() -> Arrays:
            return {"digests": digest_all(content, lambda place: self.name(first + place), range(num))}

        return cache_beside(self.shards[shard], "digests", build)["digests"]

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, int(index - self._starts[shard])

    def _read(self, shard: int, span: Any, name: str) -> bytes:
        offset, size = (int(value) for value in span)
        path = self.shards[shard]
        if isinstance(path, RemotePath):
            return path.read_span(offset, size)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise CorruptSample("unreadable file", f"{name}: {error.strerror}") from None

    def _text(self, shard: int, span: Any, name: str) -> str:
        try:
            return self._read(shard, span, name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CorruptSample("bad text", f"{name}: {error}") from None

    def _metadata(self, shard: int, span: Any, name: str) -> dict[str, Any]:
        text = self._text(shard, span, name)
        try:
            entry = json.loads(text) if text else {}
        except ValueError as error:
            raise CorruptSample("bad JSON", f"{name}: {error}") from None
        if not isinstance(entry, dict):
            raise CorruptSample("bad JSON", f"{name}: not an object")
        return entry


def _for_each_shard(work: Callable[[int], Found], num_shards: int, what: str) -> list[Found]:
    """`work` of every shard, in threads. A terminal gets a progress bar if it takes more than seconds.

    Each process has an order of its own: those that start together then find most of the others' work done.
    """
    order = list(range(num_shards))
    random.Random(f"{platform.node()}/{os.getpid()}").shuffle(order)
    found: dict[int, Found] = {}
    with ThreadPoolExecutor(_NUM_SHARDS_AT_ONCE) as threads:
        done = zip(order, threads.map(work, order), strict=True)
        for shard, result in tqdm(done, what, num_shards, unit="shard", leave=False, disable=None, delay=3):
            found[shard] = result
    return [found[shard] for shard in range(num_shards)]


def find_shards(path: str) -> list[AnyPath]:
    """The shards that a file, a folder, a pattern or a URL names, in order.

    Raises:
        ValueError: there is none, one of those that braces name is missing, or a folder holds compressed ones.
    """
    if is_url(path):
        return [*match_urls(path, SUFFIX)]
    plain = Path(path).expanduser()
    if plain.is_file():
        return [plain]
    if plain.is_dir():
        found = files_below(plain, (SUFFIX, *COMPRESSED_SUFFIXES))
        shards = [shard for shard in found if shard.name.lower().endswith(SUFFIX)]
        compressed = [shard for shard in found if shard not in shards]
        if compressed:
            raise ValueError(
                f"'{plain}' holds compressed tars ({len(compressed)}, '{compressed[0]}' first), which allow no reading "
                "from their middle: decompress them, or name the others by a pattern"
            )
        if not shards:
            raise ValueError(f"there is no .tar file in '{plain}'")
        return [*shards]
    shards = match_files(path)
    if not shards:
        raise ValueError(
            f"'{path}' does not exist: give a .tar file, a folder of them, or a pattern such as 'x/*.tar'"
        )
    return [*shards]
