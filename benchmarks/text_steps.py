"""Accuracy against the number of sampling steps, random against confidence order: the paper's claims about text.

    python benchmarks/text_steps.py [--model mini] [--limit 200] [--seeds 3] [--out docs/images/text_steps.png]

Answers (GQA-style) and captions (every attribute right, by the number of objects) of the small world's test split,
with 1 to 64 steps. A seed decides the scenes, the questions and the draws alike. Writes the plot, its figures as JSON
lines beside it, and prints them as a table. About ten minutes of one core; needs matplotlib (`ddit[plot]`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from ddit.eval.evaluate import EvalData, evaluate
from ddit.eval.options import EvalOptions
from ddit.eval.world_tasks import WorldSplit
from ddit.pipeline import Pipeline
from ddit.settings import UnmaskingRule
from ddit.world import PRESETS

STEPS = (1, 2, 4, 8, 16, 32, 64)
PANELS = {
    "gqa": {"accuracy": "answers (1 word)"},
    "caption": {
        "every attribute: single": "captions, one object",
        "every attribute: two": "captions, two objects",
        "every attribute": "captions, all",
    },
}


RULES = (
    UnmaskingRule(order="random", temperature=1.0),
    UnmaskingRule(order="random", temperature=0.0),
    UnmaskingRule(order="confidence", temperature=0.0),
)


def label(rule: UnmaskingRule) -> str:
    return f"{rule.order} order, temperature {rule.temperature:g}"


def score(pipeline: Pipeline, rule: UnmaskingRule, steps: int, *, seed: int, limit: int) -> dict[str, float]:
    """The figures of `PANELS` by title, of one rule with so many steps."""
    world = WorldSplit(PRESETS["fixed"], num=limit, seed=seed)
    sampling = {"order": rule.order, "temperature": rule.temperature}
    sampled = replace(pipeline, settings=pipeline.settings.with_defaults(sampling))
    options = EvalOptions(seed=seed * 10**6, limit=limit, text_steps=steps)
    found: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for summary in evaluate(sampled, list(PANELS), EvalData(None, world), Path(folder), options=options):
            titles = PANELS[summary.task]
            found |= {titles[f.name]: f.value for f in summary.figures if f.name in titles}
    return found


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """A panel for each figure, a line for each rule; the band is the standard deviation over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = [title for panel in PANELS.values() for title in panel.values()]
    figure = Figure(figsize=(3.3 * len(titles), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, title in zip(figure.subplots(1, len(titles), sharey=True), titles, strict=True):
        for index, rule in enumerate(RULES):
            points = [row for row in rows if row["figure"] == title and row["rule"] == label(rule)]
            steps = [row["steps"] for row in points]
            mean = [row["mean"] for row in points]
            low, high = (
                [m + sign * row["sd"] for m, row in zip(mean, points, strict=True)] for sign in (-1, 1)
            )
            axis.plot(steps, mean, marker=".", color=f"C{index}", label=label(rule))
            axis.fill_between(steps, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
        axis.set(title=title, xlabel="steps", xscale="log", xticks=STEPS)
        axis.set_xticklabels([str(n) for n in STEPS])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    figure.axes[0].set_ylabel("share right")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, default=200, help="questions and captions a seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/images/text_steps.png"))
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained(args.model)
    runs = [(rule, steps, seed) for rule in RULES for steps in STEPS for seed in range(args.seeds)]
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for rule, steps, seed in tqdm(runs, unit="run"):
        for title, value in score(pipeline, rule, steps, seed=seed, limit=args.limit).items():
            values[title, label(rule), steps].append(value)
    rows = [
        {
            "figure": title, "rule": rule, "steps": steps, "mean": round(statistics.mean(found), 4),
            "sd": round(statistics.stdev(found), 4) if len(found) > 1 else 0.0, "seeds": len(found),
        }
        for (title, rule, steps), found in values.items()
    ]  # fmt: skip
    plot(rows, args.out)
    args.out.with_suffix(".json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"| figure | rule | {' | '.join(str(n) for n in STEPS)} |\n|---|---|{'---|' * len(STEPS)}")
    for title, rule in dict.fromkeys((title, rule) for title, rule, _ in values):
        chosen = [row for row in rows if (row["figure"], row["rule"]) == (title, rule)]
        cells = [f"{row['mean']:.3f} ± {row['sd']:.3f}" for row in chosen]
        print(f"| {title} | {rule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
