"""The kit for a first GPU: every part ends at its limit with those it started, and leaves what it printed."""

import argparse
import sys
import time
from pathlib import Path

from tools.gpu_kit import DDIT, ROOT, Outcome, Part, list_parts, run_part, shown

STARTS_ANOTHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked about counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_part_is_cut_off_with_what_it_started(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = run_part(Part("slow", [sys.executable, "-c", STARTS_ANOTHER], 2), 2, tmp_path)
    assert outcome.ending == "cut off after 2 s"
    assert time.monotonic() - start < 20
    end = time.monotonic() + 5
    while is_running(int(outcome.text)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(int(outcome.text))


def test_a_part_that_fails_says_how(tmp_path: Path) -> None:
    outcome = run_part(
        Part("wrong", [sys.executable, "-c", "print(1); raise SystemExit(3)"], 30), 30, tmp_path
    )
    assert outcome[:2] == ("exit code 3", "1\n")


def test_reports_are_shown_as_they_are_and_other_output_as_printed() -> None:
    part = Part("doctor", [], 1, is_markdown=True)
    report = shown(part, Outcome("ok", "ok  a line of progress\n## Report\n\n| a |\n", 1.2))
    assert report == "## doctor: ok, 1 s\n\n### Report\n\n| a |\n"
    cut = shown(part, Outcome("cut off after 5 s", "1%\r2%\n" * 200, 5))
    assert cut.splitlines()[2:5] == ["```text", "(80 lines left out)", "2%"]


def test_the_parts_fit_into_the_time_and_name_what_there_is() -> None:
    options = argparse.Namespace(device="cuda", published="there")
    parts = list_parts(options, Path("out"))
    assert sum(part.limit for part in parts[:5]) <= 420  # what is missed most comes to its end
    for part in parts:
        assert part.command[0] == sys.executable
        for word in part.command:
            if word.startswith("tests/"):
                assert (ROOT / word).exists()
    assert parts[0].command[: len(DDIT)] == DDIT
    assert (ROOT / "benchmarks/on_device.py").is_file()
