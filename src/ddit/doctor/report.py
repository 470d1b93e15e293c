"""Checks, what they find, and the report of them: a table to be pasted into an issue."""

import gc
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

import ddit

Status = Literal["ok", "slow", "failed", "skipped"]
NO_GPU = "no GPU"
MOST_CHARACTERS = 300
"""Of an error, in the report."""


class Skipped(Exception):
    """Raised by a check that has nothing to check here; its text says why."""


class Outcome(NamedTuple):
    """What a check found: figures in a few words."""

    figure: str
    status: Status = "ok"


@dataclass(frozen=True)
class Bench:
    """What checks are given: the device, and a folder of their own that is gone afterwards."""

    device: torch.device
    folder: Path

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def need_gpu(self) -> None:
        """Raises Skipped where there is none."""
        if not self.is_gpu:
            raise Skipped(NO_GPU)

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)


class Check(NamedTuple):
    """One line of the report."""

    group: str
    name: str
    run: Callable[[Bench], Outcome]


@dataclass(frozen=True)
class Finding:
    """What came of a check, and the seconds that it took."""

    group: str
    name: str
    status: Status
    figure: str
    seconds: float


@contextmanager
def open_bench(device: torch.device) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ddit-doctor-") as folder:
        yield Bench(device, Path(folder))


def run_checks(checks: Sequence[Check], bench: Bench) -> Iterator[Finding]:
    """Runs checks one after the other; what one of them raises is a finding and ends that check alone."""
    for check in checks:
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of what it tries first
                outcome = check.run(bench)
                bench.synchronize()
        except Skipped as reason:
            outcome = Outcome(str(reason), "skipped")
        except Exception as error:
            text = " ".join(str(error).split())
            outcome = Outcome(f"{type(error).__name__}: {text[:MOST_CHARACTERS]}", "failed")
        yield Finding(check.group, check.name, outcome.status, outcome.figure, time.perf_counter() - start)
        gc.collect()
        if bench.is_gpu:
            try:
                torch.cuda.empty_cache()
            except RuntimeError:  # a device that has failed stays so; the checks to come say it
                continue


def to_markdown(findings: Sequence[Finding], device: torch.device) -> str:
    """The report: a line of what it is about, a table, a line of how it ended."""
    counts = {
        status: sum(f.status == status for f in findings) for status in ("ok", "slow", "failed", "skipped")
    }
    rows = [
        f"| {f.group} | {f.name} | {f.status} | {f.figure.replace('|', '/')} | {f.seconds:.1f} |"
        for f in findings
    ]
    return "\n".join([
        f"## ddit doctor: {device}",
        "",
        f"ddit {ddit.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.platform()}",
        "",
        "| part | check | result | figure | s |",
        "|---|---|---|---|---|",
        *rows,
        "",
        ", ".join(f"{count} {status}" for status, count in counts.items())
        + f"; {sum(f.seconds for f in findings):.0f} s",
    ])  # fmt: skip


def timed(work: Callable[[], object], bench: Bench, *, seconds: float = 0.2) -> float:
    """Seconds of one call, the best of those that fit into so much time; one call before is not counted."""
    work()
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        bench.synchronize()
        start = time.perf_counter()
        work()
        bench.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def in_group(group: str, checks: dict[str, Callable[..., Outcome]]) -> list[Check]:
    """Checks by their names."""
    return [Check(group, name, run) for name, run in checks.items()]
