"""What a run leaves behind to be looked at, and that going on with a run leaves no step twice."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddit.config.runs import ReportConfig
from ddit.train.log import RunLog, read_log

QUIET = ReportConfig(tensorboard=False)


def steps(out: Path) -> list[int]:
    return [event["step"] for event in read_log(out / "log.jsonl")]


def test_going_on_from_a_step_drops_the_lines_after_it(tmp_path: Path) -> None:
    with RunLog(tmp_path, 10, unit="step") as log:
        for step in range(1, 7):
            log.event(step=step, total=1.0 / step)
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "tot')  # a kill in the middle of a line
    with RunLog(tmp_path, 10, unit="step", start=4) as log:
        log.event(step=5, total=0.5)
    events = read_log(path)
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5]
    assert events[3]["total"] == 0.25
    assert events[4]["total"] == 0.5
    assert events[4]["seconds"] >= events[3]["seconds"]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_from_the_start_begins_its_log_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLog(tmp_path, 3, unit="chunk") as log:
            log.event(loss=1.0)
    assert len(read_log(tmp_path / "log.jsonl")) == 1


def test_a_rate_comes_with_the_model_flop_utilisation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, 3, unit="step", report=QUIET, flops_per_unit=2e9, peak_flops=1e12) as log:
        log.event(step=1, total=0.5, pairs_per_second=150.0)
        log.event(step=1, uptake=0.1)
        log.advance()
    first, second = read_log(tmp_path / "log.jsonl")
    assert first["mfu"] == pytest.approx(0.3)
    assert "mfu" not in second


def test_loss_rate_and_utilisation_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, 3, unit="step", report=QUIET, flops_per_unit=2e9, peak_flops=1e12) as log:
        log.event(step=1, total=0.5, grad_norm=3.0, pairs_per_second=150.0)
        log.event(step=1, uptake=0.25)
    (last,) = capsys.readouterr().err.splitlines()  # no terminal: a line, not a bar
    assert "loss=0.5" in last
    assert "pairs/s=150" in last
    assert "mfu=30.0%" in last
    assert "1/3" in last
    assert "uptake" not in last


def test_tensorboard_files_hold_the_figures_of_every_start(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, 9, unit="step", report=ReportConfig()) as log:
        for step in (1, 2, 3):
            log.event(step=step, total=float(step))
    time.sleep(1.1)  # the files are read in the order of their names, which begin with a second
    with RunLog(tmp_path, 9, unit="step", start=2, report=ReportConfig()) as log:
        log.event(step=3, total=30.0)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("total")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_a_run_goes_on_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with RunLog(tmp_path, 3, unit="step", report=ReportConfig()) as log:
        log.event(step=1, total=0.5)
    assert "no TensorBoard files: pip install 'ddit[train]'" in capsys.readouterr().err
    assert steps(tmp_path) == [1]


def test_weights_and_biases_gets_the_same_figures_under_one_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    inits: list[dict[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        inits.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    report = ReportConfig(tensorboard=False, wandb_project="images")
    for start in (0, 1):
        with RunLog(tmp_path / "run", 3, unit="step", start=start, report=report, config={"seed": 1}) as log:
            log.event(step=start + 1, total=0.5)
    assert calls == [(1, {"total": 0.5}), "end", (2, {"total": 0.5}), "end"]
    assert inits[0]["project"] == "images"
    assert inits[0]["name"] == "run"
    assert inits[0]["config"] == {"seed": 1}
    assert inits[0]["id"] == inits[1]["id"]


def test_weights_and_biases_asked_for_but_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"report\.wandb_project is 'images': pip install wandb"):
        RunLog(tmp_path, 3, unit="step", report=ReportConfig(wandb_project="images"))


@pytest.mark.slow
def test_trackio_has_one_run_for_all_starts(
    tmp_path: Path,
) -> None:
    pytest.importorskip("trackio")
    # in a process of its own: the library reads where its files go when it is imported
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ddit.config.runs import ReportConfig\n"
        "from ddit.train.log import RunLog\n"
        "report = ReportConfig(tensorboard=False, trackio_project='images')\n"
        "for start in (0, 2):\n"
        "    with RunLog(Path('run'), 4, unit='step', start=start, report=report, config={'lr': 0.1}) as log:\n"
        "        for step in (start + 1, start + 2):\n"
        "            log.event(step=step, total=1.0 / step)\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "images.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(values)["total"]) for _, step, values in rows] == [
        (n, 1.0 / n) for n in (1, 2, 3, 4)
    ]
    assert {name for name, _, _ in rows} == {f"run-{(tmp_path / 'run' / 'trackio_id').read_text()}"}


def test_trackio_that_is_missing_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"report\.trackio_project is 'images': pip install trackio"):
        RunLog(tmp_path, 3, unit="step", report=ReportConfig(trackio_project="images"))
