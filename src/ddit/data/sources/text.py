"""Text alone: lines or paragraphs of text files, or a column of a table."""

from __future__ import annotations

import codecs
import csv
import io
import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from ddit.config.data import HuggingFaceData, TextData
from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, Sample, Turn
from ddit.data.sources.finding import files_below, find_file, match_files
from ddit.data.sources.huggingface import open_rows
from ddit.data.sources.records import LINES_SUFFIXES, Records
from ddit.data.sources.remote import is_url
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.tar import COMPRESSED_SUFFIXES

PLAIN_SUFFIXES = (".txt", ".text", ".md", ".rst")
TABLE_SUFFIXES = (".csv", ".tsv")
DEFAULT_KEY = "text"
_KEPT_FROM = 1 << 24  # bytes; finding the offsets of smaller files is faster than loading them
_DELIMITERS = ",;\t|"


class TextSource:
    """The texts of all files that `path` names, one after another. Only offsets are held in memory."""

    def __init__(self, cfg: TextData) -> None:
        self.cfg = cfg
        self.files = _open_files(cfg)
        self._starts = np.cumsum([0, *map(len, self.files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        file, place = self._locate(index)
        return file.name(place)

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        name = self.name(index)
        if not i2t:
            raise CorruptSample("no image", f"{name} is text alone: use this source in data.i2t only")
        return Sample(None, None, (Turn(None, self.text(index)),))

    def text(self, index: int) -> str:
        """Text `index`, its white space made single spaces.

        Raises:
            CorruptSample: "no text", "bad text", "bad JSON".
        """
        return _text_of(*self._locate(index))

    def sizes(self) -> np.ndarray:
        return np.zeros((len(self), 2), np.int32)

    def digests(self) -> np.ndarray:
        return np.concatenate([self._file_digests(file) for file in self.files])

    def _file_digests(self, file: _Texts) -> np.ndarray:
        def build() -> Arrays:
            return {
                "digests": digest_all(
                    lambda place: _text_of(file, place).encode(errors="replace"), file.name, range(len(file))
                )
            }

        if file.path is None or file.path.stat().st_size < _KEPT_FROM:
            return build()["digests"]
        return cache_beside(file.path, "digests", build, settings=f"{self.cfg.unit}/{self.cfg.text_key}")[
            "digests"
        ]

    def _locate(self, index: int) -> tuple[_Texts, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.files[file], int(index - self._starts[file])


def _text_of(file: _Texts, place: int) -> str:
    text = file.text(place)
    words = text.split() if isinstance(text, str) else []
    if not words:
        raise CorruptSample("no text", file.name(place))
    return " ".join(words)


class _Texts(Protocol):
    """Texts of one file; `path` is None where the library holds several."""

    @property
    def path(self) -> Path | None: ...

    def __len__(self) -> int: ...

    def text(self, index: int) -> Any: ...

    def name(self, index: int) -> str: ...


class _Plain:
    """The lines or paragraphs of a text file, which is opened for each read."""

    def __init__(self, path: Path, unit: Literal["line", "paragraph"]) -> None:
        _check_encoding(path)
        self.path = path
        self.spans = _find_spans(path, unit, line_spans if unit == "line" else paragraph_spans)

    def __len__(self) -> int:
        return len(self.spans)

    def text(self, index: int) -> str:
        return _read(self.path, self.spans[index], self.name(index))

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"


class _Table:
    """A column of a CSV file, whose first row names the columns; a field in quotes may hold line breaks."""

    def __init__(self, path: Path, key: str | None) -> None:
        _check_encoding(path)
        self.path = path
        with path.open("rb") as file:
            head = next((line for line in file if line.strip()), b"").decode(errors="replace")
        self.delimiter = max(_DELIMITERS, key=head.count)
        spans = _find_spans(path, "row", lambda file: row_spans(file, self.delimiter))
        if not len(spans):
            raise ValueError(f"'{path}' is empty: its first row must name the columns")
        try:
            columns = self._fields(spans[0], "row 1")
        except CorruptSample as error:
            raise ValueError(f"'{path}' is no table in UTF-8: {error}") from None
        self.column = columns.index(choose_key(path, key, columns))
        self.spans = spans[1:]

    def __len__(self) -> int:
        return len(self.spans)

    def text(self, index: int) -> str:
        row = self._fields(self.spans[index], self.name(index))
        return row[self.column] if self.column < len(row) else ""

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def _fields(self, span: np.ndarray, name: str) -> list[str]:
        row = io.StringIO(_read(self.path, span, name), newline="")
        return next(csv.reader(row, delimiter=self.delimiter), [])


class _Entries:
    """A key of the entries of JSON."""

    def __init__(self, path: Path, key: str | None) -> None:
        self.records, self.path = Records(path), path
        self.key = key or DEFAULT_KEY
        if key is None and len(self.records):
            with suppress(CorruptSample):  # then the first entry tells nothing
                self.key = choose_key(path, None, list(self.records[0]))

    def __len__(self) -> int:
        return len(self.records)

    def text(self, index: int) -> Any:
        return self.records[index].get(self.key)

    def name(self, index: int) -> str:
        return self.records.name(index)


class _Rows:
    """A column of parquet, which the library maps into memory."""

    def __init__(self, path: str, key: str | None) -> None:
        rows = open_rows(HuggingFaceData(path))
        self.path, self.place = None, path
        self.key = choose_key(path, key, rows.column_names)
        self.rows = rows.select_columns([self.key])

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, index: int) -> Any:
        return self.rows[index][self.key]

    def name(self, index: int) -> str:
        return f"{self.place}[{index}]"


def choose_key(path: str | Path, key: str | None, known: list[str]) -> str:
    """The column that was asked for; else the one named text, or the only one.

    Raises:
        ValueError: there is no such column, or several that it may be.
    """
    names = ", ".join(" ".join(name.split()) for name in known)
    if key is not None and key not in known:
        raise ValueError(f"'{path}' has no column {key}; it has {names}")
    if key is not None:
        return key
    if DEFAULT_KEY in known or len(known) == 1:
        return DEFAULT_KEY if DEFAULT_KEY in known else known[0]
    raise ValueError(f"'{path}' has the columns {names}: set text_key to that of the texts")


def _open_files(cfg: TextData) -> list[_Texts]:
    plain = Path(cfg.path).expanduser()
    if cfg.path.lower().endswith(".parquet") or (plain.is_dir() and files_below(plain, (".parquet",))):
        return [_Rows(cfg.path, cfg.text_key)]
    if is_url(cfg.path) or plain.is_file():
        paths = [find_file(cfg.path)]
    elif plain.is_dir():
        paths = files_below(plain, PLAIN_SUFFIXES)
        if not paths:
            raise ValueError(f"there is no text file ({', '.join(PLAIN_SUFFIXES)}) in '{plain}'")
    else:
        paths = match_files(cfg.path)
        if not paths:
            raise ValueError(f"'{cfg.path}' does not exist: give a text file, a folder or pattern of them")
    return [_open_file(path, cfg) for path in paths]


def _open_file(path: Path, cfg: TextData) -> _Texts:
    name = path.name.lower()
    if name.endswith((*COMPRESSED_SUFFIXES, ".gz", ".bz2", ".xz", ".zst", ".zip")):
        raise ValueError(f"'{path}' is compressed, which allows no reading from its middle: decompress it")
    if name.endswith((".json", *LINES_SUFFIXES)):
        return _Entries(path, cfg.text_key)
    if name.endswith(TABLE_SUFFIXES):
        return _Table(path, cfg.text_key)
    if cfg.text_key is not None:
        raise ValueError(f"'{path}' is plain text, which has no column {cfg.text_key}: leave text_key out")
    return _Plain(path, cfg.unit)


def _check_encoding(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"'{path}' is text in UTF-16: save it in UTF-8")
    if b"\0" in start:
        raise ValueError(f"'{path}' is not a text file: it holds zero bytes")


def _read(path: Path, span: np.ndarray, name: str) -> str:
    offset, size = span.tolist()
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size).decode()
    except UnicodeDecodeError as error:
        raise CorruptSample("bad text", f"{name}: {error}") from None
    except OSError as error:
        raise CorruptSample("unreadable file", f"{name}: {error.strerror}") from None


def _find_spans(path: Path, unit: str, find: Callable[[IO[bytes]], Iterable[tuple[int, int]]]) -> np.ndarray:
    """Offsets and sizes in bytes, (n, 2) int64; those of a large file are cached beside it."""

    def build() -> Arrays:
        with path.open("rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            try:
                spans = array("q", (number for span in find(file) for number in span))
            except csv.Error as error:
                raise ValueError(f"'{path}' is no table: {error}") from None
        return {"spans": np.array(spans, np.int64).reshape(-1, 2)}

    if path.stat().st_size < _KEPT_FROM:
        return build()["spans"]
    return cache_beside(path, f"{unit}s", build)["spans"]


def line_spans(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Offset and size of every line that is not blank, from where the file stands; only a newline ends a line."""
    offset = file.tell()
    for line in file:
        if line.strip():
            yield offset, len(line)
        offset += len(line)


def paragraph_spans(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Offset and size of every stretch of lines between blank ones."""
    offset = start = file.tell()
    for line in file:
        if not line.strip():
            if offset > start:
                yield start, offset - start
            start = offset + len(line)
        offset += len(line)
    if offset > start:
        yield start, offset - start


def row_spans(file: IO[bytes], delimiter: str) -> Iterator[tuple[int, int]]:
    """Offset and size of every row of CSV that is not blank."""
    sizes: list[int] = []  # of the lines of a row

    def lines() -> Iterator[str]:
        for line in file:
            sizes.append(len(line))
            yield line.decode("latin-1")  # every byte is one character, and quotes and delimiters stay

    offset = file.tell()
    for row in csv.reader(lines(), delimiter=delimiter):
        size = sum(sizes)
        if any(map(str.strip, row)):
            yield offset, size
        offset += size
        sizes.clear()
