import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_weights() -> None:
    options = ["--kills", "3", "--steps", "60", "--seconds", "3", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout[done.stdout.index("{") :])
    assert figures["kills"] == 3
    assert figures["tensors compared"] > 100
    assert figures["tensors that differ"] == 0
