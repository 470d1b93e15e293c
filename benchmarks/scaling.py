"""Scaling on the wide world: both halves' losses and scores against compute, for four sizes at three budgets each.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling --out runs/scaling [--budgets 4e12 1.2e13 3.6e13] [--seeds 0]

A budget is FLOPs of training, of the transformer's products forward and backward. Every run begins with random weights,
draws and reads half and half, warms up over at most a tenth of its steps and lets its rate fall over the last 40 %;
only the transformer's size and the number of steps differ. At the middle budget each size is also trained to draw
alone, for as many drawn images: the difference is what reading costs drawing. Finished runs are not run again, so
processes may share the work by --widths, and one more writes the page. Writes docs/scaling.md and its plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from benchmarks.joint_training import Arm, fitted, kept_figures, plan
from ddit.config.runs import DualRun
from ddit.eval.report import code_version
from ddit.model import DualDiT
from ddit.recipes.costs import pair_flops
from ddit.train.stages import run_stages

DOCS = Path(__file__).parents[1] / "docs"
ROWS = 64
JOINT, ALONE = Arm("nothing", True), Arm("nothing", False)
LOSSES = {
    "flow loss": "drawing: flow loss",
    "answers, bound a token": "reading: answers' bound, nats a token",
}
SCORES = ("drawn rightly", "answered rightly")


class Size(NamedTuple):
    """Of the transformer; its parameters are counted from its configuration."""

    hidden_size: int
    depth: int
    num_heads: int


SIZES = (Size(128, 4, 2), Size(192, 4, 3), Size(256, 6, 4), Size(384, 8, 6))


class Point(NamedTuple):
    """A finished run. pairs: images with their texts, half of them drawn, unless it draws alone."""

    size: Size
    num_params: int
    budget: float
    pairs: int
    seed: int
    reads: bool
    figures: dict[str, float]


class Law(NamedTuple):
    """loss = floor + a (N / 1e6) ** -alpha + b (D / 1e5) ** -beta, of N parameters and D pairs.

    error: relative, root of the mean square over the points; left_out: the same for points that were left out of the
    fit, one at a time.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    error: float
    left_out: float

    def loss(self, num_params: float, pairs: float) -> float:
        return self.floor + self.a * (num_params / 1e6) ** -self.alpha + self.b * (pairs / 1e5) ** -self.beta


# --- the runs ---


