"""Right texts against steps of the model, for every unmasking rule: `python -m benchmarks.text_sweep`.

Answers and complete captions of the small world's scenes, and of a hard slice: two named objects or several of two
kinds, with pairs of class and colour that no training scene shows; and captions that are asked for in many wordings, of
the wide world's easy scenes. Writes text_sweep.md and text_sweep.png; about a quarter of an hour of two idle cores.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from benchmarks.sampling.measure import EvaluationCounter
from ddit.eval.report import code_version
from ddit.pipeline import Pipeline
from ddit.settings import Order
from ddit.world import PRESETS, caption_is_right, make_question, make_scene, render, wide

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
    """Images with their questions, or None for captions; `right`: of each whether a text is right."""

    name: str
    images: list[Image.Image]
    questions: list[str] | None
    right: Sequence[Callable[[str], bool]]


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
    for size in (2, 4, 8):
        for bound in (0.05, 0.2, 1.0):
            name = f"{bound:g} nats, blocks of {size}"
            yield setting("entropy, blocks", name, LONGEST, "entropy", entropy_bound=bound, block_size=size)


def tasks(num: int, seed: int, split: str) -> Iterator[Task]:
    usual = PRESETS["fixed"]
    for name, world, part in (("", usual, split), ("hard ", replace(usual, weights=HARD), "heldout")):
        scenes = [make_scene(world, part, index, seed=seed) for index in range(num)]
        images = [Image.fromarray(render(scene)) for scene in scenes]
        asked = [
            found
            for index, scene in enumerate(scenes)
            if (found := make_question(scene, random.Random(f"{seed}/{index}"))) is not None
        ]
        yield Task(
            f"{name}answers",
            images,
            [one.text for one in asked],
            [partial(str.__eq__, one.answer) for one in asked],
        )
        yield Task(
            f"{name}captions",
            images,
            None,
            [partial(caption_is_right, scene, complete=True) for scene in scenes],
        )
    easy = [wide.make_scene(wide.WIDE_PRESETS["wide-easy"], split, index, seed=seed) for index in range(num)]
    yield Task(
        "captions asked for",
        [Image.fromarray(wide.render(scene)) for scene in easy],
        [
            wide.make_request(scene, random.Random(f"{seed}/{index}"), detailed=False).text
            for index, scene in enumerate(easy)
        ],
        [partial(wide.caption_is_right, scene, complete=True) for scene in easy],
    )


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
    with EvaluationCounter(pipeline.transformer.context_embedder) as counter:
        if task.questions is None:
            texts = pipeline.caption(task.images, **options)
        else:
            texts = pipeline.answer(task.images, task.questions, **options)
    right = [is_right(text) for is_right, text in zip(task.right, texts, strict=True)]
    return sum(right) / len(right), counter.rows / len(right)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(2, 3).flat)
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
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
    command = " ".join(["python -m benchmarks.text_sweep", *sys.argv[1:]])
    width = 1.96 * (0.9 * 0.1 / args.num) ** 0.5
    text = f"""# Texts: right ones against steps

`{command}`, model {args.model}, commit {code_version()[:12]}, {time.strftime("%Y-%m-%d")}; {platform.machine()},
{os.cpu_count()} cores, torch {torch.__version__}. World `fixed`, split {args.split}, {args.num} scenes, the same for
all rows; the hard slice: two objects or several of two kinds, split heldout; captions asked for: of the wide world's
preset `wide-easy`, in wordings of training. An answer must be the word; a caption must name every object, colour,
number and the relation. 95 % interval at .90: ± {width:.3f}. All rules at temperature 0, except the paper's.

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
