"""Detailed descriptions against sampling steps, 4 to 256: the published rule, the best one, and blocks.

    python -m benchmarks.long_text --plain DIR [DIR ...] --blocks DIR [DIR ...]

One folder a seed of the training. The paper's claim is that long text wants more steps. The exact scorer judges
descriptions of the same scenes; steps are counted by passes of the transformer, a text each. Writes long_text.md,
long_text.json (the points of the plot) and long_text.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.sampling.measure import EvaluationCounter
from ddit.eval.report import code_version
from ddit.eval.wide_world import WORDINGS, Asking, WideSplit, make_requests
from ddit.pipeline import Pipeline
from ddit.world.wide import WIDE_PRESETS, DescriptionScore, score_description

HERE = Path(__file__).parent
STEPS = (4, 8, 16, 32, 64, 128, 256)
BOUNDS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
"""Nats that a step may spend, of the rule of order entropy."""


class Setting(NamedTuple):
    """A rule with its parameter, by name, and its options."""

    rule: str
    parameter: str
    options: dict[str, Any]


class Point(NamedTuple):
    """What a model reached under a setting: steps a text, and the shares of the exact scorer."""

    rule: str
    parameter: str
    seed: int
    steps: float
    objects: float
    attributes: float
    false: float


def settings(block_size: int, length: int) -> Iterator[Setting]:
    """Of a model without blocks (0), or of one with them, whose steps count in each block."""
    name, num_blocks = ("blocks, ", length / block_size) if block_size else ("", 1)
    for count in dict.fromkeys(max(1, round(steps / num_blocks)) for steps in STEPS):
        parameter = f"{count} steps{' a block' * (block_size > 0)}"
        if not block_size:
            yield Setting("published", parameter, {"num_steps": count, "order": "random", "temperature": 1.0})
        greedy = {"num_steps": count, "order": "confidence", "temperature": 0.0}
        yield Setting(f"{name}confidence", parameter, greedy)
    for bound in BOUNDS:
        own = {
            "num_steps": block_size or length,
            "order": "entropy",
            "entropy_bound": bound,
            "temperature": 0.0,
        }
        yield Setting(f"{name}entropy", f"{bound:g} nats", own)


def measure(
    pipeline: Pipeline, setting: Setting, asked: Sequence[Asking], seed: int, batch_size: int
) -> Point:
    images = [asking.image() for asking in asked]
    with EvaluationCounter(pipeline.transformer.context_embedder) as counter:
        texts = pipeline.caption(images, style="detailed", batch_size=batch_size, **setting.options)
    score = score_all(asked, texts)
    steps = counter.rows / len(texts)
    return Point(setting.rule, setting.parameter, seed, steps, score.objects, score.attributes, score.false)


def score_all(asked: Sequence[Asking], texts: Sequence[str]) -> DescriptionScore:
    """The counts of all texts together."""
    scores = (score_description(one.scene, text) for one, text in zip(asked, texts, strict=True))
    return sum(scores, DescriptionScore())


def means(points: Sequence[Point]) -> list[tuple[Point, float]]:
    """The mean over the seeds of each setting, and the spread of its attributes: the largest less the smallest."""
    found = []
    for rule, parameter in dict.fromkeys((point.rule, point.parameter) for point in points):
        own = [p for p in points if (p.rule, p.parameter) == (rule, parameter)]
        mean = [statistics.mean(values) for values in zip(*(p[3:] for p in own), strict=True)]
        attributes = [p.attributes for p in own]
        found.append((Point(rule, parameter, len(own), *mean), max(attributes) - min(attributes)))
    return found


def plot(points: Sequence[Point], path: Path) -> None:
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for index, rule in enumerate(dict.fromkeys(point.rule for point in points)):
        own = sorted((mean for mean, _ in means(points) if mean.rule == rule), key=lambda point: point.steps)
        axis.plot([p.steps for p in own], [p.attributes for p in own], f"C{index}.-", label=rule)
        each = [p for p in points if p.rule == rule]
        axis.plot([p.steps for p in each], [p.attributes for p in each], f"C{index}.", alpha=0.3)
    axis.set(xlabel="steps a text", ylabel="attributes told rightly", xscale="log", xticks=STEPS)
    axis.set_xticklabels([str(n) for n in STEPS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=100)


def write(points: Sequence[Point], args: argparse.Namespace) -> None:
    given = {"plain": args.plain, "blocks": args.blocks}
    folders = " ".join(f"--{kind} {' '.join(names)}" for kind, names in given.items() if names)
    lines = [
        "# Detailed descriptions against steps",
        "",
        f"`python -m benchmarks.long_text {folders} --world {args.world} --num {args.num}`, {code_version()};",
        f"torch {torch.__version__}. {args.num} scenes of the preset's test split, the same for all rows; means over",
        "the seeds, and in brackets the largest share of attributes less the smallest.",
        "",
        "![Attributes told rightly against steps](long_text.png)",
        "",
        "| rule | parameter | seeds | steps a text | objects | attributes | false |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {p.rule} | {p.parameter} | {p.seed} | {p.steps:.1f} | {p.objects:.4f} |"
            f" {p.attributes:.4f} ({spread:.4f}) | {p.false:.4f} |"
            for p, spread in means(points)
        ),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "long_text.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "long_text.json").write_text(json.dumps([p._asdict() for p in points], indent=1) + "\n")
    plot(points, args.out / "long_text.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plain", nargs="+", default=[], help="folders of models without blocks, one a seed")
    parser.add_argument("--blocks", nargs="+", default=[], help="folders of models with blocks, one a seed")
    parser.add_argument("--world", choices=WIDE_PRESETS, default="wide", help="preset of the scenes")
    parser.add_argument("--num", type=int, default=256, help="scenes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    if not args.plain + args.blocks:
        parser.error("give the folders of at least one model: --plain, --blocks")
    asked = list(make_requests(WideSplit(WIDE_PRESETS[args.world], num=args.num), WORDINGS[0]))
    points: list[Point] = []
    for seed, folder in [*enumerate(args.plain), *enumerate(args.blocks)]:
        pipeline = Pipeline.from_pretrained(folder)
        block_size = pipeline.transformer.config.text_block_size
        if bool(block_size) != (folder in args.blocks):
            raise SystemExit(
                f"the model in '{folder}' {'writes' if block_size else 'does not write'} in blocks"
            )
        for setting in tqdm(
            [*settings(block_size, pipeline.settings.text_length)], desc=folder, unit="setting"
        ):
            points.append(measure(pipeline, setting, asked, seed, args.batch_size))
    write(points, args)


if __name__ == "__main__":
    main()
