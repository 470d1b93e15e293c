"""Which number comes next, and what is random about it: pure functions of (seed, number), in constant time."""

from __future__ import annotations

import math
import random
from functools import lru_cache

import numpy as np

_ROUNDS = 4
_WORD = (1 << 64) - 1


@lru_cache(maxsize=256)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence([seed, epoch]).generate_state(2 * _ROUNDS, np.uint64).tolist())


def _mix(key: int, value: int) -> int:
    """A 64-bit hash (the finaliser of splitmix64) of `value`, another one for every key."""
    x = (value * 0x9E3779B97F4A7C15 + key) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def shuffled_index(number: int, length: int, *, seed: int) -> int:
    """The index in [0, length) of the `number`-th sample: seeded permutations, epoch after epoch.

    A Feistel network over a grid of at least `length` cells, walked until it lands within: a permutation of thirty
    million samples takes no memory, and its millionth epoch no time.
    """
    epoch, place = divmod(number, length)
    keys = _keys(seed, epoch)
    rows = math.isqrt(length - 1) + 1 if length > 1 else 1
    columns = -(-length // rows)
    while True:
        row, column = divmod(place, columns)
        for i in range(_ROUNDS):
            row = (row + _mix(keys[2 * i], column)) % rows
            column = (column + _mix(keys[2 * i + 1], row)) % columns
        place = row * columns + column
        if place < length:
            return place


def batch_indices(num_samples: int, global_batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """Indices (global_batch_size,) of global batch `step`: epochs are seeded permutations, read one after another."""
    start = step * global_batch_size
    numbers = range(start, start + global_batch_size)
    return np.array([shuffled_index(number, num_samples, seed=seed) for number in numbers])


def sample_rng(seed: int, step: int, position: int) -> random.Random:
    """The generator of everything random in the text of sample `position` of global batch `step`."""
    return random.Random((seed << 72) ^ (step << 24) ^ position)


def noise_rng(seed: int, step: int, position: int) -> np.random.Generator:
    """The generator of times, noise and masks of sample `position` of global batch `step`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, position])))
