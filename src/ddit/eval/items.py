"""What a benchmark asks: one question about one image; and how to read the official data sets' files."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ddit.data.sources.finding import is_hidden
from ddit.eval.intervals import Interval, wilson
from ddit.files import list_names, read_text
from ddit.images import read_image
from ddit.world import Scene
from ddit.world.wide import WideScene

BASELINES = {
    "majority": "majority baseline",
    "first_two_words": "by first two words",
    "empty_background": "empty background",
}
"""Baselines of an answer's accuracy, and their heads in the table.

`majority`: always the most frequent right answer of those that are scored. `first_two_words`: the most frequent right
answer to questions that begin with the same two words. `empty_background`: the model's own answers about the scene's
background without its objects, for the small world.
"""


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        id: unique within the task.
        image: its file.
        question: None asks for a caption.
        truth: what the scorer compares with, as JSON values; `answer` is the right one, `kind` its category.
        scene: what the image shows, if a world made it.
        fault: why its image or question cannot be used; then it counts as wrong, whatever the model would say.
    """

    id: str
    image: Path
    question: str | None
    truth: Mapping[str, Any]
    scene: Scene | WideScene | None = None
    fault: str = ""


class TaskItems(NamedTuple):
    """What a benchmark asks.

    Attributes:
        notes: what of its files is left out, and why.
    """

    items: list[Item]
    notes: tuple[str, ...] = ()


class Figure(NamedTuple):
    """One number of a table.

    Attributes:
        value: a share from 0 to 1, except for CIDEr and MME's points.
        num: samples that it is measured on.
        baselines: what the rules of `BASELINES` reach by the same measure, where that means something.
        is_share: whether `value` is a mean of `num` scores from 0 to 1.
        limits: the 95 % interval of a value that is not a share, if there is a formula for it.
    """

    name: str
    value: float
    num: int
    baselines: Mapping[str, float] = MappingProxyType({})
    is_share: bool = True
    limits: Interval | None = None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval: Wilson's of a share, else `limits`; None without samples."""
        if not self.num:
            return None
        return wilson(self.value, self.num) if self.is_share else self.limits

    def to_json(self) -> dict[str, Any]:
        interval = None if self.interval is None else list(self.interval)
        own = {"name": self.name, "value": self.value, "num": self.num, "interval": interval}
        return {**own, "baselines": dict(self.baselines)}


class TaskScore(NamedTuple):
    """Each item's score, in order, and the task's figures, the headline first; notes say by what other rule."""

    scores: list[float]
    figures: list[Figure]
    notes: tuple[str, ...] = ()


def mean(values: Iterable[float]) -> float:
    """0 for no values."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def find_fault(item: Item) -> str:
    """Why an item's image or question cannot be used, in one line; "" if they can."""
    question = item.question
    if question is not None and not question.strip():
        return "the question is empty"
    if question is not None and re.search("[\\ud800-\\udfff]", question):
        return f"the question {question!r} holds half of a pair of surrogates"
    try:
        read_image(item.image)
    except UnicodeEncodeError:
        return f"the name {str(item.image)!r} holds half of a pair of surrogates"
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def find_file(folder: Path, *patterns: str) -> Path:
    """The one file of a folder that matches a pattern, the first pattern first; `ValueError` if it is not one."""
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))
        if len(found) > 1:
            raise ValueError(
                f"'{folder}' has {len(found)} files {pattern}: {', '.join(path.name for path in found)}; "
                "keep the one that is meant"
            )
        if found:
            return found[0]
    raise ValueError(f"'{folder}' has no file {' or '.join(patterns)}")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A file of one JSON object a line, or a JSON list of them; `ValueError` that names the line if it is not."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"no such file: '{path}'") from None
    if text.lstrip().startswith("["):
        parts = {0: text}
    else:  # a line ends with a newline and nothing else: U+2028 and the like may stand within a string
        parts = {number: line for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
    entries = []
    for number, part in parts.items():
        where = f"'{path}', line {number}" if number else f"'{path}'"
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        for entry in [value] if number else value:
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{where} is not a JSON object"
                    if number
                    else f"{where} lists {str(entry)[:80]}, no object"
                )
            entries.append(entry)
    return entries


def require(entry: Mapping[str, Any], key: str, path: Path) -> Any:
    """`entry[key]`; `ValueError` that names the file and the key if it is missing."""
    if not isinstance(entry, Mapping) or key not in entry:
        raise ValueError(f"'{path}': an entry has no {key!r}: {str(entry)[:80]!r}")
    return entry[key]


def require_list(entry: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    """`entry[key]`, a list; `ValueError` otherwise."""
    value = require(entry, key, path)
    if not isinstance(value, list):
        raise ValueError(f"'{path}': {key} must be a list, got {str(value)[:80]!r}")
    return value


def require_text(entry: Mapping[str, Any], key: str, path: Path) -> str:
    """`entry[key]`, a string; `ValueError` otherwise."""
    value = require(entry, key, path)
    if not isinstance(value, str):
        raise ValueError(f"'{path}': {key} must be a text, got {str(value)[:80]!r}")
    return value


def require_id(entry: Mapping[str, Any], key: str, path: Path) -> str:
    """`entry[key]` as text, so that 7, 7.0 and "7" are one id; `ValueError` if there is none."""
    value = to_text(require(entry, key, path))
    if value is None:
        raise ValueError(f"'{path}': {key} must be a number or a text, got {str(entry[key])[:80]!r}")
    return value


def to_text(value: object) -> str | None:
    """An answer or id of JSON as text: 2 and 2.0 are "2", true is "yes"; None for null, lists and objects."""
    match value:
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
    return None


def count_note(ids: Sequence[str], one: str, many: str) -> tuple[str, ...]:
    """No note for no ids, else how many there are and their names: "2 questions ... (7, 9)"."""
    if not ids:
        return ()
    return (f"{len(ids):,} {one if len(ids) == 1 else many} ({list_names(ids)})",)
