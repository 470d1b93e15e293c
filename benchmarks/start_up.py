"""From the shell to the first step of a command: `python benchmarks/start_up.py`.

Commands take turns, each in a new process. The first step is when the progress bar appears, on a pseudo-terminal.
Beside them, what cannot be avoided with these libraries: Python, PyTorch's import, transformers' T5's. Writes
start_up.md.
"""

import argparse
import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import torch
from PIL import Image

from ddit.eval.report import code_version
from ddit.world import PRESETS, make_scene, render

HERE = Path(__file__).parent
TORCH = "import torch"
T5 = "import gc; gc.disable(); import torch; from transformers import T5EncoderModel"


def until_first_step(command: list[str]) -> tuple[float, float]:
    """Seconds until the command writes to its terminal, or ends, and until it ends."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))  # in a window without columns nothing is drawn
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its)
    os.close(its)
    said = _read(ours, 1)
    first = time.perf_counter() - began
    while part := _read(ours, 4096):
        said += part
    os.close(ours)
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)}: {said.decode()}")
    return first, time.perf_counter() - began


def _read(terminal: int, count: int) -> bytes:
    """What was written to a terminal; nothing once its last process has ended."""
    try:
        return os.read(terminal, count)
    except OSError:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "start_up.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "scene.png"
        Image.fromarray(render(make_scene(PRESETS["fixed"], "test", 0))).save(image)
        ddit = [sys.executable, "-m", "ddit"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", TORCH],
            "import torch and transformers' T5, no collections": [sys.executable, "-c", T5],
            "ddit --help": [*ddit, "--help"],
            "ddit caption IMAGE": [*ddit, "caption", str(image)],
            "ddit ask IMAGE QUESTION": [*ddit, "ask", str(image), "what is this?"],
            "ddit generate PROMPT": [*ddit, "generate", "a red car", "--output", folder, "--overwrite"],
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(args.rounds + 1):
            for name, command in commands.items():
                measured = until_first_step(command)
                if turn:  # the first round fills the disk's cache
                    times[name].append(measured)
    lines = [
        "# Start-up",
        "",
        f"`python benchmarks/start_up.py`, commit {code_version()}, {time.strftime('%Y-%m-%d')}; {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}; {args.rounds} rounds.",
        "",
        "Seconds, median (lowest to highest). The first step is done when the progress bar appears.",
        "",
        "| command | to the first step | to the end |",
        "| --- | --- | --- |",
    ]
    for name, pairs in times.items():
        first, end = zip(*pairs, strict=True)
        steps = _figure(first) if name.startswith("ddit ") and "--help" not in name else ""
        lines.append(f"| `{name}` | {steps} | {_figure(end)} |")
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _figure(seconds: tuple[float, ...]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
