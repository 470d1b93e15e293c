"""What the small networks are trained on: images and texts of any sources, and a part of each set aside."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddit.config.data import SourceConfig
from ddit.data.mixture import Pattern, Weighted
from ddit.data.sampler import sample_rng
from ddit.data.samples import CorruptSample, Sample, Source, read_sample
from ddit.data.sources import open_source
from ddit.model.encoders import TextCodec
from ddit.prompts import PromptStyle
from ddit.train.batch import caption_ids, conversation_ids, fit_sample_image

_ATTEMPTS = 100


def open_parts(
    sources: Sequence[SourceConfig], held_out: Sequence[SourceConfig]
) -> tuple[list[Weighted], list[Weighted]]:
    """The sources to train on, and those to be judged by: `held_out`, or the held-out part of `sources`.

    Raises:
        ValueError: in one line, for a source that cannot be read, or that is too small to divide.
    """
    if held_out:
        return _open(sources), _open(held_out)
    trained, judged = ([replace(cfg, part=part) for cfg in sources] for part in ("train", "held_out"))
    return _open(trained), _open(judged)


def _open(sources: Sequence[SourceConfig]) -> list[Weighted]:
    return [(open_source(cfg), cfg.weight) for cfg in sources]


# --- images ---


def read_pixels(
    sources: Sequence[Weighted], count: int, *, image_size: int, crop_size: int | None = None, seed: int = 0
) -> Tensor:
    """At most `count` images, resized and cut to a square of `image_size`, uint8 (n, 3, H, W), channels last.

    Each source gives its share by weight, or all that it has; corrupt samples and those without an image are left out.
    crop_size: side of a part of each image, drawn by `seed`, which is all that is kept.

    Raises:
        ValueError: in one line, if no image can be read.
    """
    rng, rows, reason = random.Random(seed), [], "no sample has an image"
    for source, indices in _spread(sources, count, rng):
        for index in indices:
            try:
                fitted = fit_sample_image(_with_image(source, index).image, (image_size, image_size))
            except CorruptSample as error:
                reason = str(error)
                continue
            if isinstance(fitted, Tensor):
                rows.append(fitted if crop_size is None else _crop(fitted, crop_size, rng))
    if not rows:
        raise ValueError(f"no image can be read: {reason}")
    return torch.stack(rows).contiguous(memory_format=torch.channels_last)  # convolutions are quicker in it


def _crop(pixels: Tensor, size: int, rng: random.Random) -> Tensor:
    top, left = (rng.randrange(side - size + 1) for side in pixels.shape[1:])
    return pixels[:, top : top + size, left : left + size].clone()


def _with_image(source: Source, index: int) -> Sample:
    """The sample in whichever way it can be used: some have no caption, some no text to read."""
    try:
        return read_sample(source, index, random.Random(0), i2t=False)
    except CorruptSample:
        return read_sample(source, index, random.Random(0), i2t=True)


def _spread(
    sources: Sequence[Weighted], count: int, rng: random.Random
) -> Iterator[tuple[Source, Sequence[int]]]:
    """At most `count` indices in all: of each source its share by weight, drawn by `rng`, or all that it has."""
    total = sum(weight for _, weight in sources)
    for source, weight in sources:
        share = max(1, round(count * weight / total))
        every = range(len(source))
        yield source, every if len(every) <= share else sorted(rng.sample(every, share))


# --- texts ---


class Texts:
    """The texts of sources, as prompts and as what a model writes.

    Raises:
        ValueError: in one line, if a source has no text that can be read.
    """

    def __init__(self, sources: Sequence[Weighted], style: PromptStyle) -> None:
        self.sources, self.style = list(sources), style
        self.with_captions = [(source, weight) for source, weight in sources if _has_captions(source)]

    def iterate(self, count: int, *, seed: int = 0) -> Iterator[str]:
        """The texts of at most `count` samples in the words of their templates."""
        rng = random.Random(seed)
        for source, indices in _spread(self.sources, count, rng):
            for index in indices:
                own = random.Random(index)
                with contextlib.suppress(CorruptSample):
                    caption = read_sample(source, index, own, i2t=False, with_image=False).caption
                    yield self.style.given(caption or "")
                with contextlib.suppress(CorruptSample):
                    for question, answer in read_sample(source, index, own, i2t=True, with_image=False).turns:
                        asked = self.style.caption_prefix
                        if question is not None:
                            asked = self.style.question_template.replace(
                                "{question}", self.style.given(question)
                            )
                        yield f"{asked.rstrip()} {answer}"

    def batch(self, codec: TextCodec, length: int, *, seed: int, step: int, size: int) -> Tensor:
        """Ids (size, length): a third prompts, if there are captions, then conversations, source by source."""
        rngs = [sample_rng(seed, step, position) for position in range(size)]
        prompts = rngs[::3] if self.with_captions else []
        talks = [rng for position, rng in enumerate(rngs) if position % 3 or not self.with_captions]
        rows = self._rows(
            self.with_captions, prompts, step, lambda s, i, rng: self._prompt(codec, s, i, rng, length)
        )
        rows += self._rows(self.sources, talks, step, lambda s, i, rng: self._talk(codec, s, i, rng, length))
        return torch.stack(rows)

    def _rows(
        self,
        sources: Sequence[Weighted],
        rngs: list[random.Random],
        step: int,
        make: Callable[[Source, int, random.Random], Tensor],
    ) -> list[Tensor]:
        """A row for each generator, in the order of their sources."""
        if not rngs:
            return []
        choices = _choices([weight for _, weight in sources], step * len(rngs), len(rngs))
        pairs = sorted(zip(choices, rngs, strict=True), key=lambda pair: pair[0])
        return [_usable(sources[choice][0], rng, make) for choice, rng in pairs]

    def _prompt(
        self, codec: TextCodec, source: Source, index: int, rng: random.Random, length: int
    ) -> Tensor:
        sample = read_sample(source, index, rng, i2t=False, with_image=False)
        return caption_ids(codec, sample, length, self.style)

    def _talk(self, codec: TextCodec, source: Source, index: int, rng: random.Random, length: int) -> Tensor:
        sample = read_sample(source, index, rng, i2t=True, with_image=False)
        return conversation_ids(codec, sample, length, self.style)[0]


def _choices(weights: list[float], start: int, count: int) -> list[int]:
    """The sources of samples `start` to `start + count`: in turn, or by weight."""
    if len(set(weights)) == 1:
        return [number % len(weights) for number in range(start, start + count)]
    pattern = Pattern(weights, seed=0)
    return [pattern.locate(number)[0] for number in range(start, start + count)]


def _usable(
    source: Source, rng: random.Random, make: Callable[[Source, int, random.Random], Tensor]
) -> Tensor:
    """A row of a sample drawn by `rng`; of the next one where that is corrupt."""
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            return make(source, rng.randrange(len(source)), rng)
        except CorruptSample as error:
            reason = str(error)
    raise ValueError(f"none of {_ATTEMPTS} samples has a text that can be used: {reason}")


def _has_captions(source: Source) -> bool:
    """Whether any of a few samples has a caption: sources of questions have none."""
    rng = random.Random(0)
    for _ in range(10):
        with contextlib.suppress(CorruptSample):
            index = rng.randrange(len(source))
            if read_sample(source, index, rng, i2t=False, with_image=False).caption:
                return True
    return False
