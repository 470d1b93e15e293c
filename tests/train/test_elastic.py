"""A node of two is lost: torchrun goes on with the other, with the losses of a run that had one from the start."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
QUICK = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
NUM_STEPS = 40


def options(root: Path, run: Path) -> list[str]:
    changes = [
        f"out={run}",
        f"max_steps={NUM_STEPS}",
        "init=null",
        "report.tensorboard=false",
        "report.log_every=1",
    ]
    changes += ["report.checkpoint_steps=2", "report.num_held_out=0"]
    changes += ["optimizer.name=adamw", "optimizer.lr=3e-5", "compute_dtype=float32", "data.num_workers=0"]
    named = [part for change in changes for part in ("--set", change)]
    return ["-m", "ddit.train", "tiny-stage1", "--root", str(root), *named]


def losses(run: Path) -> dict[int, float]:
    """By step; of a step that was done twice the later."""
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []
    return {line["step"]: line["total"] for line in map(json.loads, lines) if "total" in line}


def node(port: int, arguments: list[str], log: Path, *, is_host: bool) -> subprocess.Popen[bytes]:
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "elastic"]
    conf = ["--rdzv-conf", f"{QUICK},is_host={str(is_host).lower()}", "--local-addr", "127.0.0.1"]
    sizes = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
    with log.open("w") as file:
        return subprocess.Popen(
            [*TORCHRUN, *sizes, *rendezvous, *conf, *arguments],
            stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_when_a_node_is_lost(root: Path, tmp_path: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [node(port, options(root, run), tmp_path / f"log{index}", is_host=index == 0) for index in (0, 1)]
    try:
        deadline = time.monotonic() + 120
        while max(losses(run), default=0) < 5:
            is_running = nodes[0].poll() is None and time.monotonic() < deadline
            assert is_running, (tmp_path / "log0").read_text()[-3000:]
            time.sleep(0.1)
        ranks = subprocess.run(["pgrep", "-P", str(nodes[1].pid)], capture_output=True, text=True, check=True)
        for process in [nodes[1].pid, *map(int, ranks.stdout.split())]:
            os.kill(process, signal.SIGKILL)
        lost_at = max(losses(run))
        assert nodes[0].wait(180) == 0, (tmp_path / "log0").read_text()[-3000:]
    finally:
        for process in nodes:
            process.kill()
    assert lost_at < NUM_STEPS - 2, "the node was lost too late"

    done = subprocess.run(
        [sys.executable, *options(root, alone)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0
    expected = losses(alone)
    assert sorted(expected) == list(range(1, NUM_STEPS + 1))
    assert losses(run) == pytest.approx(expected, rel=2e-5)  # the log has six digits
