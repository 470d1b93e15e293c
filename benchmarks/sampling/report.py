"""The page and the plots of a run."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.sampling.measure import Clock, Result
from ddit.eval.report import code_version

COLUMNS = (
    "arm", "evaluations", "GFLOP", "ms", "a second", "x published", "peak MB of tensors", "share of rate", "score",
)  # fmt: skip
PARTS = (
    "own code",
    "window",
    "fewer steps",
    "cached image",
    "batching",
    "precision",
    "compiled",
    "looser rule",
)


@dataclass(frozen=True)
class Table:
    """Results by label, of one task of one subject; `note` says what is assumed."""

    subject: str
    task: str
    results: dict[str, Result]
    clock: Clock
    note: str

    def published(self, batch: int) -> Result:
        """The published arm of that batch, or the one that takes samples one by one."""
        return self.results.get(f"published, batch {batch}") or self.results["published"]

    def ours(self, batch: int, rival: Result) -> Result:
        """Our quickest setting at that batch whose score is no worse than the rival's; else the quickest of all."""
        own = [r for r in self.results.values() if r.arm.part and r.arm.batch == batch]
        return min(own, key=lambda result: (not result.is_no_worse(rival), result.second))

    def steps_to(self, result: Result) -> list[Result]:
        """The arms from the published one to this, each adding to the one before."""
        chain = [result]
        while chain[0].arm.after:
            chain.insert(0, self.results[chain[0].arm.after])
        return chain

    def breakdown(self, result: Result) -> dict[str, float]:
        """The speed-up of each part: the ratios of successive arms' times; their product is the whole speed-up."""
        chain = self.steps_to(result)
        return {b.arm.part: a.second / b.second for a, b in pairwise(chain)}

    def lines(self) -> Iterator[str]:
        yield f"### {self.subject}, {self.task}\n\n{self.note}\n"
        yield from markdown([COLUMNS, *(self._cells(result) for result in self.results.values())])
        yield ""

    def _cells(self, result: Result) -> list[str]:
        arm, low, high = result.arm, *quartiles(result.seconds)
        rate = self.clock.rate(arm.dtype) * 1e9
        score = "" if result.score is None else f"{result.score.value:.3f} ± {result.score.spread:.3f}"
        peak = "" if result.peak is None else f"{result.peak:.1f}"
        mark = "~" if arm.scale != 1 else ""
        return [
            arm.label, f"{mark}{result.evaluations:.1f}", f"{mark}{result.flops / 1e9:.2f}",
            f"{mark}{result.second * 1e3:.1f} ({low * 1e3:.1f}-{high * 1e3:.1f})", f"{1 / result.second:.2f}",
            f"{self.published(arm.batch).second / result.second:.2f}", peak,
            f"{result.flops / result.second / rate:.0%}", score,
        ]  # fmt: skip


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def markdown(rows: list) -> Iterator[str]:
    head, *rest = rows
    for row in [head, ["---"] * len(head), *rest]:
        yield f"| {' | '.join(row)} |"


@dataclass(frozen=True)
class Target:
    """So many times the rate of the arms whose labels start with `rival`, at a batch, and no worse a score."""

    tasks: tuple[str, ...]
    batch: int
    times: float
    rival: str


TARGETS = (
    Target(("answers", "8 tokens"), 32, 40, "published"),
    Target(("answers", "8 tokens"), 1, 10, "published"),
    Target(("captions", "32 tokens"), 32, 40, "published"),
    Target(("captions", "32 tokens"), 1, 10, "published"),
    Target(("images",), 8, 5, "published"),
    Target(("32 tokens",), 1, 1, "autoregressive"),
    Target(("128 tokens",), 1, 2, "autoregressive"),
)


