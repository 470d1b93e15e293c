"""Hashes of what samples are made of, by which they are told apart and set aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np

from ddit.data.samples import CorruptSample

_NUM_THREADS = 16  # reading waits for the disk, and hashing holds no lock


def digest(data: bytes) -> int:
    """A hash of 64 bits."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def digest_all(
    read: Callable[[int], bytes], name: Callable[[int], str], indices: Sequence[int]
) -> np.ndarray:
    """Hashes (n,) uint64 of what `read` gives of each index, in threads; of its name, where that cannot be read."""

    def one(index: int) -> int:
        try:
            return digest(read(index))
        except (CorruptSample, OSError, ValueError):
            return digest(name(index).encode(errors="replace"))

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return np.fromiter(threads.map(one, indices), np.uint64, len(indices))
