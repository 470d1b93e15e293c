"""Tries what a newcomer tries, and writes into docs/first_minutes.md what comes back: python tools/first_minutes.py

Each try is a heading, a comment that says what is right, and a command; the tool writes the output and the verdict
below it. The comment is one of

    <!-- answer: two | 2 -->                                 the last line is one of these, by VQA's normalisation
    <!-- shows: [{"class": "car", "count": 1}] -->           the image shows it, in GenEval's form, by the wide detector
    <!-- nothing is right -->                                what no model of a world can know: a warning is right
"""

import io
import json
import re
import shlex
import sys
import tempfile
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddit.cli import main
from ddit.eval.wide_world import is_right
from ddit.images import fit_image, read_image
from ddit.world import Prompt, find_faults
from ddit.world.wide.checked import detect_checked

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "first_minutes.md"
_TRY = re.compile(
    r"(?P<head>## \d+\. (?P<name>[^\n]+)\n\n<!-- (?P<truth>[^\n]+) -->\n```sh\n(?P<command>[^\n]+)\n```\n)"
    r"(?P<result>.*?)(?=\n## |\Z)",
    re.DOTALL,
)
_WARNING = "ddit: warning: "
_COUNT = re.compile(r"^Of \d+ tries .*$", re.MULTILINE)


class Try(NamedTuple):
    """What is tried, what is right, and what the page says came back."""

    name: str
    truth: str
    command: str
    result: str


def read_page(text: str) -> list[Try]:
    return [Try(m["name"], m["truth"], m["command"], m["result"].strip()) for m in _TRY.finditer(text)]


def run_all(text: str, folder: Path) -> list[str]:
    """The results of a page's tries, one after the other, as it has them; the folder is empty at first.

    The page's first command comes before all tries.
    """
    (folder / "docs").symlink_to(ROOT / "docs")
    _run(text[text.index("```sh\n") + 6 :].partition("\n```")[0], folder)
    results = []
    for each in read_page(text):
        lines = _run(each.command, folder)
        results.append("```text\n" + "\n".join(lines) + "\n```\n" + _judge(each.truth, lines, folder))
    return results


def _run(command: str, folder: Path) -> list[str]:
    """What a command of ddit says, its warnings and errors first; it runs in this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, shlex.split(command)
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            main()
    except SystemExit:
        pass
    finally:
        sys.argv = before
    said = [line for line in err.getvalue().splitlines() if line.startswith("ddit: ")]
    return [line.rstrip() for line in [*said, *out.getvalue().splitlines()] if line.strip()]


def _judge(truth: str, lines: list[str], folder: Path) -> str:
    """A line on what came back."""
    warned = any(line.startswith(_WARNING) for line in lines)
    kind, _, wanted = truth.partition(": ")
    if kind == "nothing is right":
        return "**Warned**, as it should be." if warned else "**Nonsense in silence.**"
    last = lines[-1] if lines else ""
    if kind == "shows":
        pixels = np.array(fit_image(read_image(folder / last), 64, 64))
        faults = find_faults(Prompt("", "", json.loads(wanted)), detect_checked(pixels[None])[0])
        verdict = f"**Wrong**: {'; '.join(faults)}" if faults else "**Right**"
    else:
        answers = wanted.split(" | ")
        is_answer = any(is_right(one, last) for one in answers)
        verdict = "**Right**" if is_answer else f"**Wrong**: the answer is {' or '.join(answers)}"
    return f"{verdict}{', with a warning' if warned else ''}."


def rewrite(text: str) -> str:
    """The page with what comes back now."""
    with tempfile.TemporaryDirectory() as name:
        results = run_all(text, Path(name))
    left = iter(results)
    text = _TRY.sub(lambda found: f"{found['head']}{next(left)}\n", text)
    right = sum(result.rpartition("\n")[2].startswith(("**Right", "**Warned")) for result in results)
    warned = sum(result.endswith(", with a warning.") and "**Wrong**" in result for result in results)
    count = (
        f"Of {len(results)} tries {right} come back right, {warned} wrong with a warning, "
        f"and {len(results) - right - warned} wrong without one."
    )
    return _COUNT.sub(count, text)


if __name__ == "__main__":
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
