"""What a run writes: its predictions, and a summary that names the model and the code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ddit
from ddit.eval.items import Figure

SUMMARY_FILE = "summary.json"
PREDICTIONS_FILE = "predictions.jsonl"
TABLE_HEAD = "| task | figure | value | 95 % | number | commonest answer |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Summary:
    """One task's result.

    Attributes:
        figures: the headline first; none if the images are to be scored elsewhere.
        num_samples: images, answers or captions.
        seconds: wall-clock time of the task, without loading the model.
        about: what made it: model and its hash, commit, seed, data, decoding.
        note: what is left to do.
    """

    task: str
    figures: list[Figure]
    num_samples: int
    seconds: float
    about: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def rows(self) -> list[str]:
        """The table's rows, in Markdown."""
        rows = []
        for figure in self.figures:
            digits = 3 if figure.value < 10 else 1
            spread = "" if figure.spread is None else f"± {figure.spread:.3f}"
            baseline = "" if figure.baseline is None else f"{figure.baseline:.3f}"
            value = f"{figure.value:.{digits}f}"
            rows.append(f"| {self.task} | {figure.name} | {value} | {spread} | {figure.num} | {baseline} |")
        return rows

    def to_json(self) -> dict[str, Any]:
        figures = [
            {"name": f.name, "value": f.value, "num": f.num, "spread": f.spread, "baseline": f.baseline}
            for f in self.figures
        ]
        data = {"task": self.task, "num_samples": self.num_samples, "seconds": round(self.seconds, 2)}
        return {**data, "figures": figures, **({"note": self.note} if self.note else {}), **self.about}


def model_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of a model folder's safetensors files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def code_version() -> str:
    """The commit, with "+changes" if files differ from it, where ddit runs from its own checkout; else its version."""
    package = Path(ddit.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() / "src" / "ddit" != package:
            return ddit.__version__
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ddit.__version__


def check_free(folder: Path) -> None:
    """`ValueError` if a task's folder exists and is not that of an earlier run, which would be replaced."""
    if folder.exists() and not (folder / SUMMARY_FILE).is_file():
        raise ValueError(f"'{folder}' exists and is not an earlier run's: it is left alone")


def write_report(folder: Path, summary: Summary, predictions: Iterable[Mapping[str, Any]]) -> None:
    """Writes `predictions.jsonl` and `summary.json`."""
    with (folder / PREDICTIONS_FILE).open("w", encoding="utf-8") as file:
        for line in predictions:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    text = json.dumps(summary.to_json(), indent=2, ensure_ascii=False)
    (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
