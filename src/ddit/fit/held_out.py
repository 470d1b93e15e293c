"""What a fit's report is made of: held-out images with their texts, and a part of those that were trained on."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddit.config.data import SourceConfig, TextData
from ddit.data.parts import PartSource
from ddit.data.samples import CorruptSample, Sample, Source, read_sample
from ddit.data.sources import FoldersSource, QuestionsSource, open_source
from ddit.images import fit_image

_DRAWS = 8  # readings of a sample, which find the captions and questions that it draws from
_MAX_REFERENCES = 10
_LEAST = 64
"""Samples that are read however little time there is."""


class Captioned(NamedTuple):
    """A held-out image, fitted, with its captions; `label`: its class, of class folders."""

    image: Image.Image
    captions: tuple[str, ...]
    label: str | None = None


class Asked(NamedTuple):
    """A question about a held-out image, fitted, with the answers that count as right.

    short, unanswerable: as in `data.samples.Sample`.
    """

    image: Image.Image
    question: str
    answers: tuple[str, ...]
    short: bool = False
    unanswerable: bool = False


class Trained(NamedTuple):
    """Images that were trained on, (n, 3, H, W) uint8, each with a caption and, of class folders, its class."""

    pixels: Tensor
    captions: list[str]
    labels: list[str | None]


@dataclass(frozen=True)
class Clock:
    """The time that is left of a budget."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def part(self, share: float) -> Clock:
        """A share of what is left."""
        return Clock(max(self.left, 0.0) * share)


def has_captions(cfg: SourceConfig, source: Source) -> bool:
    """Whether images can be generated from its texts, as the first few samples show."""
    if isinstance(cfg, TextData):
        return False
    return any(_caption(source, index, random.Random(0)) for index in range(min(len(source), 10)))


def read_captioned(sources: Sequence[SourceConfig], size: int, count: int, clock: Clock) -> list[Captioned]:
    """At most `count` images of all sources, drawn at random (always the same), as far as the time goes.

    Samples that show one image are one, with the captions of all.
    """
    opened = [(cfg, open_source(cfg)) for cfg in sources]
    opened = [(cfg, source) for cfg, source in opened if has_captions(cfg, source)]
    groups: list[tuple[Source, np.ndarray]] = []
    for _, source in opened:
        order = np.argsort(digests := source.digests(), kind="stable")
        groups += [(source, rows) for rows in np.split(order, np.flatnonzero(np.diff(digests[order])) + 1)]
    found: list[Captioned] = []
    for source, rows in random.Random(0).sample(groups, min(count, len(groups))):
        if len(found) >= _LEAST and clock.left < 0:
            break
        image = _image(source, int(rows[0]), size)
        captions = _references(source, rows)
        if image is not None and captions:
            found.append(Captioned(image, captions, label_of(source, int(rows[0]))))
    return found


def read_asked(sources: Sequence[SourceConfig], size: int, count: int, clock: Clock) -> list[Asked]:
    """At most `count` questions of all sources, as `read_captioned`; of a conversation, the first."""
    opened = [open_source(cfg) for cfg in sources if not isinstance(cfg, TextData)]
    asking = [source for source in opened if _asks(source)]
    found: list[Asked] = []
    for source, index in _drawn(asking, 20 * count):
        if len(found) == count or (len(found) >= _LEAST and clock.left < 0):
            break
        sample = _with_question(source, index)
        if sample is None or not isinstance(sample.image, Image.Image):
            continue
        question, answer = sample.turns[0]
        assert question is not None
        image = fit_image(sample.image, size, size)
        answers = _answers(source, index) or (answer,)
        found.append(Asked(image, question, answers, sample.short_answers, sample.unanswerable))
    return found


