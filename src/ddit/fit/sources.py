"""The sources of a fit: guessed from their paths, divided into what is trained on and what is not, read and counted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ddit.config.data import FoldersData, LlavaData, QuestionsData, SourceConfig, TextData
from ddit.data.check import Fit, Report, check_source
from ddit.data.sources import open_source
from ddit.data.sources.finding import find_file
from ddit.data.sources.guess import Hints, guess_source
from ddit.fit.plan import Findings, Request, SourceFindings

Role = Literal["images", "questions", "text"]

HELD_OUT_SHARE = 0.05
MOST_READ = 20_000
"""Samples of a source that are read before training; more are spread evenly."""
FEWEST_IMAGES = 16
TEXT_ALONE_SHARE = 0.2
"""Of the texts that are trained on, where there is text alone."""
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Named:
    """A source with the path that it was given by."""

    name: str
    role: Role
    config: SourceConfig


def find_sources(request: Request) -> list[Named]:
    """All sources of a request, whole.

    Raises:
        ValueError: in one line, if the kind of one cannot be told, or the options do not fit them.
    """
    options = request.options
    if len(options.annotations) not in (0, len(options.questions)):
        raise ValueError(
            f"there are {len(options.questions)} --questions and {len(options.annotations)} --annotations: give one "
            "for each, in the same order"
        )
    found = [_named(path, "images", options.images) for path in request.sources]
    answers = options.annotations or (None,) * len(options.questions)
    for path, answer in zip(options.questions, answers, strict=True):
        found.append(_named(path, "questions", options.images, answer))
    for path in options.text_alone:
        config = guess_source(path)
        if not isinstance(config, TextData):
            raise ValueError(f"--text-alone takes text without images, and '{path}' is of kind {config.kind}")
        found.append(Named(path, "text", config))
    if options.templates is not None:
        found = _with_templates(found, options.templates)
    return _weighted(found)


def _named(path: str, role: Role, images: str | None, annotations: str | None = None) -> Named:
    try:
        config = guess_source(path, Hints(annotations=annotations))
    except ValueError:
        if images is None:
            raise
        config = guess_source(path, Hints(images=images, annotations=annotations))
    if images is not None and hasattr(config, "images"):
        config = replace(config, images=images)
    if isinstance(config, TextData):
        role = "text"
    elif isinstance(config, QuestionsData | LlavaData):
        role = "questions"
    return Named(path, role, config)


def _with_templates(found: list[Named], path: str) -> list[Named]:
    lines = find_file(path).read_text(encoding="utf-8-sig").splitlines()
    templates = tuple(line.strip() for line in lines if line.strip())
    changed = [
        replace(source, config=replace(source.config, templates=templates))
        if isinstance(source.config, FoldersData) and source.config.captions == "folders"
        else source
        for source in found
    ]
    if changed == found:
        raise ValueError("--templates makes captions of class folders, and no SOURCE is one")
    return changed


def _weighted(found: list[Named]) -> list[Named]:
    """Text alone gets its share, the others what they have."""
    others = sum(source.config.weight for source in found if source.role != "text")
    texts = sum(source.role == "text" for source in found)
    weight = others * TEXT_ALONE_SHARE / (1 - TEXT_ALONE_SHARE) / max(texts, 1)
    return [
        replace(source, config=replace(source.config, weight=weight))
        if source.role == "text" and others
        else source
        for source in found
    ]


def divide(found: Sequence[Named], request: Request) -> tuple[list[Named], list[Named], int, int]:
    """What is trained on, what is held out, and the numbers of distinct images: of all, and of those held out.

    A share is one of the distinct images, of all sources together: at least one is held out, and one is not.

    Raises:
        ValueError: in one line, for a share that is none, too few images, or a source that cannot be opened.
    """
    given = request.options.held_out
    share = HELD_OUT_SHARE if not given else _share(given)
    seen = [open_source(source.config).digests() for source in found if source.role != "text"]
    distinct = np.unique(np.concatenate(seen)) if seen else np.zeros(0, np.uint64)
    if share is None:
        judged = [_named(path, "images", request.options.images) for path in given]
        others = [open_source(source.config).digests() for source in judged if source.role != "text"]
        num = len(np.unique(np.concatenate(others))) if others else 0
        return list(found), judged, len(distinct) + num, num
    if len(distinct) < FEWEST_IMAGES:
        raise ValueError(
            f"there are {len(distinct)} images, and a model needs {FEWEST_IMAGES} at least (thousands are usual): "
            "give more sources"
        )
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    exact = (int(distinct[count - 1]) + int(distinct[count])) / 2 / 2**64
    trained, judged = [], []
    for source in found:
        own = HELD_OUT_SHARE if source.role == "text" else exact
        parts = [
            replace(source, config=replace(source.config, part=part, held_out_share=own))
            for part in ("train", "held_out")
        ]
        for part, listed in zip(parts, (trained, judged), strict=True):
            if _has_samples(part.config):
                listed.append(part)
    return trained, judged, len(distinct), count


def _share(given: Sequence[str]) -> float | None:
    """The share that --held-out names, .1 or 10%; None where it names sources."""
    number, percent, _ = given[0].partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        return None
    if len(given) > 1 or not 0 < share < 1:
        raise ValueError(f"--held-out takes a share above 0 and below 1, or sources, got {' '.join(given)}")
    return share


def _has_samples(config: SourceConfig) -> bool:
    try:
        return len(open_source(config)) > 0
    except ValueError:  # none of its samples is in the part
        return False


def read_sources(
    trained: Sequence[Named],
    judged: Sequence[Named],
    num_images: int,
    num_held_out: int,
    *,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Reads the samples of every source once, up to `MOST_READ` of each.

    Raises:
        ValueError: in one line, if nothing can be used.
    """
    start = time.monotonic()
    is_divided = any(source.config.part != "all" for source in trained)
    found = tuple(_read(source, on_progress) for source in trained)
    others = () if is_divided else tuple(_read(source, on_progress) for source in judged)
    for source in found:
        if source.num_corrupt == source.num_read:
            causes = ", ".join(f"{cause}: {count}" for cause, count in source.corrupt.items())
            raise ValueError(f"no sample of '{source.name}' can be used ({causes})")
    findings = Findings(found, others, num_images, num_held_out, seconds=time.monotonic() - start)
    if not findings.num_captions and not findings.num_questions:
        raise ValueError("no image has a caption or a question: there is nothing to learn")
    return findings


def _read(source: Named, on_progress: OnProgress | None) -> SourceFindings:
    workers = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8
    )
    report = check_source(
        source.config,
        limit=MOST_READ,
        num_workers=workers if workers > 1 else 0,
        fit=Fit(128),
        on_progress=on_progress,
    )
    return _findings(source, report)


def _findings(source: Named, report: Report) -> SourceFindings:
    images = report.images
    return SourceFindings(
        name=source.name,
        role=source.role,
        num_samples=report.num_samples,
        num_read=report.num_checked,
        corrupt={cause: fault.num for cause, fault in report.corrupt.items()},
        num_images=images.num_distinct if images else 0,
        num_repeated=images.repeated.num if images else 0,
        num_near=images.near.num if images else 0,
        num_across=images.across.num if images else 0,
        num_conflicting=images.conflicting.num if images else 0,
        num_captions=report.num_captions,
        num_questions=report.num_questions,
        width=_plain(report.width),
        height=_plain(report.height),
        aspect=_plain(report.aspect),
        classes=report.classes,
        num_held_out=report.num_held_out or 0,
        lines=tuple(report.lines()),
    )


def _plain(spread: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    if spread is None:
        return None
    least, median, greatest = spread
    return float(least), float(median), float(greatest)
