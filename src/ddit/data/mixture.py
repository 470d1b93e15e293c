"""Which samples make up a half of global batch k: a pure function of (seed, k), whatever the number of processes.

The weights hold exactly, not on average: a repeating pattern names the source of every global sample, and each source
is walked in seeded permutations of its own, epoch after epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ddit.data.buckets import Shape, assign_buckets, merge_small
from ddit.data.sampler import sample_rng, shuffled_index
from ddit.data.samples import Source

PERIOD = 10_000
"""Entries of a pattern: shares are exact to a ten-thousandth, and the smallest source still gets one entry."""

Weighted = tuple[Source, float]


class Pattern:
    """A repeating sequence of choices with exact counts, evenly interleaved.

    Largest remainder gives each choice its number of entries in a period (at least one); its entries are spread with a
    seeded jitter, so that every stretch holds about the right shares.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        counts = _largest_remainder(np.asarray(weights, dtype=np.float64), PERIOD)
        jitter = np.random.default_rng([seed, 0]).random(PERIOD)
        owners = np.repeat(np.arange(len(counts)), counts)
        order = np.concatenate([np.arange(count) for count in counts])
        keys = (order + jitter) / counts[owners]
        self.counts = counts
        self._choices = owners[np.argsort(keys, kind="stable")]  # (PERIOD,)
        self._before = np.zeros(
            PERIOD, dtype=np.int64
        )  # of each entry, how many of its own choice come before it
        for choice in range(len(counts)):
            self._before[self._choices == choice] = np.arange(counts[choice])

    def locate(self, number: int) -> tuple[int, int]:
        """The choice of entry `number`, and how many entries of that choice come before it."""
        period, entry = divmod(number, PERIOD)
        choice = int(self._choices[entry])
        return choice, period * int(self.counts[choice]) + int(self._before[entry])


def _largest_remainder(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to `weights` with the given sum, each at least 1."""
    exact = weights / weights.sum() * total
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while counts.sum() != total:
        missing = exact - counts
        step = 1 if counts.sum() < total else -1
        allowed = np.where((counts + step) >= 1, step * missing, -np.inf)
        counts[np.argmax(allowed)] += step
    return counts


@dataclass(frozen=True)
class Place:
    """One sample of a batch: the source's number, the sample's index in it, and the bucket."""

    source: int
    index: int
    bucket: int


class HalfBatches:
    """The t2i or the i2t half of every global batch.

    With several `shapes` a half has one of them, chosen in proportion to the samples (as the sources' weights count
    them). A bucket with fewer samples than a half-batch is merged into the nearest ratio's, or, where latents are
    cached and cannot be cut again, repeats its samples.

    Args:
        sources: with their weights.
        batch_size: samples of this half in a global batch.
        shapes: buckets; a single one takes every sample and asks no source for its sizes.
        can_cut: whether images can be cut to any shape; cached latents cannot.

    Raises:
        ValueError: for a weight that is not positive or a source without samples.
    """

    def __init__(
        self,
        sources: Sequence[Weighted],
        batch_size: int,
        *,
        shapes: list[Shape],
        seed: int,
        stream: int,
        can_cut: bool = True,
    ) -> None:
        for number, (source, weight) in enumerate(sources):
            if not weight > 0:
                raise ValueError(f"the weight of source {number} must be above 0, got {weight}")
            if not len(source):
                raise ValueError(f"source {number} has no samples")
        self.sources, self.batch_size, self.shapes, self.seed = sources, batch_size, shapes, seed
        self._stream = stream
        members = self._members(can_cut)
        shares = np.array(
            [
                [weight * len(m) / len(source) for m, (source, weight) in zip(row, sources, strict=True)]
                for row in members
            ]
        )  # (buckets, sources)
        self._used = np.flatnonzero(shares.sum(1)).tolist()
        self._buckets = Pattern(shares.sum(1)[self._used], seed=seed)
        self._within = []
        for bucket in self._used:
            own = np.flatnonzero(shares[bucket])
            pattern = Pattern(shares[bucket][own], seed=self._seed(bucket, len(sources)))
            self._within.append((own, pattern))
        self._walked = [
            [(indices, self._seed(bucket, source)) for source, indices in enumerate(members[bucket])]
            for bucket in self._used
        ]

    def _members(self, can_cut: bool) -> list[list[np.ndarray | range]]:
        """For each bucket and source, the indices of the samples in it."""
        if len(self.shapes) == 1:
            return [[range(len(source)) for source, _ in self.sources]]
        assigned = [assign_buckets(source.sizes(), self.shapes) for source, _ in self.sources]
        if can_cut:
            counts = [np.bincount(buckets, minlength=len(self.shapes)) for buckets in assigned]
            target = merge_small(np.sum(counts, axis=0), self.shapes, self.batch_size)
            assigned = [target[buckets] for buckets in assigned]
        return [[_find(b == bucket) for b in assigned] for bucket in range(len(self.shapes))]

    def _seed(self, bucket: int, source: int) -> int:
        """A seed of its own for every walk: no two lists of samples are shuffled alike."""
        return int(
            np.random.SeedSequence([self.seed, self._stream, int(bucket), source]).generate_state(1)[0]
        )

    def shape(self, step: int) -> Shape:
        """Height and width of the images of this half of global batch `step`."""
        return self.shapes[self._used[self._buckets.locate(step)[0]]]

    def place(self, step: int, position: int) -> Place:
        """Sample `position`, from 0 to `batch_size` - 1, of this half of global batch `step`; in constant time."""
        bucket, batches_before = self._buckets.locate(step)
        own, pattern = self._within[bucket]
        choice, running = pattern.locate(batches_before * self.batch_size + position)
        source = int(own[choice])
        members, seed = self._walked[bucket][source]
        return Place(source, int(members[shuffled_index(running, len(members), seed=seed)]), bucket)

    def replacement(self, place: Place, step: int, position: int, attempt: int) -> Place:
        """Another sample of the same source and bucket for one that is corrupt; `attempt` counts from 1."""
        members, _ = self._walked[place.bucket][place.source]
        rng = sample_rng(self.seed, step, position + (attempt << 23) + (self._stream << 22))
        return replace(place, index=int(members[rng.randrange(len(members))]))


def _find(is_member: np.ndarray) -> np.ndarray:
    return np.flatnonzero(is_member).astype(np.int32)
