"""Reads every sample of a source once, to find what training could not use: `ddit data check`."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddit.config.data import DataConfig, SourceConfig
from ddit.data.duplicates import Look, look_at
from ddit.data.parts import is_held_out
from ddit.data.repeats import NUM_NAMES, Fault, ImageCounter, ImageReport, count_classes
from ddit.data.samples import CorruptSample, LeftOut, Sample, Source, read_sample
from ddit.data.sources import find_left_out, open_source
from ddit.errors import Failure, WorkerError

_NUM_CLASSES = 20  # that are named in the report for people
_CHUNK = 64
_WORTH_PROCESSES = 2000  # samples; starting processes takes as long as reading these


class Spread(NamedTuple):
    """Least, median and greatest."""

    least: float
    median: float
    greatest: float


CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Fit:
    """Which texts are too long for a run: those of more than `length` tokens, with an end-of-text token for each.

    count: of a text's tokens, as the run's tokenizer makes them; None counts its words, of which each is a token at
        least. It goes to other processes.
    """

    length: int
    count: CountTokens | None = None

    def is_cut(self, sample: Sample) -> bool:
        """Whether the texts are longer than a run keeps. Raises `UnicodeEncodeError` for what is no text."""
        count = count_words if self.count is None else self.count
        texts = [text for turn in sample.turns for text in turn if text is not None]
        "".join(texts).encode()
        return sum(map(count, texts)) + len(sample.turns) > self.length


DEFAULT_FIT = Fit(DataConfig().t2i_length)


def count_words(text: str) -> int:
    return len(text.split())


@dataclass(frozen=True)
class Report:
    """What was found; a spread is None where there is nothing to measure.

    `width`, `height`: pixels, `aspect`: width by height, all of images that could be decoded. `words`: of a caption.
    `num_turns`: of a sample. `num_without_image`: conversations that are text alone. `left_out`: what the source holds
    and no sample uses, by cause. `num_cut`: samples whose text is too long for a run's `length` tokens and loses its
    end; by the run's tokenizer if `is_exact`, else at least so many. `num_captions`, `num_questions`: of one reading;
    of a source that draws, another has other ones. `images`, `classes`, `num_held_out`: see `ImageReport`, and
    `FoldersSource`; the part that is held out is None if the source is not split.
    """

    num_samples: int
    num_checked: int
    corrupt: dict[str, Fault]
    num_without_image: int
    width: Spread | None
    height: Spread | None
    aspect: Spread | None
    words: Spread | None
    num_turns: Spread | None
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    length: int = 0
    num_cut: int = 0
    is_exact: bool = False
    num_captions: int = 0
    num_questions: int = 0
    images: ImageReport | None = None
    classes: dict[str, int] = field(default_factory=dict)
    num_held_out: int | None = None

    @property
    def cut_share(self) -> float:
        """Of the usable samples."""
        return self.num_cut / max(self.num_checked - self.num_corrupt, 1)

    @property
    def num_corrupt(self) -> int:
        return sum(corrupt.num for corrupt in self.corrupt.values())

    @property
    def corrupt_share(self) -> float:
        return self.num_corrupt / max(self.num_checked, 1)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        for key, value in values.items():
            if isinstance(value, Spread):
                values[key] = value._asdict()
        values["corrupt"] = {cause: corrupt._asdict() for cause, corrupt in self.corrupt.items()}
        if self.images is not None:
            values["images"] = self.images.to_json()
        values["left_out"] = {cause: left_out._asdict() for cause, left_out in self.left_out.items()}
        return {**values, "corrupt_share": self.corrupt_share, "cut_share": self.cut_share}

    def lines(self) -> Iterator[str]:
        """The report for people."""
        checked = "" if self.num_checked == self.num_samples else f", {self.num_checked:,} of them read"
        yield f"samples      {self.num_samples:,}{checked}"
        usable = self.num_checked - self.num_corrupt
        yield f"usable       {usable:,} ({100 * (1 - self.corrupt_share):.2f} %)"
        yield f"corrupt      {self.num_corrupt:,}"
        for cause, corrupt in self.corrupt.items():
            yield f"  {corrupt.num:>8,}  {cause}: {', '.join(corrupt.first)}"
        if self.left_out:
            yield f"left out     {sum(left_out.num for left_out in self.left_out.values()):,}"
        for cause, left_out in self.left_out.items():
            yield f"  {left_out.num:>8,}  {cause}: {', '.join(left_out.first)}"
        if self.num_cut:
            least = "" if self.is_exact else "at least "
            yield f"cut texts    {least}{self.num_cut:,} ({100 * self.cut_share:.2f} %): more than {self.length} tokens"
        if self.num_captions or self.num_questions:
            yield f"texts        {self.num_captions:,} captions, {self.num_questions:,} questions"
        if self.num_without_image:
            yield f"text only    {self.num_without_image:,}"
        if self.images is not None:
            yield from self.images.lines(is_split=self.num_held_out is not None)
        if self.classes:
            yield f"classes      {len(self.classes)}: {_most(self.classes)}"
        if self.num_held_out is not None:
            share = 100 * self.num_held_out / max(self.num_checked, 1)
            yield f"held out     {self.num_held_out:,} ({share:.2f} %)"
        rows = {
            "width": self.width,
            "height": self.height,
            "width/height": self.aspect,
            "words": self.words,
            "turns": self.num_turns,
        }
        for name, spread in rows.items():
            if spread is not None:
                yield f"{name:<12} {spread.least:.4g} to {spread.greatest:.4g}, median {spread.median:.4g}"


def _most(classes: dict[str, int]) -> str:
    """The largest and the smallest classes with their numbers."""
    ordered = [f"{name} {num:,}" for name, num in sorted(classes.items(), key=lambda item: -item[1])]
    if len(ordered) <= _NUM_CLASSES:
        return ", ".join(ordered)
    half = _NUM_CLASSES // 2
    return ", ".join([*ordered[:half], "...", *ordered[-half:]])


class _Found(NamedTuple):
    """One sample: why it is corrupt and its name; or its image's size and look, words of its captions, and turns."""

    cause: str | None
    name: str
    size: tuple[int, int] | None
    words: tuple[int, ...]
    num_turns: int
    is_cut: bool = False
    num_questions: int = 0
    look: Look | None = None


