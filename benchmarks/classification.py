"""Zero-shot classification by score against asking: `python benchmarks/classification.py`.

Scenes of the small world, and what they hold among closed sets: the class of a single object (24), its colour (10), how
many of a kind there are (4), where one of two objects is, seen from the other (4), and whether something is there. A
label is chosen three ways: the likeliest answer to the question, the likeliest caption, and what the model answers when
it is asked. The first two also with the null image's log-likelihood taken off (w = 1). Of yes and no, the difference of
their log-likelihoods also ranks the questions (AUC). Writes classification.md; an hour of two idle cores for 300.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ddit.eval.intervals import wilson
from ddit.eval.report import code_version
from ddit.inference.scoring import Score
from ddit.pipeline import Pipeline
from ddit.world import CLASSES, COLORS, PRESETS, Scene, make_question, make_scene, render
from ddit.world.captions import NUMBERS, RELATIONS, find_relation, phrase

HERE = Path(__file__).parent


class Item(NamedTuple):
    """An image, a question (None: by captions alone), the right label, and each label's caption, if any."""

    image: Image.Image
    question: str | None
    truth: str
    captions: list[str]


class Task(NamedTuple):
    name: str
    labels: Sequence[str]
    make: Callable[[Scene, random.Random], tuple[str | None, str, list[str]] | None]
    """Question, truth and captions of a scene; None if it does not fit."""


def by_class(scene: Scene, rng: random.Random) -> tuple[str, str, list[str]] | None:
    if scene.kind != "single":
        return None
    group = scene.groups[0]
    return "what is this?", group.class_name, [f"a photo of {phrase(name, group.color)}" for name in CLASSES]


def by_class_alone(scene: Scene, rng: random.Random) -> tuple[None, str, list[str]] | None:
    """Captions that do not name the colour, as they are written without looking at the image."""
    if scene.kind != "single":
        return None
    return None, scene.groups[0].class_name, [f"a photo of {phrase(name)}" for name in CLASSES]


def by_color(scene: Scene, rng: random.Random) -> tuple[str, str, list[str]] | None:
    group = scene.groups[0]
    if scene.kind != "single" or group.color is None:
        return None
    captions = [f"a photo of {phrase(group.class_name, color)}" for color in COLORS]
    return f"what color is the {group.class_name}?", group.color, captions


def by_number(scene: Scene, rng: random.Random) -> tuple[str, str, list[str]] | None:
    asked = make_question(scene, rng, "count") if len(scene.groups) == 1 else None
    if asked is None:
        return None
    group = scene.groups[0]
    captions = [f"a photo of {phrase(group.class_name, group.color, count)}" for count in range(1, 5)]
    return asked.text, asked.answer, captions


def by_place(scene: Scene, rng: random.Random) -> tuple[None, str, list[str]] | None:
    relation = find_relation(scene)
    if relation is None:
        return None
    first, second = (phrase(group.class_name, group.color) for group in scene.groups)
    return None, relation, [f"a photo of {first} {other} {second}" for other in RELATIONS]


def by_presence(scene: Scene, rng: random.Random) -> tuple[str, str, list[str]] | None:
    asked = make_question(scene, rng, "exists")
    return None if asked is None else (asked.text, asked.answer, [])


TASKS = (
    Task("class", CLASSES, by_class),
    Task("class, captions without the colour", CLASSES, by_class_alone),
    Task("colour", COLORS, by_color),
    Task("number", NUMBERS[1:], by_number),
    Task("place", RELATIONS, by_place),
    Task("is there a ...", ("yes", "no"), by_presence),
)


def items_of(task: Task, num: int, split: str, seed: int) -> list[Item]:
    """The first `num` scenes of the split that fit the task."""
    items: list[Item] = []
    for index in range(100 * num):
        scene = make_scene(PRESETS["fixed"], split, index, seed=seed)
        made = task.make(scene, random.Random(f"{seed}/{index}"))
        if made is not None:
            items.append(Item(Image.fromarray(render(scene)), *made))
        if len(items) == num:
            break
    return items