def target_rows(tables: list[Table]) -> Iterator[list[str]]:
    """What was measured beside what is aimed at; against the quicker of several rivals."""
    for target in TARGETS:
        for table in tables:
            batches = {result.arm.batch for result in table.results.values() if result.arm.part}
            if table.task not in target.tasks or target.batch not in batches:
                continue
            if target.rival == "published":
                rival = table.published(target.batch)
            else:
                rivals = [
                    r
                    for r in table.results.values()
                    if r.arm.label.startswith(target.rival) and r.arm.batch == target.batch
                ]
                if not rivals:
                    continue
                rival = min(rivals, key=lambda result: result.second)
            ours = table.ours(target.batch, rival)
            ratio = rival.second / ours.second
            fast = ratio >= target.times
            parts = table.breakdown(ours) if target.rival == "published" else {}
            scores = "no scores: random weights"
            if ours.score is not None and rival.score is not None:
                scores = f"{rival.score.value:.3f} and {ours.score.value:.3f}"
            met = ("yes" if ours.is_no_worse(rival) else "no: the score is lower") if fast else "no"
            yield [
                table.subject, table.task, str(target.batch), rival.arm.label, f"{target.times:g}x", f"{ratio:.1f}x",
                met, scores,
                *(f"{parts[part]:.2f}" if part in parts else "" for part in PARTS),
            ]  # fmt: skip


def plot(tables: list[Table], path: Path) -> None:
    """A panel a table: samples a second of each arm."""
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    tallest = max(len(table.results) for table in tables)
    figure = Figure(figsize=(6 * columns, (0.24 * tallest + 1) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(tables) :]:
        panel.set_axis_off()
    for panel, table in zip(panels, tables, strict=False):
        results = list(table.results.values())[::-1]
        colors = ["C0" if result.arm.part else "0.6" for result in results]
        bars = panel.barh(
            [result.arm.label for result in results], [1 / r.second for r in results], color=colors
        )
        panel.bar_label(bars, fmt="{:.2f}", padding=2, fontsize=7)
        panel.set(title=f"{table.subject}, {table.task}", xlabel="samples a second")
        panel.margins(x=0.15)
        panel.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=90)


INTRODUCTION = """Same weights, same images, same run; the arms take turns, round by round, so that all see the same \
machine. Each line that begins with + has all that the lines before it have; a line of another batch goes on from the \
last line of batch 1 in float32. Figures are a sample: milliseconds are medians with the quartiles, evaluations are \
counted (rows that T5, or for images and decoders the transformer, was called with), and FLOPs of matrix products are \
torch's own count. A ~ marks a call that was cut to fewer steps and scaled. The published rule samples one text at a \
time, so its line holds for every batch of texts. Peak memory is what the allocator gives out at most \
beyond the weights. The share is of the rate of matrix products in the arm's own dtype, measured between the rounds."""


def write(tables: list[Table], out: Path, seconds: float) -> None:
    """`sampling.md`, and `sampling_<subject>.png` for each subject."""
    out.mkdir(parents=True, exist_ok=True)
    clock = tables[-1].clock
    rates = ", ".join(
        f"{statistics.median(values):.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype, values in clock.rates.items()
    )
    command = " ".join(["python -m benchmarks.sampling", *(shown(argument) for argument in sys.argv[1:])])
    lines = [
        "# Sampling beside the published pipeline, diffusers' SD3 and an autoregressive decoder\n",
        f"`{command}`, commit {code_version()[:12]}, {time.strftime('%Y-%m-%d')}, {seconds / 60:.0f} minutes; "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} "
        f"threads; matrix products of 1024 x 1024: {rates}.\n",
        INTRODUCTION + "\n",
        "## Targets\n",
        *markdown(
            [
                ("model", "task", "batch", "against", "asked", "measured", "met", "scores", *PARTS),
                *target_rows(tables),
            ]
        ),
        "\nThe parts multiply to what was measured; an empty part is 1.\n",
        "## All figures\n",
    ]
    for subject in dict.fromkeys(table.subject for table in tables):
        own = [table for table in tables if table.subject == subject]
        name = f"sampling_{subject.replace('/', '_')}.png"
        plot(own, out / name)
        lines.append(f"![Samples a second, {subject}]({name})\n")
        for table in own:
            lines += table.lines()
    (out / "sampling.md").write_text("\n".join(lines).rstrip() + "\n")


def shown(argument: str) -> str:
    """An argument for the page, without the paths of this machine."""
    return "PATH" if Path(argument).is_absolute() else argument
