"""The entries of a JSON file by index, of which only the offsets are held in memory."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddit.data.samples import CorruptSample
from ddit.data.sources.finding import find_file
from ddit.data.sources.sidecar import Arrays, cache_beside

_CHUNK = 1 << 24
_KEPT_FROM = 1 << 24  # bytes; finding the offsets of smaller files is faster than loading them
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
_BOM = codecs.BOM_UTF8.decode()
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)
LINES_SUFFIXES = (".jsonl", ".ndjson")


class Entries(Protocol):
    """Entries of a file by index, as `Records` has them."""

    path: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str: ...


class Records:
    """Entries of a JSON list or of JSON lines: `records[i]` reads and parses one.

    The file is opened for each read, so that any number of processes and threads may share this object.

    Raises:
        ValueError: the file is missing, is not JSON, or holds something else than a list or lines.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = find_file(path)
        if self.path.stat().st_size < _KEPT_FROM:
            spans = self._find()["spans"]
        else:
            spans = cache_beside(self.path, "index", self._find)["spans"]
        self.spans = spans  # (n, 2) int64: offset and size in bytes

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Entry `index`; `CorruptSample` ("bad JSON") if it cannot be parsed or is no object."""
        offset, size = self.spans[index].tolist()
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        try:
            entry = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptSample("bad JSON", f"{self.name(index)}: {error}") from None
        if not isinstance(entry, dict):
            raise CorruptSample("bad JSON", f"{self.name(index)}: not an object")
        return entry

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def _find(self) -> Arrays:
        with self.path.open("rb") as file:
            line = next((line for line in file if line.strip()), b"").removeprefix(codecs.BOM_UTF8).strip()
        if line[:1] == b"[":
            return {"spans": _list_spans(self.path)}
        if line[:1] not in (b"{", b"") or not (self.path.suffix.lower() in LINES_SUFFIXES or _is_json(line)):
            raise ValueError(f"'{self.path}' is neither a JSON list nor JSON lines")
        return {"spans": _line_spans(self.path)}


def _line_spans(path: Path) -> np.ndarray:
    """Offset and size of every line that is not blank; only a newline ends a line (U+2028 is text)."""
    ends, offset, last = [], 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset)
            offset, last = offset + len(chunk), chunk[-1:]
    if last != b"\n":
        ends.append(np.array([offset]))
    end = np.concatenate([*ends, np.empty(0, np.int64)]).astype(np.int64)
    start = np.concatenate([[0], end[:-1] + 1]).astype(np.int64) if len(end) else end
    return np.stack([start, end - start], 1)[end - start > 1]  # a lone carriage return is a blank line


def _list_spans(path: Path) -> np.ndarray:
    """Offset and size in bytes of every entry of a JSON list; the entries are parsed and dropped one by one."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8: {error}") from None
    spans: list[tuple[int, int]] = []
    is_ascii = text.isascii()
    position = _skip(text, text.index("[") + 1)
    offset = len(text[:position].encode())  # ahead of the list there is only white space, and perhaps a BOM
    try:
        while text[position : position + 1] != "]":
            end = _end_of_entry(text, position)
            size = end - position if is_ascii else len(text[position:end].encode())
            spans.append((offset, size))
            following = _skip(text, end)
            if text[following : following + 1] == ",":
                following = _skip(text, following + 1)
            elif text[following : following + 1] != "]":
                raise json.JSONDecodeError("the list does not end", text, following)
            position, offset = following, offset + size + following - end
        if _skip(text, position + 1) < len(text):
            raise json.JSONDecodeError("something follows the list", text, position + 1)
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not whole JSON: {error}") from None
    return np.array(spans, np.int64).reshape(-1, 2)


def _end_of_entry(text: str, position: int) -> int:
    """Where the JSON value ends that begins at `position`; one nested too deeply to parse ends with its brackets."""
    try:
        return _DECODER.raw_decode(text, position)[1]
    except RecursionError:
        depth = 0
        for mark in _MARKS.finditer(text, position):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
            if depth == 0:
                return mark.end()
        raise json.JSONDecodeError("the list does not end", text, position) from None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] and text[position] in _SPACE:
        position += 1
    return position