def read_trained(sources: Sequence[SourceConfig], size: int, side: int, count: int, clock: Clock) -> Trained:
    """At most `count` images with captions, fitted to `size` as the model sees them and then shown at `side`."""
    opened = [(cfg, open_source(cfg)) for cfg in sources]
    captioned = [source for cfg, source in opened if has_captions(cfg, source)]
    rows: list[Tensor] = []
    captions: list[str] = []
    labels: list[str | None] = []
    for source, index in _drawn(captioned, count):
        if len(rows) >= _LEAST and clock.left < 0:
            break
        caption, image = _caption(source, index, random.Random(index)), _image(source, index, size)
        if caption and image is not None:
            rows.append(to_pixels([image], side)[0])
            captions.append(caption)
            labels.append(label_of(source, index))
    return Trained(
        torch.stack(rows) if rows else torch.empty(0, 3, side, side, dtype=torch.uint8), captions, labels
    )


def to_pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """Square images as (n, 3, side, side) uint8."""
    shown = [np.asarray(fit_image(image.convert("RGB"), side, side)) for image in images]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous()


def class_names(source: Source) -> list[str]:
    """The classes of class folders, in order; [] of other sources."""
    whole = source.source if isinstance(source, PartSource) else source
    return whole.classes if isinstance(whole, FoldersSource) else []


def label_of(source: Source, index: int) -> str | None:
    """The class of an image of class folders."""
    names = class_names(source)
    whole, index = _whole(source, index)
    return names[whole.labels[index]] if names and isinstance(whole, FoldersSource) else None


def _whole(source: Source, index: int) -> tuple[Source, int]:
    return (source.source, int(source.indices[index])) if isinstance(source, PartSource) else (source, index)


def _drawn(sources: Sequence[Source], count: int) -> Iterator[tuple[Source, int]]:
    """At most `count` samples of all sources, in a random order that is always the same."""
    ends = list(itertools.accumulate(map(len, sources)))
    total = ends[-1] if ends else 0
    for place in random.Random(0).sample(range(total), min(count, total)):
        number = bisect.bisect_right(ends, place)
        yield sources[number], place - ends[number] + len(sources[number])


def _image(source: Source, index: int, size: int) -> Image.Image | None:
    for i2t in (False, True):
        with contextlib.suppress(CorruptSample):
            image = read_sample(source, index, random.Random(0), i2t=i2t).image
            return fit_image(image, size, size) if isinstance(image, Image.Image) else None
    return None


def _caption(source: Source, index: int, rng: random.Random) -> str | None:
    with contextlib.suppress(CorruptSample):
        return read_sample(source, index, rng, i2t=False, with_image=False).caption
    return None


def _references(source: Source, rows: np.ndarray) -> tuple[str, ...]:
    """The captions that some samples of one image draw from."""
    drawn = (
        _caption(source, int(index), random.Random(f"{index}/{draw}"))
        for index in rows[:_MAX_REFERENCES]
        for draw in range(_DRAWS)
    )
    return tuple(dict.fromkeys(caption for caption in drawn if caption))[:_MAX_REFERENCES]


def _asks(source: Source) -> bool:
    """Whether there are questions, as the first few samples show."""
    return any(_draw_with_question(source, index) is not None for index in range(min(len(source), 10)))


def _draw_with_question(source: Source, index: int) -> int | None:
    """Which reading of a sample begins with a question; some samples draw between caption and question."""
    for draw in range(_DRAWS):
        with contextlib.suppress(CorruptSample):
            rng = random.Random(f"{index}/{draw}")
            turns = read_sample(source, index, rng, i2t=True, with_image=False).turns
            if turns and turns[0].question is not None:
                return draw
    return None


def _with_question(source: Source, index: int) -> Sample | None:
    draw = _draw_with_question(source, index)
    with contextlib.suppress(CorruptSample):
        if draw is not None:
            return read_sample(source, index, random.Random(f"{index}/{draw}"), i2t=True)
    return None


def _answers(source: Source, index: int) -> tuple[str, ...]:
    """All the people's answers, where the source has several."""
    source, index = _whole(source, index)
    return tuple(source.answers(index)) if isinstance(source, QuestionsSource) else ()


def batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
