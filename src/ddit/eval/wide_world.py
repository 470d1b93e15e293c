"""The wide world as an evaluation: questions, descriptions and prompts with what is right, and their scores.

Seen and held-out wordings, benchmarks' own sentences, and held-out pairs are sets of their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddit.eval.geneval import ImageScore
from ddit.eval.intervals import wilson
from ddit.eval.items import Figure
from ddit.eval.vqa import normalize_answer
from ddit.images import fit_image
from ddit.world import Prompt, find_faults
from ddit.world.wide import (
    WIDE_PRESETS,
    WIDE_TAGS,
    DescriptionScore,
    Part,
    WideConfig,
    WideScene,
    make_question,
    make_request,
    make_scene,
    render,
    score_description,
)
from ddit.world.wide.checked import detect_checked
from ddit.world.wide.official import BENCHMARKS, make_official_question
from ddit.world.wide.presets import GRID

DETECTOR_THRESHOLD = 0.5


class Asking(NamedTuple):
    """An image's scene, what is asked of it, and the right answer."""

    scene: WideScene
    question: str
    answer: str
    kind: str

    def image(self) -> Image.Image:
        return Image.fromarray(render(self.scene))


class ReadingSet(NamedTuple):
    """A set of questions by its name: which scenes, and which sentences."""

    name: str
    split: str = "test"
    part: Part = "seen"
    benchmark: str | None = None
    config: WideConfig = WIDE_PRESETS["wide"]

    def items(self, num: int, *, seed: int = 0) -> list[Asking]:
        """`num` questions about as many scenes; with a benchmark, scenes that its questions do not fit are left out."""
        return [asking for asking, _ in zip(self._all(seed), range(num), strict=False)]

    def _all(self, seed: int) -> Iterator[Asking]:
        index = 0
        while True:
            scene = make_scene(self.config, self.split, index, seed=seed)
            rng = random.Random(f"read/{self.name}/{seed}/{index}")
            index += 1
            if self.benchmark is None:
                asked = make_question(scene, rng, part=self.part)
            else:
                asked = make_official_question(scene, rng, self.benchmark)
            if asked is not None:
                yield Asking(scene, asked.text, asked.answer, asked.kind)


def _alone(kind: str) -> WideConfig:
    return replace(WIDE_PRESETS["wide-1"], grounds={kind: 1.0})


READING_SETS = (
    ReadingSet("seen wordings"),
    ReadingSet("held-out wordings", part="held_out"),
    ReadingSet("held-out pairs", split="heldout"),
    *(ReadingSet(f"{name}'s own sentences", benchmark=name) for name in BENCHMARKS),
    ReadingSet("alone on white", config=_alone("white")),
    ReadingSet("alone on black", config=_alone("black")),
)
"""What reading is measured on. A transparent image is put on white where images are read."""


def is_right(asked: Asking, text: str) -> bool:
    """Whether the answer is the right one, by VQA's normalisation; classes of a list may come in any order."""
    said, true = (sorted(normalize_answer(part) for part in t.split(",")) for t in (text, asked.answer))
    return said == true


def tally(asked: Sequence[Asking], texts: Sequence[str]) -> list[Figure]:
    """The share of right answers, first of all questions, then of each kind."""
    right = [is_right(a, t) for a, t in zip(asked, texts, strict=True)]
    kinds = ["all", *dict.fromkeys(a.kind for a in asked)]
    chosen = {k: [r for r, a in zip(right, asked, strict=True) if k in ("all", a.kind)] for k in kinds}
    return [Figure(k, sum(v) / max(len(v), 1), len(v)) for k, v in chosen.items()]


def description_requests(
    config: WideConfig, num: int, *, split: str = "test", part: Part = "seen", seed: int = 0
) -> list[Asking]:
    """Requests for detailed descriptions of `num` scenes, each with one that is right."""
    found = []
    for index in range(num):
        scene = make_scene(config, split, index, seed=seed)
        request = make_request(scene, random.Random(f"describe/{seed}/{index}"), detailed=True, part=part)
        found.append(Asking(scene, request.text, request.reply, request.kind))
    return found


def score_descriptions(asked: Sequence[Asking], texts: Sequence[str]) -> DescriptionScore:
    """The counts of all texts together."""
    total = DescriptionScore()
    for asking, text in zip(asked, texts, strict=True):
        total += score_description(asking.scene, text)
    return total


def score_images(prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[ImageScore]:
    """Each image against its prompt, by the wide world's detector; images of another size are resized to 64 first."""
    if not images:
        return []
    pixels = np.stack([np.asarray(fit_image(image, GRID, GRID)) for image in images])
    found = detect_checked(pixels, threshold=DETECTOR_THRESHOLD)
    return [ImageScore(find_faults(p, seen), seen) for p, seen in zip(prompts, found, strict=True)]


def tally_tags(prompts: Sequence[Prompt], correct: Sequence[bool]) -> list[Figure]:
    """The share of right images of each of `WIDE_TAGS`."""
    figures = []
    for tag in WIDE_TAGS:
        chosen = [right for prompt, right in zip(prompts, correct, strict=True) if prompt.tag == tag]
        if chosen:
            figures.append(Figure(tag, sum(chosen) / len(chosen), len(chosen)))
    return figures


Answerer = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[str]]
"""Answers to questions about images, one each: such as `Pipeline.answer`."""


def measure_reading(
    answer: Answerer,
    num: int,
    *,
    sets: Sequence[ReadingSet] = READING_SETS,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, list[Figure]]:
    """The figures of `tally` on `num` questions of each set, by its name."""
    found = {}
    for chosen in sets:
        asked = chosen.items(num, seed=seed)
        texts: list[str] = []
        for start in range(0, num, batch_size):
            part = asked[start : start + batch_size]
            texts += answer([a.image() for a in part], [a.question for a in part])
        found[chosen.name] = tally(asked, texts)
    return found


def show(figure: Figure) -> str:
    """ "0.9876 (0.9700 to 0.9950), n 500"."""
    low, high = wilson(figure.value, figure.num)
    return f"{figure.value:.4f} ({low:.4f} to {high:.4f}), n {figure.num:,}"
