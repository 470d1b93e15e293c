"""How well a fitted model reads held-out images: its answers, its captions, and which class it finds likeliest."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ddit.errors import collect_warnings
from ddit.eval.captioning import CIDER_NOTE, cider, is_cider_zero
from ddit.eval.items import BASELINES, Figure, Item, mean
from ddit.eval.vqa import NUM_ANSWERS, most_common, normalize_answer, score_items, vqav2_score
from ddit.fit.held_out import Asked, Captioned, Clock, batches
from ddit.fit.labels import label_in
from ddit.fit.section import Section
from ddit.pipeline import Pipeline

MAX_OPENINGS = 12
"""First words of questions that have a row of their own; the rest share one."""
MAX_RANKED = 50
"""Classes that a held-out image is tried with, each with every mask of its caption."""
_BATCH = 64
_MIN_QUESTIONS = 10


class Answered(NamedTuple):
    """The figures, and what was asked with what the model said."""

    section: Section
    asked: list[Asked]
    answers: list[str]


def answer_score(text: str, answers: Sequence[str]) -> float:
    """VQAv2's accuracy where there are ten answers, else whether it is one of them.

    Both after VQAv2's normalisation (case, punctuation, articles, number words); where that leaves nothing of an answer
    (a letter, a sign), texts are compared in lower case.
    """
    if len(answers) >= NUM_ANSWERS:
        return vqav2_score(text, answers)
    return float(_plain(text) in {_plain(answer) for answer in answers})


def _plain(text: str) -> str:
    return normalize_answer(text) or " ".join(text.lower().split())


def answer_questions(pipeline: Pipeline, asked: Sequence[Asked], clock: Clock) -> Answered:
    """Accuracy of the answers in all and by the questions' first two words, as far as the time goes."""
    answers: list[str] = []
    unknown: set[str] = set()
    for rows in batches(len(asked), _BATCH):
        if answers and clock.left < 0:
            break
        part = asked[rows]
        questions = [
            pipeline.style.short_answer(one.question, unanswerable=one.unanswerable)
            if one.short
            else one.question
            for one in part
        ]
        with collect_warnings() as found:
            answers += pipeline.answer([one.image for one in part], questions, seed=rows.start, batch_size=32)
        unknown |= {warning.about for warning in found if isinstance(warning.about, str)}
    done = list(asked[: len(answers)])
    section = _score(done, answers)
    if unknown:
        line = f"{len(unknown):,} of the questions hold words that no training text has."
        section = replace(section, lines=(*section.lines, line))
    return Answered(section, done, answers)


def _score(asked: Sequence[Asked], answers: Sequence[str]) -> Section:
    if not asked:
        return Section("answers", "Answers", lines=("No held-out question: there is nothing to measure.",))
    openings = [" ".join(one.question.lower().split()[:2]) for one in asked]
    common = [name for name, count in Counter(openings).most_common(MAX_OPENINGS) if count >= _MIN_QUESTIONS]
    items = [
        Item(
            str(number),
            Path(),
            one.question,
            {
                "answer": most_common(one.answers),
                "answers": one.answers,
                "kind": f"{opening} ..." if opening in common else "other questions",
            },
        )
        for number, (one, opening) in enumerate(zip(asked, openings, strict=True))
    ]
    scored = score_items(items, answers, lambda item, text: answer_score(text, item.truth["answers"]))
    several = sum(len(one.answers) >= NUM_ANSWERS for one in asked)
    rule = "An answer is right if it is the reference, whatever the case, punctuation and articles"
    if several:
        rule += f"; the {several:,} questions with ten references are scored by VQAv2's rule"
    about = (
        "Beside it: what the most frequent right answer to all of these questions reaches, and that to those with the "
        "same first two words."
    )
    figures = [
        figure._replace(baselines={BASELINES[name]: value for name, value in figure.baselines.items()})
        for figure in scored.figures
    ]
    return Section("answers", "Answers", tuple(figures), (f"{rule}.", about))


def caption_images(
    pipeline: Pipeline, shown: Sequence[Captioned], classes: Sequence[str], clock: Clock
) -> Section:
    """CIDEr of the captions, and of class folders the share that names the right class alone."""
    captions: list[str] = []
    for rows in batches(len(shown), _BATCH):
        if captions and clock.left < 0:
            break
        with collect_warnings():
            captions += pipeline.caption([one.image for one in shown[rows]], seed=rows.start, batch_size=32)
    done = shown[: len(captions)]
    if not done:
        return Section("captions", "Captions", lines=("No held-out image with a caption.",))
    references = [one.captions for one in done]
    values = cider(captions, references)
    figures = [Figure("CIDEr", mean(values), len(done), is_share=False, limits=_mean_interval(values))]
    lines = [f"CIDEr with {mean(map(len, references)):.1f} references an image."]
    if is_cider_zero(references):
        lines.append(f"{CIDER_NOTE}.")
    labelled = [
        (one.label, label_in(text, classes)) for one, text in zip(done, captions, strict=True) if one.label
    ]
    if labelled:
        right = [float(label == found) for label, found in labelled]
        most = max(Counter(label for label, _ in labelled).values()) / len(labelled)
        figures.insert(
            0, Figure("right class in the caption", mean(right), len(right), {"commonest class": most})
        )
        lines.insert(0, "A caption is right if it names the image's class and no other.")
    return Section("captions", "Captions", tuple(figures), tuple(lines))


def _mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The normal 95 % interval of a mean."""
    if len(values) < 2:
        return None
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def rank_classes(
    pipeline: Pipeline, shown: Sequence[Captioned], texts: dict[str, str], clock: Clock
) -> Section | None:
    """The share of images whose class's caption the model finds likeliest; None where there are no classes.

    texts: a caption of each class.
    """
    labelled = [one for one in shown if one.label in texts]
    if not labelled or len(texts) < 2:
        return None
    if len(texts) > MAX_RANKED:
        why = f"Left out: {len(texts)} classes, and an image would be tried with all of them."
        return Section("classes", "Reading the class", lines=(why,))
    names, captions = list(texts), list(texts.values())
    right: list[float] = []
    size = 16
    for rows in batches(len(labelled), size):
        if right and clock.left < 0:
            break
        part = labelled[rows]
        with collect_warnings():
            choices = pipeline.choose([one.image for one in part], captions, batch_size=_BATCH)
        right += [float(names[choice.index] == one.label) for choice, one in zip(choices, part, strict=True)]
    most = max(Counter(one.label for one in labelled[: len(right)]).values()) / len(right)
    example = captions[0]
    line = (
        f"Every image with {len(texts)} captions like {example!r}: the likeliest (`ddit rank`) is its choice."
    )
    figure = Figure(
        "likeliest caption is the right class's", mean(right), len(right), {"commonest class": most}
    )
    return Section("classes", "Reading the class", (figure,), (line,))
