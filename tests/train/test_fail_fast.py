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


def run(root: Path, folder: Path, fault: str, *, others: str | None = None, num_ranks: int = 4) -> End:
    changes = ["init=null", "max_steps=2000", "report.tensorboard=false", "data.num_workers=1"]
    changes += [f"out={folder / 'run'}", "report.grid_every=100000", "report.evaluate_every=100000"]
    options = [part for change in changes for part in ("--set", change)]
    environment = {k: v for k, v in os.environ.items() if k != "DDIT_DEBUG"} | {
        "OMP_NUM_THREADS": "1",
        "DDIT_FAULT": f"step,{fault},{FAILING}",
        "DDIT_FAULT_FILE": str(folder / "fault"),
    }
    if others is not None:
        environment["DDIT_OTHERS"] = f"step,{others}"
    command = [sys.executable, *LAUNCHER, str(num_ranks), str(FAULTY), "train", "tiny-stage1"]
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
