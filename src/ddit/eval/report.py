"""What a run writes: its predictions, and a summary that names the model and the code."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import ddit
from ddit.eval.items import BASELINES, Figure
from ddit.model.familiarity import FILE

SUMMARY_FILE = "summary.json"
PREDICTIONS_FILE = "predictions.jsonl"
MAX_NAMED = 3
"""Corrupt samples that are named below the table."""
_NOT_WRITTEN = re.compile(r"[\x85\u2028\u2029\ud800-\udfff]")
_COLUMNS = ("task", "figure", "value", "95 % interval", "n", *BASELINES.values())
TABLE_HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


@dataclass(frozen=True)
class Summary:
    """One task's result.

    Attributes:
        figures: the headline first; none if the images are to be scored elsewhere.
        num_samples: images, answers or captions.
        seconds: wall-clock time of the task, without loading the model.
        about: what made it: model and its hash, commit, seed, data, decoding.
        notes: what of the data is left out, by what other rule samples are scored, what is left to do.
        corrupt: the samples that count as wrong since their image or question cannot be used, and why.
    """

    task: str
    figures: list[Figure]
    num_samples: int
    seconds: float
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    corrupt: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[str]:
        """The table's rows, in Markdown."""
        rows = []
        for figure in self.figures:
            digits = 3 if figure.value < 10 else 1
            values = (figure.value, *(figure.interval or ()))
            value, *limits = (f"{value:.{digits}f}" for value in values)
            baselines = (figure.baselines.get(name) for name in BASELINES)
            cells = ["" if baseline is None else f"{baseline:.{digits}f}" for baseline in baselines]
            rows.append(_row(self.task, figure.name, value, " to ".join(limits), f"{figure.num:,}", *cells))
        if self.corrupt:
            count = f"{len(self.corrupt):,}"
            rows.append(_row(self.task, "corrupt, counted as wrong", count, "", f"{self.num_samples:,}"))
        return rows

    def remarks(self) -> list[str]:
        """What stands below the table, a line each: the notes, and the first of the corrupt samples."""
        faults = [f"{self.task}: {note}" for note in self.notes]
        if self.corrupt:
            named = "; ".join(f"{name}: {fault}" for name, fault in islice(self.corrupt.items(), MAX_NAMED))
            rest = "" if len(self.corrupt) <= MAX_NAMED else f"; all of them are in {SUMMARY_FILE}"
            count = f"{len(self.corrupt):,} of {self.num_samples:,} samples"
            faults.append(f"{self.task}: {count} cannot be read and count as wrong: {named}{rest}")
        return faults

    def to_json(self) -> dict[str, Any]:
        figures = [figure.to_json() for figure in self.figures]
        data = {"task": self.task, "num_samples": self.num_samples, "seconds": round(self.seconds, 2)}
        said = {"notes": list(self.notes), "num_corrupt": len(self.corrupt), "corrupt": dict(self.corrupt)}
        return {**data, "figures": figures, **said, **self.about}


def _row(*cells: str) -> str:
    """A row of the table, filled up with empty cells."""
    return f"| {' | '.join([*cells, *[''] * (len(_COLUMNS) - len(cells))])} |"


def model_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of a model folder's files of weights, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(set(folder.rglob("*.safetensors")) - {folder / FILE}):
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
            file.write(_dump(line) + "\n")
    (folder / SUMMARY_FILE).write_text(_dump(summary.to_json(), indent=2) + "\n", encoding="utf-8")


def _dump(value: Any, indent: int | None = None) -> str:
    """JSON as text that can be written in UTF-8, and that any program splits into the same lines."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _NOT_WRITTEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
