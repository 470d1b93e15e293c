"""Right texts against steps of the model, for every unmasking rule: `python benchmarks/text_sweep.py`.

Answers and complete captions of the small world's scenes, and of a hard slice: two named objects or several of two
kinds, with pairs of class and colour that no training scene shows. Steps are counted by calls of the text encoder,
one a text. Writes text_sweep.md and text_sweep.png; about ten minutes of two idle cores.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from ddit.eval.report import code_version
from ddit.pipeline import Pipeline
from ddit.settings import Order
from ddit.world import PRESETS, Scene, caption_is_right, make_question, make_scene, render

HERE = Path(__file__).parent
LONGEST = 16  # steps: every position has one of its own
STEPS = (1, 2, 3, 4, 6, 8, 16)
HARD = {"two": 0.5, "mixed": 0.5}


class Setting(NamedTuple):
    """A rule with its parameter, by name, and the most steps that it may take."""

    rule: str
    parameter: str
    num_steps: int
    options: dict[str, Any]


class Task(NamedTuple):
    """Scenes with their images; questions and answers, or None for captions."""

    name: str
    scenes: list[Scene]
    images: list[Image.Image]
    asked: list[tuple[str, str]] | None


def setting(rule: str, parameter: str, num_steps: int, order: Order, **options: float) -> Setting:
    """At temperature 0."""
    return Setting(rule, parameter, num_steps, {"order": order, "temperature": 0.0, **options})


def settings() -> Iterator[Setting]:
    yield Setting("paper", "16 steps", 16, {"order": "random", "temperature": 1.0})
    orders: tuple[Order, ...] = ("random", "confidence", "margin")
    for order in orders:
        for steps in STEPS:
            yield setting(order, f"{steps} steps", steps, order)
    for size in (2, 4):
        for steps in (4, 8):
            name = f"{steps} steps, blocks of {size}"
            yield setting("confidence, blocks", name, steps, "confidence", block_size=size)
    for bound in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
        yield setting("confidence, commit", f"above {bound:g}", LONGEST, "confidence", commit_above=bound)
    for size in (0, 4):
        for bound in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
            rule, name = (
                ("threshold, blocks", f"{bound:g}, blocks of {size}") if size else ("threshold", f"{bound:g}")
            )
            yield setting(rule, name, LONGEST, "threshold", threshold=bound, block_size=size)
    for bound in (0.01, 0.05, 0.1, 0.2, 0.5, 1.0):
        yield setting("entropy", f"{bound:g} nats", LONGEST, "entropy", entropy_bound=bound)


def tasks(num: int, seed: int, split: str) -> Iterator[Task]:
    usual = PRESETS["fixed"]
    for name, world, part in (("", usual, split), ("hard ", replace(usual, weights=HARD), "heldout")):
        scenes = [make_scene(world, part, index, seed=seed) for index in range(num)]
        images = [Image.fromarray(render(scene)) for scene in scenes]
        yield Task(f"{name}answers", scenes, images, questions_of(scenes, seed))
        yield Task(f"{name}captions", scenes, images, None)


def questions_of(scenes: Iterable[Scene], seed: int) -> list[tuple[str, str]]:
    asked = (make_question(scene, random.Random(f"{seed}/{index}")) for index, scene in enumerate(scenes))
    return [(found.text, found.answer) for found in asked if found is not None]


@contextmanager
def counting(pipeline: Pipeline) -> Iterator[list[int]]:
    """Collects how many texts each call of the text encoder has."""
    states, rows = pipeline.text_codec.states, list[int]()

    def counted(input_ids: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        rows.append(len(input_ids))
        return states(input_ids, lengths)

    pipeline.text_codec.states = counted
    try:
        yield rows
    finally:
        del pipeline.text_codec.states


def measure(
    pipeline: Pipeline, tried: Setting, task: Task, *, seed: int, batch_size: int
) -> tuple[float, float]:
    """Share of right texts, and steps a text."""
    options: dict[str, Any] = {
        "num_steps": tried.num_steps,
        "seed": seed,
        "batch_size": batch_size,
        **tried.options,
    }
    with counting(pipeline) as rows:
        if task.asked is None:
            texts = pipeline.caption(task.images, **options)
            right = [
                caption_is_right(s, text, complete=True) for s, text in zip(task.scenes, texts, strict=True)
            ]
        else:
            texts = pipeline.answer(task.images, [question for question, _ in task.asked], **options)
            right = [text == answer for text, (_, answer) in zip(texts, task.asked, strict=True)]
    return sum(right) / len(right), sum(rows) / len(right)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(2, 2).flat, names, strict=True):
        for index, rule in enumerate(dict.fromkeys(row["rule"] for row in rows)):
            own = [row for row in rows if row["task"] == name and row["rule"] == rule]
            own.sort(key=lambda row: row["steps"])
            x, y = [row["steps"] for row in own], [row["right"] for row in own]
            style = "k*" if rule == "paper" else f"C{index}.-"
            axis.plot(x, y, style, alpha=0.8, markersize=11 if rule == "paper" else 6, label=rule)
        axis.set(title=name, xlabel="steps a text", ylabel="share right", xscale="log", xticks=STEPS)
        axis.set_xticklabels([str(n) for n in STEPS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=100)


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    names = list(dict.fromkeys(row["task"] for row in rows))
    table = [["rule", "", *(part for name in names for part in (name, "steps"))]]
    table.append(["---"] * len(table[0]))
    for rule, parameter in dict.fromkeys((row["rule"], row["parameter"]) for row in rows):
        own = [row for row in rows if (row["rule"], row["parameter"]) == (rule, parameter)]
        table.append(
            [
                rule,
                parameter,
                *(f"{row[key]:.{n}f}" for row in own for key, n in (("right", 3), ("steps", 2))),
            ]
        )
    command = " ".join(["python benchmarks/text_sweep.py", *sys.argv[1:]])
    width = 1.96 * (0.9 * 0.1 / args.num) ** 0.5
    text = f"""# Texts: right ones against steps

`{command}`, model {args.model}, commit {code_version()[:12]}, {time.strftime("%Y-%m-%d")}; {platform.machine()},
{os.cpu_count()} cores, torch {torch.__version__}. World `fixed`, split {args.split}, {args.num} scenes, the same for
all rows; the hard slice: two objects or several of two kinds, split heldout. An answer must be the word; a caption must
name every object, colour, number and the relation. 95 % interval at .90: ± {width:.3f}. All rules at
temperature 0, except the paper's.

![Right texts against steps](text_sweep.png)

"""
    (args.out / "text_sweep.md").write_text(
        text + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--num", type=int, default=200, help="scenes a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--split", default="val", help="of the world; defaults are not chosen on the test split"
    )
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--out", type=Path, default=HERE, help="gets text_sweep.md and .png")
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained(args.model)
    rows = []
    given = list(tasks(args.num, args.seed, args.split))
    for tried in tqdm(list(settings()), unit="setting"):
        for task in given:
            right, steps = measure(pipeline, tried, task, seed=args.seed, batch_size=args.batch_size)
            rows.append(
                {
                    "task": task.name,
                    "rule": tried.rule,
                    "parameter": tried.parameter,
                    "right": right,
                    "steps": steps,
                }
            )
    args.out.mkdir(parents=True, exist_ok=True)
    plot(rows, args.out / "text_sweep.png")
    write(rows, args)


if __name__ == "__main__":
    main()
