"""The scripts for SLURM, with stand-ins for its commands: the signal ahead of the limit saves and queues again."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "slurm"
STAND_INS = {
    "scontrol": 'case "$1 $2" in "show hostnames") echo localhost;; *) echo "$@" >> "$CALLS";; esac',
    "srun": 'shift; exec "$@"',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{code}\n")
        (folder / name).chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node", "SLURM_NNODES": "1"}
    ours = {"DDIT_RANKS": "2", "DDIT_SLURM_FOLDER": str(SCRIPTS), "CALLS": str(tmp_path / "calls")}
    return os.environ | job | ours | {"PATH": path, "OMP_NUM_THREADS": "1"}


def job(environment: dict[str, str], root: Path, run: Path, max_steps: int) -> subprocess.Popen[bytes]:
    changes = [
        f"out={run}",
        f"max_steps={max_steps}",
        "init=null",
        "report.tensorboard=false",
        "report.log_every=1",
    ]
    options = [part for change in [*changes, "data.num_workers=1"] for part in ("--set", change)]
    command = ["bash", str(SCRIPTS / "train.sbatch"), "tiny-stage1", "--root", str(root), *options]
    with (run.parent / "log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


@pytest.mark.slow
def test_the_signal_saves_the_run_and_queues_the_job_again(
    environment: dict[str, str], root: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = job(environment, root, run, 2000)
    try:
        deadline = time.monotonic() + 90
        while not (run / "log.jsonl").exists() or '"step": 2' not in (run / "log.jsonl").read_text():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            assert first.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.2)
        first.send_signal(signal.SIGUSR1)
        assert first.wait(60) != 0
    finally:
        first.kill()
    log = (tmp_path / "log").read_text()
    assert log.count("ddit: stopped by a signal after") == 1, log[-3000:]
    assert (tmp_path / "calls").read_text() == f"requeue {os.getpid()}\n"
    saved = max(int(folder.name[5:]) for folder in run.glob("ckpt-????????"))
    assert saved >= 2

    second = job(environment, root, run, saved + 2)
    assert second.wait(90) == 0, (tmp_path / "log").read_text()[-3000:]
    assert (run / f"ckpt-{saved + 2:08d}").exists()
    assert (run / "export").is_dir()
    assert (tmp_path / "calls").read_text().count("requeue") == 1
