"""A rank of four fails in the middle of a run: the job ends within ten seconds, and its error is what is shown."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

FAULTY = Path(__file__).parent / "faulty.py"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
FAILING = 2


class End(NamedTuple):
    """seconds: from the fault to the end of the launcher. said: the lines of `ddit`. report: the launcher's."""

    seconds: float
    code: int
    said: list[str]
    report: str


def run(root: Path, folder: Path, fault: str, *settings: str, others: str | None = None) -> End:
    changes = [*settings]
    changes += ["init=null", "max_steps=2000", "report.tensorboard=false", "data.num_workers=1"]
    changes += [f"out={folder / 'run'}", "report.grid_every=100000", "report.evaluate_every=100000"]
    options = [part for change in changes for part in ("--set", change)]
    environment = {k: v for k, v in os.environ.items() if k != "DDIT_DEBUG"} | {
        "OMP_NUM_THREADS": "1",
        "DDIT_FAULT": f"step,{fault},{FAILING}",
        "DDIT_FAULT_FILE": str(folder / "fault"),
    }
    if others is not None:
        environment["DDIT_OTHERS"] = f"step,{others}"
    command = [sys.executable, *LAUNCHER, "4", str(FAULTY), "train", "tiny-stage1"]
    with (folder / "stderr").open("w") as stderr:
        done = subprocess.run(
            [*command, "--root", str(root), *options],
            stdout=stderr, stderr=stderr, env=environment, timeout=180, check=False,
        )  # fmt: skip
    ended, text = time.time(), (folder / "stderr").read_text()
    assert (folder / "fault").exists(), text[-3000:]
    said = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("ddit: ")]
    seconds = ended - float((folder / "fault").read_text())
    print(f"{fault}, others {others or 'waiting'}: {seconds:.1f} s, {said}")
    return End(seconds, done.returncode, said, text[text.index(said[0]) :] if said else text)


@pytest.mark.slow
@pytest.mark.parametrize("others", [None, "stuck"])
def test_a_rank_that_fails_ends_the_job_with_its_error(
    others: str | None, root: Path, tmp_path: Path
) -> None:
    end = run(root, tmp_path, "RuntimeError", others=others)
    assert end.code != 0
    assert end.said == [f"ddit: rank {FAILING}: RuntimeError: a fault (DDIT_DEBUG=1 shows where)"]
    cause = end.report.partition("Root Cause (first observed failure):")[2]
    assert "a fault" in cause, end.report[-3000:]  # the launcher's report has the error, too
    assert end.seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize("others", [None, "stuck"])
def test_a_rank_that_is_killed_ends_the_job_and_is_named(
    others: str | None, root: Path, tmp_path: Path
) -> None:
    end = run(root, tmp_path, "killed", others=others)
    assert end.code != 0
    assert len(end.said) == 1
    assert f"rank {FAILING}: process" in end.said[0]
    assert "has ended without a word" in end.said[0]
    assert end.seconds < 10


@pytest.mark.slow
def test_a_rank_that_does_nothing_ends_the_job_when_the_time_of_a_step_is_over(
    root: Path, tmp_path: Path
) -> None:
    end = run(root, tmp_path, "asleep", "parallel.step_timeout_s=4")
    assert end.code != 0
    assert len(end.said) == 1
    assert "another rank was not ready for 4 s (parallel.step_timeout_s" in end.said[0]
    assert 3 < end.seconds < 4 + 10


@pytest.mark.slow
def test_ranks_end_with_their_launcher(root: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "stderr"
    changes = [f"out={run}", "init=null", "max_steps=2000", "report.tensorboard=false", "report.log_every=1"]
    options = [part for change in changes for part in ("--set", change)]
    command = [
        sys.executable,
        *LAUNCHER,
        "2",
        "-m",
        "ddit.train",
        "tiny-stage1",
        "--root",
        str(root),
        *options,
    ]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    ranks = list(map(int, found.stdout.split()))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(ranks) == 2
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert "torchrun has ended" in log.read_text()
