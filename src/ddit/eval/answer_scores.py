"""Scores of images by how likely a model finds the right answers: Soft-TIFA of GenEval 2, and VQAScore.

Soft-TIFA (Kamath et al. 2025, github.com/facebookresearch/GenEval2) asks a question about each part of a prompt; an
image's score is the mean of the answers' probabilities, arithmetic (AM) or geometric (GM). VQAScore (Lin et al. 2024)
asks whether the image shows the prompt. Theirs is the probability of an answer's first token; ours that of the whole
answer, a bound of which `Pipeline.score` gives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddit.eval.items import Figure, mean, read_json_lines, require_list, require_text
from ddit.files import list_names
from ddit.inference.batching import StepCallback
from ddit.pipeline import Pipeline

_DIGITS = dict(
    zip(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        range(1, 11),
        strict=True,
    )
)
SHOWS = 'Does this image show "{prompt}"?'
YES = ("Yes", "yes")


class Atom(NamedTuple):
    """A question about a part of a prompt, its right answer, and the skill that it tests."""

    question: str
    answer: str
    skill: str

    @property
    def answers(self) -> tuple[str, ...]:
        """The ways to write the answer that count: a number as a word or in digits, capital or not."""
        if self.question.startswith("How many"):
            digits = [str(_DIGITS[self.answer])] if self.answer in _DIGITS else []
            return (self.answer, self.answer.capitalize(), *digits)
        return YES


class AtomPrompt(NamedTuple):
    """A prompt and the questions about its parts."""

    prompt: str
    atoms: list[Atom]


def read_atoms(path: Path) -> list[AtomPrompt]:
    """The prompts of GenEval 2's `geneval2_data.jsonl`; ValueError if it has another form."""
    prompts = []
    for entry in read_json_lines(path):
        pairs, skills = require_list(entry, "vqa_list", path), require_list(entry, "skills", path)
        if len(pairs) != len(skills) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
            for pair in pairs
        ):
            raise ValueError(
                f"'{path}': vqa_list must hold [question, answer], one for each of skills, got {pairs!r:.80}"
            )
        atoms = [Atom(pair[0], pair[1], str(skill)) for pair, skill in zip(pairs, skills, strict=True)]
        prompts.append(AtomPrompt(require_text(entry, "prompt", path), atoms))
    return prompts


def read_images(path: Path) -> dict[str, list[Path]]:
    """The images of each prompt: of a JSON file {prompt: image}, or of a folder in GenEval's layout.

    Raises:
        ValueError: in one line, if it is neither, or an image is missing.
    """
    found: dict[str, list[Path]] = {}
    if path.is_dir():
        for part in sorted(one for one in path.iterdir() if one.name.isdigit()):
            text = require_text(read_json_lines(part / "metadata.jsonl")[0], "prompt", part)
            found.setdefault(text, []).extend(sorted((part / "samples").glob("*.png")))
    else:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"'{path}' is neither a folder nor a JSON file of images: {error}") from None
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError(f"'{path}' should hold {{prompt: image}}")
        found = {text: [path.parent / value] for text, value in values.items()}
    missing = [str(image) for images in found.values() for image in images if not image.is_file()]
    if missing or not any(found.values()):
        raise ValueError(f"'{path}': no image" + (f" {list_names(missing)}" if missing else "s in it"))
    return found


def answer_probabilities(
    pipeline: Pipeline,
    images: Sequence[Path],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    on_step: StepCallback | None = None,
    **options: Any,
) -> list[float]:
    """For each image the probability that the model answers its question in one of the ways given.

    Texts of the same tokens count once. options: of `Pipeline.score`.
    """
    asked = [pipeline.style.short_answer(question) for question in questions]
    rows = []
    for index, texts in enumerate(answers):
        ids = {tuple(pipeline.text_codec.token_ids(text)): text for text in reversed(texts)}
        rows += [(index, text) for text in ids.values()]
    scores = pipeline.score(
        [images[index] for index, _ in rows],
        [text for _, text in rows],
        questions=[asked[index] for index, _ in rows],
        on_step=on_step,
        **options,
    )
    found = [0.0] * len(answers)
    for (index, _), score in zip(rows, scores, strict=True):
        found[index] += math.exp(score.log_prob)
    return [min(value, 1.0) for value in found]


class AnswerScores(NamedTuple):
    """The probability of each right answer, a list a prompt (the mean over its images); and the figures."""

    scores: list[list[float]]
    figures: list[Figure]


def soft_tifa(
    pipeline: Pipeline, prompts: Sequence[AtomPrompt], images: dict[str, list[Path]], **options: Any
) -> AnswerScores:
    """Soft-TIFA of the images of each prompt; ValueError if a prompt has none. options: of `answer_probabilities`."""
    _require_images([one.prompt for one in prompts], images)
    rows = [(one, image) for one in prompts for image in images[one.prompt]]
    asked = [(image, atom) for one, image in rows for atom in one.atoms]
    values = iter(
        answer_probabilities(
            pipeline,
            [image for image, _ in asked],
            [atom.question for _, atom in asked],
            [atom.answers for _, atom in asked],
            **options,
        )
    )
    by_image = [[next(values) for _ in one.atoms] for one, _ in rows]
    skills: dict[str, list[float]] = {}
    for (one, _), scores in zip(rows, by_image, strict=True):
        for atom, score in zip(one.atoms, scores, strict=True):
            skills.setdefault(atom.skill, []).append(score)
    figures = [
        Figure("Soft-TIFA GM", mean(map(_geometric_mean, by_image)), len(rows)),
        Figure("Soft-TIFA AM", mean(map(mean, by_image)), len(rows)),
        *(Figure(skill, mean(found), len(found)) for skill, found in sorted(skills.items())),
    ]
    return AnswerScores(_by_prompt(prompts, rows, by_image), figures)


def vqa_score(pipeline: Pipeline, images: dict[str, list[Path]], **options: Any) -> AnswerScores:
    """VQAScore of the images of each prompt. options: of `answer_probabilities`."""
    prompts = [AtomPrompt(text, [Atom(SHOWS.format(prompt=text), YES[0], "")]) for text in images]
    found = soft_tifa(pipeline, prompts, images, **options)
    return AnswerScores(found.scores, [found.figures[1]._replace(name="VQAScore")])


def _require_images(prompts: Sequence[str], images: dict[str, list[Path]]) -> None:
    missing = [text for text in prompts if not images.get(text)]
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(prompts):,} prompts have no image, such as {missing[0]!r}"
        )


def _by_prompt(
    prompts: Sequence[AtomPrompt], rows: Sequence[tuple[AtomPrompt, Path]], by_image: Sequence[list[float]]
) -> list[list[float]]:
    own: dict[str, list[list[float]]] = {}
    for (one, _), scores in zip(rows, by_image, strict=True):
        own.setdefault(one.prompt, []).append(scores)
    return [[mean(column) for column in zip(*own[one.prompt], strict=True)] for one in prompts]


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(mean(map(math.log, values))) if all(values) else 0.0
