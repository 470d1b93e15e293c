"""Everything that has never run on a GPU, in eight minutes: one report in markdown, to be pasted into an issue.

    .venv/bin/python tools/gpu_kit.py [--published PATH] [--out gpu_report.md]

Each part has a time limit of its own and is cut off at it; what it printed until then stays in the report. PATH is your
own checkout of github.com/zijieli-Jlee/Dual-Diffusion, whose model is then measured beside ours.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DDIT = [sys.executable, "-m", "ddit"]
MOST_LINES = 120
"""Of a part's output, the last ones."""


class Part(NamedTuple):
    """A command, the seconds that it may take, and whether its output is markdown already."""

    name: str
    command: list[str]
    limit: float
    is_markdown: bool = False


class Outcome(NamedTuple):
    """How a part ended, and all that it printed."""

    ending: str
    text: str
    seconds: float


def list_parts(options: argparse.Namespace, folder: Path) -> list[Part]:
    """In order of what is missed most if the time runs out."""
    device = ["--device", options.device]
    doctor, verify = [*DDIT, "doctor", *device], [*DDIT, "verify", str(ROOT / "tests/data/tiny"), *device]
    bench = [sys.executable, "-m", "benchmarks.on_device"]
    published = ["--published", options.published] if options.published else []
    tests = ["tests/gpu/test_models.py", "tests/model/test_offload.py"]
    quiet = ["-q", "-p", "no:cacheprovider", "--show-capture=no"]
    return [
        Part("doctor", [*doctor, "--only", "machine", "--only", "kernels", "--only", "model"], 110, True),
        Part("verify, float32", verify, 20),
        Part("verify, bfloat16", [*verify, "--dtype", "bfloat16", "--atol", "0.1"], 20),
        Part("doctor, real width", [*doctor, "--only", "real-size"], 110, True),
        Part("doctor, training", [*doctor, "--only", "training"], 110, True),
        Part("benchmark at 20 M and 300 M", [*bench, *device, *published], 90, True),
        Part("tests for GPUs", [sys.executable, "-m", "pytest", "-m", "gpu", *quiet, *tests], 90),
        Part("mini's chain, as far as it comes", [*DDIT, "train", "mini", "--root", str(folder / "mini")], 480),
    ]  # fmt: skip


def run_part(part: Part, limit: float, folder: Path) -> Outcome:
    """Runs a command in a process group of its own, which ends with it or at the limit."""
    start, path = time.monotonic(), folder / "output"
    with path.open("w+") as file:
        process = subprocess.Popen(
            part.command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            code = process.wait(limit)
            ending = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ending = f"cut off after {limit:.0f} s"
        end_group(process)
    text = path.read_bytes().decode(errors="replace")
    return Outcome(ending, text, time.monotonic() - start)


def end_group(process: subprocess.Popen, grace: float = 5.0) -> None:
    """Ends a process and those it started: asks, then kills."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue


def shown(part: Part, outcome: Outcome) -> str:
    """A part's section: a finished report as it is, any other output as it was printed."""
    lines = [line.rstrip("\r").split("\r")[-1] for line in outcome.text.rstrip("\n").split("\n")]
    table = next((i for i, line in enumerate(lines) if line.startswith("## ")), None)
    if part.is_markdown and table is not None:
        body = "\n".join("#" + line if line.startswith("##") else line for line in lines[table:])
    else:
        left_out = len(lines) - MOST_LINES
        first = [f"({left_out} lines left out)"] if left_out > 0 else []
        body = "\n".join(["```text", *first, *lines[-MOST_LINES:], "```"])
    return f"## {part.name}: {outcome.ending}, {outcome.seconds:.0f} s\n\n{body}\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--published", help="your checkout of the published code")
    parser.add_argument("--out", type=Path, default=Path("gpu_report.md"))
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together [default: 8]")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="parts whose names hold one of these")
    return parser.parse_args()


def main() -> int:
    options = parse()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    sections = [
        f"# First run on {options.device}\n\ncommit {commit.stdout.strip() or 'unknown'}, {platform.platform()}, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}\n"
    ]
    end, share, failed = time.monotonic() + 60 * options.minutes, options.minutes / 8, 0
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as name:
        folder = Path(name)
        for part in list_parts(options, folder):
            if options.only and not any(text in part.name for text in options.only):
                continue
            left = end - time.monotonic()
            if left < 1:
                sections.append(f"## {part.name}: no time left\n")
                continue
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            outcome = run_part(part, min(part.limit * share, left), folder)
            print(f"{part.name}: {outcome.ending}", file=sys.stderr, flush=True)
            failed += outcome.ending.startswith("exit")
            sections.append(shown(part, outcome))
            options.out.write_text("\n".join(sections))
    options.out.write_text("\n".join(sections))
    print(options.out)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
