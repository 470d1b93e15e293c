"""Samples set aside by a hash of their images: who is held out depends on no order, no seed and no other sample."""

from __future__ import annotations

import random

import numpy as np

from ddit.config.data import AnySource
from ddit.data.samples import Sample, Source


def is_held_out(digests: np.ndarray, share: float) -> np.ndarray:
    """Which of these digests (n,) uint64 are held out, (n,) bool; a larger share adds to those of a smaller one."""
    return digests < np.uint64(round(share * 2**64))


class PartSource:
    """The training part or the held-out part of a source.

    Attributes:
        source: the whole.
        indices: (len,) int64, of the part's samples in the whole, in order.

    Raises:
        ValueError: the part has no sample, though the source has.
    """

    def __init__(self, source: Source, cfg: AnySource) -> None:
        held_out = is_held_out(source.digests(), cfg.held_out_share)
        self.source = source
        self.indices = np.flatnonzero(held_out == (cfg.part == "held_out"))
        if len(source) and not len(self.indices):
            change = "raise" if cfg.part == "held_out" else "lower"
            raise ValueError(
                f"of the {len(source)} samples beside {source.name(0)} none is in the part {cfg.part!r}: {change} "
                f"held_out_share, which is {cfg.held_out_share:g}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        return self.source.sample(int(self.indices[index]), rng, i2t=i2t, with_image=with_image)

    def sizes(self) -> np.ndarray:
        return self.source.sizes()[self.indices]

    def digests(self) -> np.ndarray:
        return self.source.digests()[self.indices]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))