def right(items: Sequence[Item], labels: Sequence[str], values: np.ndarray) -> np.ndarray:
    """(P,) of scores (P, C): whether the highest is the right label's."""
    return np.array([labels[row.argmax()] == item.truth for item, row in zip(items, values, strict=True)])


def values_of(scores: Sequence[Score], num_labels: int) -> np.ndarray:
    return np.array([score.log_prob for score in scores]).reshape(-1, num_labels)


def score_texts(
    pipeline: Pipeline, items: Sequence[Item], texts: list[str], questions: list[str] | None, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of all labels' texts with the image and without, (P, C) each."""
    count = len(texts) // len(items)
    images = [item.image for item in items for _ in range(count)]
    seen, blind = (
        pipeline.score(given, texts, questions=questions, num_samples=num_samples) for given in (images, None)
    )
    return values_of(seen, count), values_of(blind, count)


def cell(is_right: np.ndarray) -> str:
    share = float(is_right.mean())
    low, high = wilson(share, len(is_right))
    return f"{share:.3f} ({low:.3f} to {high:.3f})"


def auc(values: np.ndarray, is_yes: np.ndarray) -> float:
    """How often a question with the answer yes has a higher log p(yes) - log p(no) than one with no."""
    margin = values[:, 0] - values[:, 1]
    return float(np.mean(margin[is_yes][:, None] > margin[~is_yes][None]))


def measure(pipeline: Pipeline, task: Task, num: int, args: argparse.Namespace) -> str:
    """The task's row of the table."""
    items, labels = items_of(task, num, args.split, args.seed), list(task.labels)
    cells = ["", "", "", "", ""]
    note = ""
    if items[0].question is not None:
        asked = [str(item.question) for item in items]
        each = [text for text in asked for _ in labels]
        seen, blind = score_texts(pipeline, items, labels * len(items), each, args.num_samples)
        cells[0], cells[1] = (cell(right(items, labels, v)) for v in (seen, seen - blind))
        answers = pipeline.answer([item.image for item in items], asked, batch_size=32)
        cells[4] = cell(np.array([answer == item.truth for answer, item in zip(answers, items, strict=True)]))
        if labels == ["yes", "no"]:
            note = f" (AUC {auc(seen, np.array([item.truth == 'yes' for item in items])):.4f})"
    if items[0].captions:
        texts = [text for item in items for text in item.captions]
        seen, blind = score_texts(pipeline, items, texts, None, args.num_samples)
        cells[2], cells[3] = (cell(right(items, labels, v)) for v in (seen, seen - blind))
    return f"| {task.name}{note} | {len(labels)} | {len(items)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=300, help="scenes a task")
    parser.add_argument("--num-samples", type=int, default=32, help="masks a score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "classification.md")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    pipeline = Pipeline.from_pretrained(args.model)
    rows = []
    for task in TASKS:
        rows.append(measure(pipeline, task, args.num, args))
        print(rows[-1], file=sys.stderr, flush=True)
    command = " ".join(["python benchmarks/classification.py", *sys.argv[1:]])
    table = "\n".join(rows)
    text = f"""# Zero-shot classification

`{command}`, commit {code_version()}, {time.strftime("%Y-%m-%d")}; {platform.machine()}, {os.cpu_count()} cores,
torch {torch.__version__}. Model {args.model}, world `fixed`, split {args.split}, {args.num_samples} masks a score.
Share of right labels, 95 % intervals; w is the weight of the null image's log-likelihood. Captions name what else is in
the image (its colour, its class), except where the table says otherwise.

| task | labels | images | answers, w = 0 | answers, w = 1 | captions, w = 0 | captions, w = 1 | asking |
|---|---|---|---|---|---|---|---|
{table}
"""
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
