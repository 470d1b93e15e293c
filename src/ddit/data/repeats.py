"""What `ddit data check` says of images that are there more than once, and of classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ddit.data.duplicates import MAX_COMPARED, Look, find_near
from ddit.data.samples import Source
from ddit.data.sources import FoldersSource

NUM_NAMES = 5


class Fault(NamedTuple):
    """Samples with one fault, and where the first few are."""

    num: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class ImageReport:
    """Images that are there more than once.

    `repeated`: samples that show the same pixels as an earlier one (as questions about one image do), `conflicting`:
    those of them that are of another class, `near`: of `num_compared` distinct images those that look like an earlier
    one, `across`: those held out that look like one that is not. The first few are pairs of names.
    """

    num_distinct: int
    repeated: Fault
    conflicting: Fault
    num_compared: int
    near: Fault
    across: Fault

    def to_json(self) -> dict[str, Any]:
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {key: value._asdict() if isinstance(value, Fault) else value for key, value in values.items()}

    def lines(self, *, is_split: bool) -> Iterator[str]:
        compared = (
            "" if self.num_compared == self.num_distinct else f", {self.num_compared:,} of them compared"
        )
        yield f"images       {self.num_distinct:,} distinct{compared}"
        rows = {
            "show the image of an earlier sample": self.repeated,
            "of them in another class than the earlier one": self.conflicting,
            "look nearly like an earlier one": self.near,
        }
        if is_split:
            rows["held out, and nearly like one that is trained on"] = self.across
        for what, fault in rows.items():
            if fault.num:
                yield f"  {fault.num:>8,}  {what}: {', '.join(fault.first)}"


class ImageCounter:
    """Takes the looks of a source's images one after another."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._labels = source.labels if isinstance(source, FoldersSource) and source.classes else None
        self._first: dict[
            int, tuple[int, bool]
        ] = {}  # of each digest, the first sample, and if it is held out
        self._thumbnails: list[bytes] = []
        self._indices: list[int] = []
        self._held_out: list[bool] = []
        self._repeated: list[tuple[int, int]] = []
        self._across: list[tuple[int, ...]] = []

    def add(self, index: int, look: Look, *, is_held_out: bool) -> None:
        first, is_first_held_out = self._first.setdefault(look.digest, (index, is_held_out))
        if first != index:
            self._repeated.append((index, first))
            if is_held_out != is_first_held_out:  # the same pixels in another file
                self._across.append((index, first))
        elif len(self._indices) < MAX_COMPARED:
            self._indices.append(index)
            self._thumbnails.append(look.thumbnail)
            self._held_out.append(is_held_out)

    def report(self) -> ImageReport | None:
        """None, if there was no image."""
        if not self._first:
            return None
        held_out = np.array(self._held_out)
        near = find_near(self._thumbnails, held_out)
        like = [(self._indices[i], self._indices[near.before[i]]) for i in np.flatnonzero(near.before >= 0)]
        across = self._across + [(self._indices[i],) for i in np.flatnonzero(near.is_across & held_out)]
        labels = self._labels
        conflicting = [(a, b) for a, b in self._repeated if labels is not None and labels[a] != labels[b]]
        return ImageReport(
            len(self._first),
            self._fault(self._repeated),
            self._fault(conflicting),
            len(self._indices),
            self._fault(like),
            self._fault(across),
        )

    def _fault(self, found: list[Any]) -> Fault:
        names = [" = ".join(self.source.name(index) for index in pair) for pair in found[:NUM_NAMES]]
        return Fault(len(found), tuple(names))


def count_classes(source: Source) -> dict[str, int]:
    """The images of every class of class folders; {} of other sources."""
    if not isinstance(source, FoldersSource) or not source.classes:
        return {}
    return dict(zip(source.classes, np.bincount(source.labels).tolist(), strict=True))
