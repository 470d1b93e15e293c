"""Where the time of training goes: seconds of each part of a step, and a trace of a few steps by torch's profiler."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")

PARTS = ("data", "encode", "forward", "backward", "exchange", "optimizer")
_OTHER = "other"
_Stamp = float | torch.cuda.Event


class StepTimer:
    """Seconds of the parts of a step, each without the parts within it.

    On CUDA they are seconds of the device, by events that are read once they have passed: nothing waits for them. So a
    part that the device does while it is busy with the part before has no time of its own. `data` is what it takes to
    get a batch and to put it on the device, `exchange` what the ranks tell each other outside the backward pass, in
    which gradients are exchanged.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._part = _OTHER
        self._marks: list[tuple[str, _Stamp]] = []
        self._passed: deque[list[tuple[str, _Stamp]]] = deque()
        self._seconds: dict[str, float] = {}
        self._steps = self._asked = 0
        self._waited = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs within this context is counted as `name`, and shown so in a trace."""
        before = self._part
        self._mark(name)
        try:
            with torch.profiler.record_function(name):
                yield
        finally:
            self._mark(before)

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time that each takes to come is counted as data."""
        items = iter(items)
        while True:
            start = time.perf_counter()
            with self.part("data"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            self._waited += time.perf_counter() - start
            self._asked += 1
            yield item

    def end_step(self) -> None:
        """To be called after each step."""
        self._mark(_OTHER)
        self._passed.append(self._marks)
        self._marks = []
        while self._passed and _has_passed(self._passed[0][-1][1]):
            self._add(self._passed.popleft())

    def summary(self) -> dict[str, float]:
        """Since the last one, seconds a step: `time_data`, ..., of those steps that the device has ended; `data_wait`,
        for which this process stood still. And on CUDA the peak of tensors since then, `peak_memory_gib`."""
        values = {
            f"time_{name}": self._seconds[name] / self._steps for name in PARTS if name in self._seconds
        }
        if self._asked:
            values["data_wait"] = self._waited / self._asked
        if self.device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._seconds, self._steps, self._waited, self._asked = {}, 0, 0.0, 0
        self.reset_peak()
        return values

    def reset_peak(self) -> None:
        """To be called after what is not training."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _mark(self, name: str) -> None:
        self._part = name
        stamp: _Stamp = time.perf_counter()
        if self.device.type == "cuda":
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record(torch.cuda.current_stream(self.device))
        self._marks.append((name, stamp))

    def _add(self, marks: list[tuple[str, _Stamp]]) -> None:
        self._steps += 1
        for (name, start), (_, end) in itertools.pairwise(marks):
            self._seconds[name] = self._seconds.get(name, 0.0) + _seconds_between(start, end)


def _has_passed(stamp: _Stamp) -> bool:
    return not isinstance(stamp, torch.cuda.Event) or stamp.query()


def _seconds_between(start: _Stamp, end: _Stamp) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start


class Profiler:
    """Traces the steps from `first` to `last` - 1 of this process into `out`, for chrome://tracing or Perfetto."""

    def __init__(self, steps: tuple[int, int], out: Path, device: torch.device) -> None:
        self.first, self.last = steps
        self.path = out / f"trace-{self.first}-{self.last}.json.gz"
        self._device = device
        self._profile: torch.profiler.profile | None = None

    def before_step(self, step: int) -> None:
        """step: the steps done so far."""
        if self._profile is None and self.first <= step < self.last:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.start()

    def after_step(self, step: int) -> None:
        if step >= self.last:
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one, and writes it."""
        if self._profile is not None:
            self._profile.stop()
            self._profile.export_chrome_trace(str(self.path))
            self._profile = None
