"""Which samples make up global batch k: a pure function of (seed, k), whatever the number of processes."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def batch_indices(num_samples: int, global_batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """Indices (global_batch_size,) of global batch `step`: epochs are seeded permutations, read one after another."""
    start = step * global_batch_size
    positions = np.arange(start, start + global_batch_size)
    epochs, offsets = np.divmod(positions, num_samples)
    return np.array(
        [_permutation(num_samples, seed, int(e))[o] for e, o in zip(epochs, offsets, strict=True)]
    )


def sample_rng(seed: int, step: int, position: int) -> random.Random:
    """The generator of everything random in the text of sample `position` of global batch `step`."""
    return random.Random((seed << 72) ^ (step << 24) ^ position)
