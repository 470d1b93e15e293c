"""Damaged files of every format end in an announced error or in an image, and never in a crash."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 45


@pytest.mark.slow
def test_no_damaged_image_or_data_file_raises_anything_else() -> None:
    script = Path(__file__).parent / "fuzz.py"
    done = subprocess.run(
        [sys.executable, str(script), str(SECONDS), "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout)
    assert found["faults"] == 0
    assert found["files"] > 1000
    assert {"read", "not an image", "truncated image", "corrupt image", "refused"} <= found["outcomes"].keys()
