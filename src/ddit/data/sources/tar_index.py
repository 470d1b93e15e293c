"""Where the samples of a tar shard are: found once by reading its headers, and cached beside it."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ddit.data.sources.sidecar import Arrays, cache_beside

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")
TRUNCATED, DAMAGED = "truncated tar", "damaged tar"
_WHOLE = ""
_BLOCK = 512


class TarIndex(NamedTuple):
    """The samples of one shard, by stem in order of first appearance.

    images, texts, metadata (n, 2) int64: offset and size of the member in the shard, or (0, 0) if there is none;
    stems (n,) bytes; end: why the shard ends early ("truncated tar", "damaged tar"), or "".
    """

    images: np.ndarray
    texts: np.ndarray
    metadata: np.ndarray
    stems: np.ndarray
    end: str


def load_index(path: Path) -> TarIndex:
    """The index of a shard, built if there is none beside it (`NAME.tar.index.npz`) or the shard has changed.

    Raises:
        ValueError: the shard is compressed, so that there is no reading from its middle.
    """
    arrays = cache_beside(path, "index", lambda: _build(path))
    spans = arrays["spans"]
    return TarIndex(spans[0], spans[1], spans[2], arrays["stems"], str(arrays["end"]))


def split_name(name: str) -> tuple[str, str]:
    """Stem and suffix of a member as webdataset has them: the suffix begins at the base name's first point."""
    path = PurePosixPath(name)
    base, _, suffix = path.name.partition(".")
    return str(path.with_name(base)) if base else "", suffix.lower()


def _build(path: Path) -> Arrays:
    samples: dict[str, list[tuple[int, int]]] = {}
    end = _WHOLE
    size = path.stat().st_size
    offset = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                offset = tar.offset
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header in memory
                stem, suffix = split_name(member.name)
                kind = _kind(suffix)
                if kind is None or not stem or not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    end = TRUNCATED
                    break
                samples.setdefault(stem, [(0, 0)] * 3)[kind] = (member.offset_data, member.size)
        end = end or _how_it_ends(path, offset, size)
    except tarfile.ReadError as error:
        _refuse_compressed(path)
        end = TRUNCATED if offset or size == 0 or "end of data" in str(error) else DAMAGED
    spans = np.array(list(samples.values()), np.int64).reshape(-1, 3, 2).transpose(1, 0, 2)
    return {
        "spans": np.ascontiguousarray(spans),
        "stems": np.array([stem.encode() for stem in samples], np.bytes_),
        "end": np.array(end),
    }


def _kind(suffix: str) -> int | None:
    if suffix in IMAGE_SUFFIXES:
        return 0
    return {"txt": 1, "json": 2}.get(suffix)


def _how_it_ends(path: Path, offset: int, size: int) -> str:
    """Python's reader takes anything that is no header for the archive's end; only zeros, or nothing, are one."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(_BLOCK)
    if not block.strip(b"\0"):
        return _WHOLE
    return TRUNCATED if offset + _BLOCK > size else DAMAGED


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(6)
    if (
        magic[:2] == b"\x1f\x8b"
        or magic[:3] == b"BZh"
        or magic == b"\xfd7zXZ\0"
        or magic[:4] == b"\x28\xb5\x2f\xfd"
    ):
        raise ValueError(f"'{path}' is compressed, which allows no reading from its middle: decompress it")
