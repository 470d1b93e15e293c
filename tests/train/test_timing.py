"""Where the time of a run goes: the parts of a step in the log, and the trace of its steps."""

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddit.config.overrides import override_run
from ddit.config.runs import DualRun, ReportConfig
from ddit.train.log import read_log
from ddit.train.loop import train
from ddit.train.timing import PARTS, Profiler, StepTimer


def test_a_part_is_counted_without_the_parts_within_it() -> None:
    timer = StepTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.part("forward"):
            time.sleep(0.01)
            with timer.part("encode"):
                time.sleep(0.05)
            time.sleep(0.01)
        time.sleep(0.03)
        timer.end_step()
    seconds = timer.summary()
    assert seconds.keys() == {"time_encode", "time_forward"}
    assert 0.02 <= seconds["time_forward"] < 0.04
    assert 0.05 <= seconds["time_encode"] < 0.08
    assert timer.summary() == {}


def test_waiting_for_batches_is_data() -> None:
    timer = StepTimer(torch.device("cpu"))

    def slow():
        for item in range(3):
            time.sleep(0.02)
            yield item

    items = []
    for item in timer.waiting(slow()):
        items.append(item)
        timer.end_step()
    assert items == [0, 1, 2]
    seconds = timer.summary()
    assert 0.02 <= seconds["data_wait"] < 0.05
    assert seconds["time_data"] == pytest.approx(seconds["data_wait"], abs=0.005)


def test_the_log_has_the_time_of_each_part(joint: DualRun) -> None:
    start = time.perf_counter()
    out = train(replace(joint, report=replace(joint.report, log_every=2)))
    seconds = time.perf_counter() - start
    lines = [event for event in read_log(out / "log.jsonl") if "pairs_per_second" in event]
    assert len(lines) == 2
    for line in lines:
        parts = [line[f"time_{name}"] for name in PARTS]
        assert all(part > 0 for part in parts)
        assert 2 * sum(parts) < seconds
        assert 0 < line["data_wait"] <= line["time_data"] * 1.5
        assert ("peak_memory_gib" in line) == torch.cuda.is_available()


def test_steps_are_traced_with_their_parts(plain: DualRun) -> None:
    plain = override_run(plain, ["report.profile_steps=[1,3]"])
    out = train(plain)
    with gzip.open(out / "trace-1-3.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    for part in PARTS:
        assert part in names
    assert names.count("optimizer") == 2  # of the four steps


def test_a_run_that_ends_within_its_trace_writes_what_there_is(tmp_path: Path) -> None:
    profiler = Profiler((0, 5), tmp_path, torch.device("cpu"))
    profiler.before_step(0)
    profiler.after_step(1)
    assert not profiler.path.exists()
    profiler.close()
    profiler.close()
    assert profiler.path.stat().st_size > 0


def test_steps_to_trace_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"report\.profile_steps is \[3, 3\]: the second"):
        ReportConfig(profile_steps=(3, 3))