def make_run(joint: DualRun, size: Size, num_pairs: int, seed: int, *, reads: bool) -> DualRun:
    """reads: half of the pairs. Else a run that draws alone, of `num_pairs` images."""
    model = replace(joint.model, **size._asdict())
    steps = max(10, round(num_pairs / ROWS))
    run = fitted(replace(joint, model=model, init=None, global_batch_size=ROWS), steps)
    name = f"{size.hidden_size}x{size.depth}-{steps}-{seed}{'' if reads else '-alone'}"
    objective = replace(run.objective, i2t_fraction=0.5 if reads else 0.0)
    optimizer = replace(run.optimizer, warmup_steps=min(run.optimizer.warmup_steps, steps // 10))
    out = str(Path(joint.out).parent / name)
    return replace(run, out=out, objective=objective, optimizer=optimizer, seed=seed)


def make_runs(
    joint: DualRun, budgets: Sequence[float], seed: int, sizes: Sequence[Size] = SIZES
) -> Iterator[tuple[DualRun, Size, float, bool]]:
    """Small budgets first; each run with its size, its budget and whether it reads."""
    middle = sorted(budgets)[len(budgets) // 2]
    for budget in sorted(budgets):
        for size in sizes:
            one = make_run(joint, size, ROWS, seed, reads=True)
            pairs = int(budget / pair_flops(one))
            yield make_run(joint, size, pairs, seed, reads=True), size, budget, True
            if budget == middle:
                yield make_run(joint, size, pairs // 2, seed, reads=False), size, budget, False


def num_params(run: DualRun) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DualDiT(run.model).parameters())


# --- the law ---


def fit_law(points: Sequence[tuple[float, float, float]]) -> Law:
    """From (parameters, pairs, loss), by least squares of the logarithms from several starts."""
    values = _fit(points)
    errors = [
        np.log(Law(*_fit([*points[:i], *points[i + 1 :]]), 0.0, 0.0).loss(n, d) / loss)
        for i, (n, d, loss) in enumerate(points)
    ]
    own = [np.log(Law(*values, 0.0, 0.0).loss(n, d) / loss) for n, d, loss in points]
    return Law(*values, float(np.sqrt(np.mean(np.square(own)))), float(np.sqrt(np.mean(np.square(errors)))))


def _fit(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float, float, float]:
    sizes, pairs, losses = np.array(points, float).T

    def residuals(v: np.ndarray) -> np.ndarray:
        floor, a, b = np.exp(v[:3])
        predicted = floor + a * (sizes / 1e6) ** -v[3] + b * (pairs / 1e5) ** -v[4]
        return np.log(predicted / losses)

    lowest, most = losses.min(), losses.max()
    starts = [
        np.array([np.log(lowest * share), np.log(most / 2), np.log(most / 2), alpha, beta])
        for share in (0.01, 0.3, 0.8)
        for alpha in (0.2, 0.6)
        for beta in (0.2, 0.6)
    ]
    bounds = ([-20, -20, -20, 0.01, 0.01], [5, 5, 5, 3, 3])
    found = min(
        (least_squares(residuals, start, bounds=bounds) for start in starts), key=lambda one: one.cost
    )
    floor, a, b = np.exp(found.x[:3])
    return float(floor), float(a), float(found.x[3]), float(b), float(found.x[4])


def best_size(law: Law, budget: float, flops_a_pair: Callable[[float], float]) -> float:
    """The number of parameters with the least loss of the law at a budget, within a factor of ten of those measured."""
    grid = np.geomspace(5e5, 5e8, 400)
    return float(min(grid, key=lambda n: law.loss(n, budget / flops_a_pair(n))))


# --- the page ---


def plot(points: Sequence[Point], path: Path) -> None:
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).flat
    for axis, (name, label) in zip(axes, [*LOSSES.items(), *((s, s) for s in SCORES)], strict=True):
        for index, size in enumerate(SIZES):
            own = [p for p in points if p.size == size and p.reads and name in p.figures]
            axis.plot([p.budget for p in own], [p.figures[name] for p in own], f"C{index}.", alpha=0.4)
            budgets = sorted({p.budget for p in own})
            means = [np.mean([p.figures[name] for p in own if p.budget == b]) for b in budgets]
            axis.plot(budgets, means, f"C{index}-", label=f"{own[0].num_params / 1e6:.1f} M" if own else "")
        axis.set(xlabel="training FLOPs", ylabel=label, xscale="log")
        if name in LOSSES:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def table(points: Sequence[Point]) -> list[str]:
    names = [*LOSSES, *SCORES]
    lines = [
        f"| parameters | FLOPs | pairs | seeds | {' | '.join(names)} |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    for size, budget in dict.fromkeys((p.size, p.budget) for p in points if p.reads):
        own = [p for p in points if (p.size, p.budget, p.reads) == (size, budget, True)]
        cells = [f"{np.mean([p.figures[name] for p in own]):.3f}" for name in names]
        first = own[0]
        lines.append(
            f"| {first.num_params / 1e6:.1f} M | {budget:.0e} | {first.pairs:,} | {len(own)} | {' | '.join(cells)} |"
        )
    return lines


def laws(points: Sequence[Point]) -> list[str]:
    lines = [
        "| loss | floor | a | alpha | b | beta | error | error left out | best size at each budget |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    joint = [p for p in points if p.reads]
    flops = np.polyfit(
        [np.log(p.num_params) for p in joint], [np.log(p.budget / p.pairs) for p in joint], 1
    )  # of a pair against parameters
    for name in LOSSES:
        law = fit_law([(p.num_params, p.pairs, p.figures[name]) for p in joint])
        sizes = [
            f"{best_size(law, b, lambda n: float(np.exp(np.polyval(flops, np.log(n))))) / 1e6:.1f} M"
            for b in sorted({p.budget for p in joint})
        ]
        numbers = " | ".join(f"{value:.3g}" for value in law[:5])
        lines.append(f"| {name} | {numbers} | {law.error:.1%} | {law.left_out:.1%} | {', '.join(sizes)} |")
    return lines


def tax(points: Sequence[Point]) -> list[str]:
    """What reading costs drawing: figures of the joint run less those of the run that draws alone, by size."""
    names = ("flow loss", "drawn rightly")
    lines = [
        "| parameters | drawn images | figure | draws and reads | draws alone | difference |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        alone = [p for p in points if p.size == size and not p.reads]
        if not alone:
            continue
        joint = [p for p in points if (p.size, p.budget, p.reads) == (size, alone[0].budget, True)]
        for name in names:
            both, one = (float(np.mean([p.figures[name] for p in own])) for own in (joint, alone))
            head = f"| {alone[0].num_params / 1e6:.1f} M | {alone[0].pairs:,} | {name} |"
            lines.append(f"{head} {both:.3f} | {one:.3f} | {both - one:+.3f} |")
    return lines


def write(points: Sequence[Point], budgets: Sequence[float], docs: Path) -> None:
    plot(points, docs / "images" / "scaling.png")
    listed = " ".join(f"{b:.0e}" for b in budgets)
    lines = [
        "# Scaling",
        "",
        f"`python -m benchmarks.scaling --budgets {listed}`, {code_version()}. Four sizes of the transformer on",
        "[the wide world](wide_world.md), each trained from random weights to draw and to read, half and half. A pair",
        "is an image with a text, drawn or read. Losses are of held-out scenes, scores of the test split: the mean of",
        "the categories of drawing, and answers to questions in wordings that were trained on.",
        "",
        "![Losses and scores against training compute](images/scaling.png)",
        "",
        *table(points),
        "",
        "## The law",
        "",
        "loss = floor + a (N / 10^6)^-alpha + b (D / 10^5)^-beta, of N parameters and D pairs (Hoffmann et al. 2022).",
        "The second error is of points that the fit had not seen, one at a time. Five numbers from a dozen points: the",
        "exponents hold for this range alone.",
        "",
        *laws(points),
        "",
        "## What reading costs drawing",
        "",
        "At the middle budget, against a run of the same size that drew as many images and read nothing.",
        "",
        *tax(points),
    ]
    (docs / "scaling.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--budgets", type=float, nargs="+", default=[4e12, 1.2e13, 3.6e13], metavar="FLOPS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    widths = [size.hidden_size for size in SIZES]
    parser.add_argument(
        "--widths", type=int, nargs="+", choices=widths, help="train these sizes alone, and write no page"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page [default: %(default)s]")
    args = parser.parse_args(argv)
    before, _, joint = plan(args.out, 100)
    run_stages(before)
    points = []
    sizes = [size for size in SIZES if size.hidden_size in (args.widths or widths)]
    for seed in args.seeds:
        for run, size, budget, reads in make_runs(joint, args.budgets, seed, sizes):
            found = kept_figures(JOINT if reads else ALONE, [run])
            pairs = run.max_steps * run.global_batch_size
            points.append(Point(size, num_params(run), budget, pairs, seed, reads, found))
            print(points[-1], flush=True)
    if not args.widths:
        write(points, args.budgets, args.docs)


if __name__ == "__main__":
    main()
