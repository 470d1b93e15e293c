"""Whatever a process of a command raises, at whatever moment: one line, an exit code, and an end within seconds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddit.data.world_files import WorldScenes, write_world
from ddit.world import PRESETS

FAULTY = Path(__file__).parent / "faulty.py"
LIMIT = 120
"""Seconds for all, most of which go by before the fault; what hangs, hangs for ever."""


class Ended:
    """A command that has come to its end."""

    def __init__(self, fault: str, arguments: list[object], num_ranks: int = 1) -> None:
        python = [sys.executable]
        if num_ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
            python += launcher
        environment = {k: v for k, v in os.environ.items() if k != "DDIT_DEBUG"} | {
            "OMP_NUM_THREADS": "1",
            "DDIT_FAULT": fault,
        }
        start = time.monotonic()
        done = subprocess.run(
            [*python, str(FAULTY), *map(str, arguments)],
            capture_output=True, text=True, env=environment, timeout=LIMIT, check=False,
        )  # fmt: skip
        self.seconds, self.code = time.monotonic() - start, done.returncode
        self.said = [
            line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("ddit: ")
        ]
        self.stderr = done.stderr

    def check(self, *, rank: int | None = None, fault: str = "") -> None:
        """The process that failed says why in one line, and the other ranks say at most that it has."""
        assert self.code != 0
        assert self.said, self.stderr[-3000:]
        mine = "ddit: " if rank is None else f"ddit: rank {rank}: "
        assert [line for line in self.said if line.startswith(mine)] == self.said[:1]
        assert fault in self.said[0]
        assert all(line.endswith(": another rank has ended") for line in self.said[1:])
        assert rank is not None or "Traceback" not in self.stderr  # torchrun shows its own


@pytest.fixture
def train_arguments(root: Path, tmp_path: Path) -> list[object]:
    changes = [
        f"out={tmp_path / 'run'}",
        "init=null",
        "max_steps=4",
        "report.tensorboard=false",
        "data.num_workers=1",
    ]
    return [
        "train",
        "tiny-stage1",
        "--root",
        root,
        *(part for change in changes for part in ("--set", change)),
    ]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    return write_world(tmp_path / "data", WorldScenes(PRESETS["fixed"], "train", 200), "json")


MOMENTS = ("opening", "first batch", "later batch", "step", "saving", "exporting")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "fault"), list(zip(MOMENTS, ["RuntimeError", "KeyError", "MemoryError"] * 2, strict=True))
)
def test_a_run_on_one_rank_ends_with_one_line(moment: str, fault: str, train_arguments: list[object]) -> None:
    Ended(f"{moment},{fault},0", train_arguments).check(fault=fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SystemExit", "killed", "exit"])
def test_a_run_whose_worker_goes_ends_with_one_line(fault: str, train_arguments: list[object]) -> None:
    Ended(f"later batch,{fault},0", train_arguments).check()


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "rank"), list(zip(MOMENTS, [0, 1, 0, 1, 0, 0], strict=True)))
def test_a_run_on_two_ranks_ends_with_the_line_of_the_one_that_failed(
    moment: str, rank: int, train_arguments: list[object]
) -> None:
    ended = Ended(f"{moment},RuntimeError,{rank}", train_arguments, 2)
    ended.check(rank=rank, fault="RuntimeError: a fault")


@pytest.mark.slow
def test_a_run_on_two_ranks_ends_when_a_worker_of_one_is_killed(train_arguments: list[object]) -> None:
    Ended("later batch,killed,1", train_arguments, 2).check(rank=1, fault="has died")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "fault"),
    [("checking", "MemoryError"), ("checking", "killed"), ("opening to check", "SystemExit")],
)
def test_a_check_ends_with_one_line(moment: str, fault: str, data_file: Path) -> None:
    Ended(f"{moment},{fault},0", ["data", "check", data_file, "--num-workers", 2]).check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "fault", "num_ranks"),
    [
        ("reading", "KeyError", 1),
        ("reading", "killed", 1),
        ("encoding", "MemoryError", 1),
        ("reading", "SystemExit", 2),
        ("writing", "RuntimeError", 2),
    ],
)
def test_precomputing_ends_with_one_line(
    moment: str, fault: str, num_ranks: int, data_file: Path, tmp_path: Path
) -> None:
    options = ["--vae", "mini", "--size", 64, "--shard-size", 20, "--batch-size", 5, "--num-workers", 1]
    arguments = ["data", "precompute", data_file, tmp_path / "latents", *options]
    ended = Ended(f"{moment},{fault},{num_ranks - 1}", arguments, num_ranks)
    ended.check(rank=1 if num_ranks == 2 else None, fault="has died" if fault == "killed" else fault)
