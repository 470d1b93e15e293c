"""What a benchmark asks: one question about one image; and how to read the official data sets' files."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ddit.world import Scene

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        id: unique within the task.
        image: its file.
        question: None asks for a caption.
        truth: what the scorer compares with, as JSON values; `answer` is the right one, `kind` its category.
        scene: what the image shows, if the small world made it.
    """

    id: str
    image: Path
    question: str | None
    truth: Mapping[str, Any]
    scene: Scene | None = None


class Figure(NamedTuple):
    """One number of a table.

    Attributes:
        value: a share from 0 to 1, except for CIDEr and MME's points.
        num: samples that it is measured on.
        baseline: what always giving the most common right answer would reach, where that means something.
        is_share: whether `value` is a mean of `num` scores from 0 to 1, and so has a sampling error.
    """

    name: str
    value: float
    num: int
    baseline: float | None = None
    is_share: bool = True

    @property
    def spread(self) -> float | None:
        """Half the width of the 95 % interval of a share (normal approximation, samples taken as independent)."""
        if not self.is_share or not self.num:
            return None
        return 1.96 * (max(self.value * (1 - self.value), 0.0) / self.num) ** 0.5


class TaskScore(NamedTuple):
    """Each item's score, in order, and the task's figures, the headline first."""

    scores: list[float]
    figures: list[Figure]


def mean(values: Iterable[float]) -> float:
    """0 for no values."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


class ImageIndex:
    """The images of a folder and all folders in it, by file name or by name without suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ValueError(f"no such folder of images: '{folder}'")
        self._found: dict[str, Path] = {}
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    self._found.setdefault(name, path)
                    self._found.setdefault(path.stem, path)

    def find(self, *names: str) -> Path:
        """The image of the first name that there is; `ValueError` if there is none."""
        for name in names:
            if name in self._found:
                return self._found[name]
        raise ValueError(f"no image {' or '.join(names)} in '{self.folder}'")


def find_file(folder: Path, *patterns: str) -> Path:
    """The one file of a folder that matches a pattern, the first pattern first; `ValueError` if it is not one."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"'{folder}' has {len(found)} files {pattern}: {', '.join(path.name for path in found)}"
            )
        if found:
            return found[0]
    raise ValueError(f"'{folder}' has no file {' or '.join(patterns)}")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A file of one JSON object a line, without empty lines; `ValueError` that names the line if it is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"no such file: '{path}'") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"'{path}', line {number} is not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"'{path}', line {number} is not a JSON object")
        entries.append(entry)
    return entries


def require(entry: Mapping[str, Any], key: str, path: Path) -> Any:
    """`entry[key]`; `ValueError` that names the file and the key if it is missing."""
    try:
        return entry[key]
    except (KeyError, TypeError):
        raise ValueError(f"'{path}': an entry has no {key!r}: {str(entry)[:80]}") from None
