"""GenEval on the small world for several checkpoints side by side: does joint training hurt image generation?

    torchrun --nproc-per-node 2 benchmarks/compare_geneval.py "image only=runs/mini-image/export" "joint=mini"

A seed decides the prompts' classes and colours and the noise alike. Writes a plot to --out, and prints a table with
the mean and the standard deviation over the seeds. A minute or two a seed and checkpoint on two cores; needs matplotlib
(`ddit[plot]`).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ddit.devices import Ranks, join_ranks
from ddit.eval.evaluate import EvalData, evaluate
from ddit.eval.options import EvalOptions
from ddit.eval.world_tasks import WorldSplit
from ddit.pipeline import Pipeline
from ddit.world import PRESETS


class Row(NamedTuple):
    """A checkpoint's share in one category: mean and standard deviation over the seeds."""

    model: str
    category: str
    mean: float
    sd: float


def score(pipeline: Pipeline, *, seed: int, num_prompts: int, ranks: Ranks) -> dict[str, float]:
    """GenEval's figures of one seed, by category."""
    world = WorldSplit(PRESETS["fixed"], num=0, num_prompts=num_prompts, seed=seed)
    with TemporaryDirectory() as folder:
        runs = evaluate(
            pipeline, ["geneval"], EvalData(None, world), Path(ranks.share(folder)),
            options=EvalOptions(seed=seed * 10**6), ranks=ranks,
        )  # fmt: skip
        found = {figure.name: figure.value for summary in runs for figure in summary.figures}
        ranks.wait()
    return found


def plot(rows: list[Row], out: Path) -> None:
    """Bars by category, one colour a checkpoint, with the spread over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models, categories = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))
    figure = Figure(figsize=(1.4 * len(categories), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        own = [row for row in rows if row.model == model]
        places = [k + (index - (len(models) - 1) / 2) * width for k in range(len(own))]
        axis.bar(places, [r.mean for r in own], width, yerr=[r.sd for r in own], capsize=3, label=model)
    axis.set(ylabel="share right", ylim=(0, 1.05))
    axis.set_xticks(range(len(categories)), list(map(str, categories)))
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=len(models), frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-prompts", type=int, default=40, help="a category, four images each")
    parser.add_argument("--guidance", type=float, help="for all of them [default: each model's own]")
    parser.add_argument("--out", type=Path, default=Path("docs/images/joint_training.png"))
    args = parser.parse_args()
    ranks, rows = join_ranks(), []
    for name, _, folder in (given.partition("=") for given in args.models):
        pipeline = Pipeline.from_pretrained(folder)
        pipeline.settings = pipeline.settings.with_defaults({"guidance_scale": args.guidance})
        seeds = [
            score(pipeline, seed=seed, num_prompts=args.num_prompts, ranks=ranks)
            for seed in range(args.seeds)
        ]
        for category in seeds[0]:
            values = [found[category] for found in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append(Row(name, category, statistics.mean(values), spread))
    if ranks.is_first:
        plot(rows, args.out)
        categories = list(dict.fromkeys(row.category for row in rows))
        print(f"| checkpoint | {' | '.join(categories)} |\n|---|{'---|' * len(categories)}")
        for name in dict.fromkeys(row.model for row in rows):
            cells = [f"{row.mean:.3f} ± {row.sd:.3f}" for row in rows if row.model == name]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
