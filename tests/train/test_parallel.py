import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(root: Path) -> None:
    def losses(launcher: list[str]) -> list[float]:
        out = root / "mini-image"
        command = [
            *launcher,
            "-m",
            "ddit.train",
            "tiny-image",
            "--root",
            str(root),
            "--set",
            "compute_dtype=float32",
        ]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        out.rename(root / f"mini-image-{len(launcher)}")
        return [line["total"] for line in lines if "total" in line]

    one = losses([sys.executable])
    two = losses([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"])
    assert len(one) == 4
    assert two == pytest.approx(one, abs=2e-5)
