"""The page of the load test."""

import os
import platform
import re
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.serving.load import Phase
from ddit.eval.report import code_version


@dataclass
class Ratio:
    """Rounds of one kind of request with batching, and one at a time."""

    kind: str
    batched: list[Phase] = field(default_factory=list)
    single: list[Phase] = field(default_factory=list)

    @property
    def phases(self) -> list[Phase]:
        return [*self.batched, *self.single]

    @property
    def ratios(self) -> list[float]:
        return [many.rate / one.rate for many, one in zip(self.batched, self.single, strict=True)]


def write(
    out: Path, args: Namespace, phases: list[Phase], ratios: list[Ratio], figures: str, *, seconds: float
) -> None:
    """Writes the page."""
    out.write_text("\n".join(_page(args, phases, ratios, figures, seconds)) + "\n")
    print(out)


def _page(
    args: Namespace, phases: list[Phase], ratios: list[Ratio], figures: str, seconds: float
) -> Iterator[str]:
    command = " ".join(["python -m benchmarks.serving", *sys.argv[1:]])
    yield "# Serving under load\n"
    yield (
        f"`{command}`, commit {code_version()[:12]}, {time.strftime('%Y-%m-%d')}, {seconds / 60:.0f} minutes; "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}. "
        "Server and clients share the machine.\n"
    )
    yield (
        f"Requests in turns: an image, a question about an image, a caption; {args.requests} different ones of each. "
        "Every answer is compared with that of a single call for its seed: texts must be equal, images to within one "
        "level of 255. Lost are requests without an answer; wrong are answers that are not right for their request.\n"
    )
    yield "## Mixed requests\n"
    yield (
        "| load | seconds | right answers | a second | 429 | other | lost | wrong | median ms | 95 % | 99 % | "
        "memory, MB: start, most, end |"
    )
    yield "|" + " --- |" * 12
    for phase in phases:
        other = sum(count for status, count in phase.statuses.items() if status not in (200, 429))
        milliseconds = [f"{1000 * phase.percentile(share):.0f}" for share in (0.5, 0.95, 0.99)]
        memory = f"{phase.rss[0]:.0f}, {max(phase.rss):.0f}, {phase.rss[-1]:.0f}"
        yield (
            f"| {phase.name} | {phase.seconds:.0f} | {phase.statuses[200] - phase.wrong} | {phase.rate:.1f} | "
            f"{phase.statuses[429]} | {other} | {sum(phase.lost.values())} | {phase.wrong} | "
            f"{' | '.join(milliseconds)} | {memory} |"
        )
    yield ""
    yield from _memory(phases)
    yield "## Batching on and off\n"
    yield (
        f"{max(args.clients)} clients in a closed loop, batches of up to {args.max_batch_size} against one at a time: "
        f"two servers, loaded in turns, {args.rounds} rounds of {args.seconds / 2:.0f} s each. Right answers a second, "
        "medians; the ratio is of a round's two, its bounds the lowest and highest.\n"
    )
    yield "| requests | batched | one at a time | ratio | lowest to highest | lost | wrong |"
    yield "|" + " --- |" * 7
    for ratio in ratios:
        many, one = (
            statistics.median(phase.rate for phase in some) for some in (ratio.batched, ratio.single)
        )
        lost, wrong = sum(sum(p.lost.values()) for p in ratio.phases), sum(p.wrong for p in ratio.phases)
        yield (
            f"| {ratio.kind} | {many:.1f} | {one:.1f} | {statistics.median(ratio.ratios):.2f} | "
            f"{min(ratio.ratios):.2f} to {max(ratio.ratios):.2f} | {lost} | {wrong} |"
        )
    yield ""
    yield from _batches(figures)


def _memory(phases: list[Phase]) -> Iterator[str]:
    """How the server's memory went over the open loop, in quarters."""
    rss = next(phase.rss for phase in phases if phase.name.startswith("open"))
    size = max(len(rss) // 4, 1)
    quarters = [f"{statistics.mean(rss[start : start + size]):.0f}" for start in range(0, len(rss), size)][:4]
    yield f"Memory over the open loop, means of its quarters: {', '.join(quarters)} MB.\n"


def _batches(figures: str) -> Iterator[str]:
    """Mean batch sizes, by the server's own figures."""
    found = {}
    for part in ("sum", "count"):
        for verb, value in re.findall(rf'ddit_batch_size_{part}{{verb="(\w+)"}} ([\d.e+]+)', figures):
            found.setdefault(verb, {})[part] = float(value)
    means = [f"{verb} {each['sum'] / each['count']:.1f}" for verb, each in sorted(found.items())]
    yield f"Mean batch over all phases of mixed requests: {', '.join(means)}."
