"""Times arms in turns, and counts their evaluations of the model, their FLOPs and the memory of their tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddit.eval.intervals import wilson

WITHIN = 0.01
"""How much lower a score may be and still count as equal."""


class Score(NamedTuple):
    """A share of right outputs, and half the width of its 95 % interval (Wilson)."""

    value: float
    spread: float


def half_width(share: float, num: int) -> float:
    """Half the width of Wilson's interval of a share."""
    low, high = wilson(share, num)
    return (high - low) / 2


Run = Callable[[range], list]
"""Makes the samples of these numbers; gives their outputs."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way of sampling.

    Attributes:
        part: what it has that the arm `after` has not; "" for the rivals.
        after: label of the arm that it adds to.
        batch: samples at a time.
        count: samples a round.
        run: called with numbers of a round's samples.
        counted: the module whose calls are the evaluations, a row a sample.
        dtype: of its matrix products.
        scale: evaluations of the whole task over those of a call, if calls are cut short; time and FLOPs are scaled.
        counted_run: does the same without compiled code, which hides its products from the FLOP counter.
    """

    label: str
    part: str
    after: str
    batch: int
    count: int
    run: Run
    counted: nn.Module
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    counted_run: Run | None = None


@dataclass
class Result:
    """What was measured of an arm, a sample: evaluations, FLOPs, seconds of each round; MB of tensors at the peak."""

    arm: Arm
    evaluations: float = 0.0
    flops: float = 0.0
    peak: float | None = None
    seconds: list[float] = field(default_factory=list)
    outputs: list = field(default_factory=list)
    score: Score | None = None

    @property
    def second(self) -> float:
        return statistics.median(self.seconds)

    def is_no_worse(self, rival: Result) -> bool:
        """Whether its score is the rival's within one point, or higher, or there are no scores."""
        if self.score is None or rival.score is None:
            return True
        return self.score.value >= rival.score.value - WITHIN


class Clock(NamedTuple):
    """now: seconds. rates: GFLOP/s of this machine's matrix products, of each round, by dtype."""

    now: Callable[[], float]
    rates: dict[torch.dtype, list[float]]

    @classmethod
    def start(cls, *, cpu_time: bool) -> Clock:
        """cpu_time: processor time, for a busy machine and one thread."""
        return cls(time.process_time if cpu_time else time.perf_counter, {})

    def measure_rates(self, size: int = 1024) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(size, size).to(dtype)
            times = []
            for _ in range(3):
                start = self.now()
                torch.mm(a, a)
                times.append(self.now() - start)
            self.rates.setdefault(dtype, []).append(2 * size**3 / min(times) / 1e9)

    def rate(self, dtype: torch.dtype) -> float:
        return statistics.median(self.rates[dtype])


class EvaluationCounter:
    """Rows that a module was called with, all calls together."""

    def __init__(self, module: nn.Module) -> None:
        self.rows = 0
        self._handle = module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: Any, output: Any) -> None:
        tensors = (
            [output] if isinstance(output, Tensor) else output if isinstance(output, tuple) else [output[0]]
        )
        self.rows += len(next(part for part in tensors if isinstance(part, Tensor)))

    def __enter__(self) -> EvaluationCounter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()


def measure(
    arms: Sequence[Arm], clock: Clock, *, rounds: int, fresh: bool, arm_seconds: float, memory: bool = True
) -> dict[str, Result]:
    """All arms in turns, a round after the other, after a call of each that is not timed.

    fresh: each round has its own samples, and the outputs are kept; else all rounds have the first ones.
    arm_seconds: if samples are not fresh, an arm stops after the round that takes it past this time.
    """
    results = {arm.label: Result(arm) for arm in arms}
    for result in results.values():
        _warm_up(result, memory_within=arm_seconds if memory else 0)
    calls = dict.fromkeys(results, 0)
    evaluations = dict.fromkeys(results, 0)
    for turn in range(rounds):
        clock.measure_rates()
        for label, result in results.items():
            arm = result.arm
            if not fresh and sum(result.seconds) * arm.count / arm.scale > arm_seconds:
                continue
            first = turn * arm.count if fresh else 0
            with EvaluationCounter(arm.counted) as counter:
                start = clock.now()
                outputs = arm.run(range(first, first + arm.count))
                seconds = clock.now() - start
            result.seconds.append(seconds / arm.count * arm.scale)
            calls[label] += arm.count
            evaluations[label] += counter.rows
            result.evaluations = evaluations[label] / calls[label] * arm.scale
            if fresh:
                result.outputs += outputs
    return results


def _warm_up(result: Result, *, memory_within: float) -> None:
    """The first call of an arm, in which its FLOPs are counted, and unless that is slower, another for its memory."""
    arm, some = result.arm, range(result.arm.count)
    start = time.perf_counter()
    # the fused kernel of a CPU is not in the counter's list, the two plain products are
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (arm.counted_run or arm.run)(some)
    result.flops = counter.get_total_flops() / len(some) * arm.scale
    if arm.counted_run is not None:
        start = time.perf_counter()
        arm.run(some)
    if time.perf_counter() - start < memory_within:
        result.peak = peak_memory(lambda: arm.run(range(arm.batch)))


def peak_memory(work: Callable[[], object]) -> float:
    """The most MB of tensors that the allocator has given out at a time during `work`, beyond those before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        work()
    found = profiler.profiler
    assert found is not None
    assert found.kineto_results is not None
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    given = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        given += cast(Any, event).nbytes()
        peak = max(peak, given)
    return peak / 2**20