def check_source(
    cfg: SourceConfig,
    *,
    limit: int | None = None,
    num_workers: int = 0,
    fit: Fit = DEFAULT_FIT,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads every sample once (or `limit` of them, evenly spread) with `num_workers` processes (0: in this one).

    Of a source that is one part of two, both are read, and the report says how they are divided.
    `on_progress(done, total)` is called as samples are read. Raises `ValueError` if the source cannot be opened.
    """
    is_split, share, cfg = cfg.part != "all", cfg.held_out_share, replace(cfg, part="all")
    source = open_source(cfg)
    num_samples = len(source)
    if num_samples == 0:
        unused = ", ".join(f"{cause}: {left_out.num}" for cause, left_out in find_left_out(source).items())
        raise ValueError("the source holds no sample" + (f"; left out are {unused}" if unused else ""))
    num_checked = num_samples if limit is None else min(limit, num_samples)
    indices = (np.arange(num_checked) * num_samples // num_checked).tolist()
    held_out = is_held_out(source.digests(), share)[indices] if is_split else np.zeros(num_checked, bool)
    found: list[_Found] = []
    images = ImageCounter(source)
    if num_workers == 0 or num_checked < _WORTH_PROCESSES:
        parts: Iterable[list[_Found]] = ([_read_sample(source, index, fit)] for index in indices)
    else:
        parts = _in_processes(cfg, indices, num_workers, fit)
    for part in parts:
        for item in part:
            if item.look is not None:
                images.add(indices[len(found)], item.look, is_held_out=bool(held_out[len(found)]))
            found.append(item._replace(look=None))
        if on_progress is not None:
            on_progress(len(found), num_checked)
    return replace(
        _report(num_samples, found, fit),
        left_out=find_left_out(source),
        images=images.report(),
        classes=count_classes(source),
        num_held_out=int(held_out.sum()) if is_split else None,
    )


def _in_processes(
    cfg: SourceConfig, indices: list[int], num_workers: int, fit: Fit
) -> Iterator[list[_Found]]:
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    context = multiprocessing.get_context("spawn")  # forking a process that has threads may lock up
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_workers, context) as pool:
        try:
            for part in pool.map(partial(_read_chunk, cfg, fit=fit), chunks):
                if isinstance(part, Failure):
                    raise part.error()
                yield part
        except BrokenProcessPool:
            raise WorkerError(
                "a process that reads the data has died; if memory ran out, use fewer workers"
            ) from None
        except BaseException:  # also of whoever takes these parts: what is still being read is not waited for
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise


@lru_cache(1)
def _open_here(cfg: SourceConfig) -> Source:
    """In a worker process, which asks for the same source again and again."""
    return open_source(cfg)


def _read_chunk(cfg: SourceConfig, indices: list[int], *, fit: Fit) -> list[_Found] | Failure:
    """What is found in some samples, or whatever was raised: not every error can be sent to another process."""
    try:
        source = _open_here(cfg)
        return [_read_sample(source, index, fit) for index in indices]
    except BaseException as error:
        return Failure.of(error)


def _read_sample(source: Source, index: int, fit: Fit) -> _Found:
    try:
        sample = read_sample(source, index, random.Random(index), i2t=True)
    except CorruptSample as error:
        return _Found(error.cause, source.name(index), None, (), 0)
    image = sample.image if isinstance(sample.image, Image.Image) else None
    try:
        is_cut = fit.is_cut(sample)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return _Found("unusable text", source.name(index), None, (), 0)
    words = tuple(count_words(turn.answer) for turn in sample.turns if turn.question is None)
    num_questions = sum(turn.question is not None for turn in sample.turns)
    size, look = (None, None) if image is None else (image.size, look_at(image))
    return _Found(None, "", size, words, len(sample.turns), is_cut, num_questions, look)


def _report(num_samples: int, found: list[_Found], fit: Fit) -> Report:
    counts = Counter(item.cause for item in found if item.cause is not None)
    corrupt = {
        cause: Fault(num, tuple(item.name for item in found if item.cause == cause)[:NUM_NAMES])
        for cause, num in counts.most_common()
    }
    whole = [item for item in found if item.cause is None]
    sizes = [item.size for item in whole if item.size is not None]
    return Report(
        num_samples,
        len(found),
        corrupt,
        num_without_image=len(whole) - len(sizes),
        width=_spread([width for width, _ in sizes]),
        height=_spread([height for _, height in sizes]),
        aspect=_spread([width / height for width, height in sizes]),
        words=_spread([count for item in whole for count in item.words]),
        num_turns=_spread([item.num_turns for item in whole]),
        length=fit.length,
        num_cut=sum(item.is_cut for item in whole),
        is_exact=fit.count is not None,
        num_captions=sum(len(item.words) for item in whole if item.size is not None),
        num_questions=sum(item.num_questions for item in whole),
    )


def _spread(values: list[Any]) -> Spread | None:
    return Spread(min(values), float(np.median(values)), max(values)) if values else None
