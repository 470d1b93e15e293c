"""Where the samples of a tar shard are: found once by reading its headers, and cached beside it."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from ddit.data.samples import LeftOut
from ddit.data.sources.finding import is_hidden
from ddit.data.sources.remote import AnyPath, file_size, open_file
from ddit.data.sources.sidecar import Arrays, cache_beside

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")
TRUNCATED, DAMAGED = "truncated tar", "damaged tar"
SEVERAL_IMAGES, SEVERAL_TEXTS = "several images", "several texts"
_WHOLE = ""
_BLOCK = 512
NUM_NAMES = 5
_FIELD = re.compile(r"[a-z_-]+(\.[a-z_-]+)*")

Span = tuple[int, int]
_NOWHERE: Span = (0, 0)


class TarIndex(NamedTuple):
    """The samples of one shard, in order of their first members.

    images, texts, metadata (n, 2) int64: offset and size of the member in the shard, or (0, 0) if there is none;
    stems (n,) bytes; faults (n,) bytes: why a sample cannot be used whatever its members hold, or b""; left_out: the
    members that belong to no sample; end: why the shard ends early ("truncated tar", "damaged tar"), or "".
    """

    images: np.ndarray
    texts: np.ndarray
    metadata: np.ndarray
    stems: np.ndarray
    faults: np.ndarray
    left_out: dict[str, LeftOut]
    end: str


class _Member(NamedTuple):
    """A member that a sample may have: its name, its kind (0 to 2) and where its data are."""

    name: str
    kind: int
    span: Span

    @property
    def stem(self) -> str:
        """The name up to the last point."""
        return self.name.rpartition(".")[0]


class _Sample(NamedTuple):
    stem: str
    members: list[_Member]


def load_index(path: AnyPath) -> TarIndex:
    """The index of a shard, built if there is none beside it (`NAME.tar.index.npz`) or the shard has changed.

    Raises:
        ValueError: the shard is compressed, so that there is no reading from its middle.
    """
    arrays = cache_beside(path, "index", lambda: _build(path))
    spans = arrays["spans"]
    rows = json.loads(str(arrays["left_out"]))
    left_out = {cause: LeftOut(num, tuple(first)) for cause, num, first in rows}
    stems, faults, end = arrays["stems"], arrays["faults"], str(arrays["end"])
    return TarIndex(spans[0], spans[1], spans[2], stems, faults, left_out, end)


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member as webdataset has them: the suffix begins at the base name's first point."""
    path = PurePosixPath(name)
    base, _, suffix = path.name.partition(".")
    return str(path.with_name(base)) if base else "", suffix.lower()


def _build(path: AnyPath) -> Arrays:
    members, left_out = _Members(), _Counter()
    end, size = _WHOLE, file_size(path)
    with open_file(path) as file:
        try:
            for member in _read_headers(path, file):
                if member.isdir():
                    continue
                if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
                    end = TRUNCATED
                    break
                members.add(member, left_out)
        except _EndsEarly as error:
            end = error.cause
    samples = list(members.samples(left_out))
    spans = np.array([_spans(sample.members) for sample in samples], np.int64).reshape(-1, 3, 2)
    return {
        "spans": np.ascontiguousarray(spans.transpose(1, 0, 2)),
        "stems": np.array([s.stem.encode(errors="surrogateescape") for s in samples], np.bytes_),
        "faults": np.array([_fault(sample.members).encode() for sample in samples], np.bytes_),
        "left_out": np.array(json.dumps(left_out.rows())),
        "end": np.array(end),
    }


# --- headers ---


class _EndsEarly(Exception):
    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def _read_headers(path: AnyPath, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """All members, of an archive appended behind the end of another too (`cat a.tar b.tar`).

    Raises:
        _EndsEarly: with its cause.
        ValueError: the file is compressed.
    """
    start: int | None = 0
    size = file_size(path)
    while start is not None:
        file.seek(start)
        offset = start
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    offset = tar.offset
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header in memory
                    yield member
                offset = tar.offset
        except tarfile.ReadError as error:
            _refuse_compressed(path)
            is_cut = offset > start or size == 0 or "end of data" in str(error)
            raise _EndsEarly(TRUNCATED if is_cut else DAMAGED) from None
        except (tarfile.TarError, ValueError, OverflowError):  # numbers that are none, or beyond any file
            raise _EndsEarly(DAMAGED) from None
        start = _next_archive(file, offset, size)


def _next_archive(file: IO[bytes], offset: int, size: int) -> int | None:
    """Where an archive begins behind the zeros that end one; None: the file ends there.

    Python's reader takes anything that is no header for the end; only zeros, or nothing, are one.
    """
    file.seek(offset)
    block = file.read(_BLOCK)
    if block.strip(b"\0"):
        raise _EndsEarly(TRUNCATED if offset + _BLOCK > size else DAMAGED)
    while block:
        found = len(block) - len(block.lstrip(b"\0"))
        if found < len(block):
            return file.tell() - len(block) + found // _BLOCK * _BLOCK
        block = file.read(_BLOCK << 11)
    return None


def _refuse_compressed(path: AnyPath) -> None:
    with open_file(path) as file:
        magic = file.read(6)
    if (
        magic[:2] == b"\x1f\x8b"
        or magic[:3] == b"BZh"
        or magic == b"\xfd7zXZ\0"
        or magic[:4] == b"\x28\xb5\x2f\xfd"
    ):
        raise ValueError(f"'{path}' is compressed, which allows no reading from its middle: decompress it")


# --- members ---


class _Counter:
    """Members that no sample has, by cause."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, cause: str, name: str) -> None:
        num, first = self._found.get(cause, (0, []))
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        self._found[cause] = num + 1, [*first, shown] if num < NUM_NAMES else first

    def rows(self) -> list[tuple[str, int, list[str]]]:
        return [(cause, num, first) for cause, (num, first) in self._found.items()]


class _Members:
    """The members of a shard as they come, then as samples."""

    def __init__(self) -> None:
        self._spans: dict[str, Span] = {}  # by name, of files
        self._links: dict[str, str] = {}  # name -> name
        self._used: dict[str, None] = {}  # names that samples may have, in order

    def add(self, member: tarfile.TarInfo, left_out: _Counter) -> None:
        name = posixpath.normpath(member.name)
        if _is_hidden(name):
            return left_out.add("hidden file", name)
        if _kind(name.lower()) is None:
            return left_out.add("unknown suffix", name)
        if member.issparse() or not (member.isfile() or member.issym() or member.islnk()):
            return left_out.add("no plain file", name)
        if name in self._used:  # as when it is unpacked
            left_out.add("replaced by a later member of the same name", name)
        self._used[name] = None
        self._spans.pop(name, None)
        self._links.pop(name, None)
        if member.isfile() and not member.islnk():
            self._spans[name] = member.offset_data, member.size
        else:  # a hard link's target is a name in the archive, a symbolic link's is seen from its folder
            beside = posixpath.dirname(name) if member.issym() else ""
            self._links[name] = posixpath.normpath(posixpath.join(beside, member.linkname))
        return None

    def samples(self, left_out: _Counter) -> Iterator[_Sample]:
        """The samples, in order of their first members."""
        groups: dict[str, list[_Member]] = {}
        for name in self._used:
            kind = _kind(name.lower())
            assert kind is not None
            member = _Member(name, kind, self._find(name, left_out))
            groups.setdefault(split_name(name)[0], []).append(member)
        for key, members in groups.items():
            yield from _split_group(key, members, left_out)

    def _find(self, name: str, left_out: _Counter) -> Span:
        target = name
        for _ in range(8):
            if target in self._spans:
                return self._spans[target]
            target = self._links.get(target, "")
        left_out.add("link to what is not in the tar", name)
        return _NOWHERE


def _split_group(key: str, members: list[_Member], left_out: _Counter) -> Iterator[_Sample]:
    """The samples among the members with one key (webdataset's: the base name up to its first point).

    They are one sample if no two are of a kind and what follows the key are names of fields, as in `a.input.png` and
    `a.output.txt`. Else those are together that are alike up to the last point, as `a.v2.png` and `a.v2.txt`; what is
    then alone beside `a.png` or `a.txt`, as `a.mask.png`, is a field that has no use here.
    """
    kinds = [member.kind for member in members]
    fields = [member.stem[len(key) + 1 :].lower() for member in members]
    are_fields = all(not field or _FIELD.fullmatch(field) for field in fields)
    if len(set(kinds)) == len(kinds) and are_fields:
        yield _Sample(key, members)
        return
    parts: dict[str, list[_Member]] = {}
    for member in members:
        parts.setdefault(member.stem, []).append(member)
    for stem, part in parts.items():
        is_whole = len({member.kind for member in part}) > 1
        if key in parts and stem != key and not is_whole:
            for member in part:
                left_out.add("further field of a sample", member.name)
        else:
            yield _Sample(stem, part)


def _fault(members: list[_Member]) -> str:
    kinds = [member.kind for member in members]
    if kinds.count(0) > 1:
        return SEVERAL_IMAGES
    return SEVERAL_TEXTS if len(set(kinds)) < len(kinds) else ""


def _spans(members: list[_Member]) -> list[Span]:
    found = [_NOWHERE] * 3
    for member in members:
        found[member.kind] = member.span
    return found


def _is_hidden(name: str) -> bool:
    return any(is_hidden(part) for part in name.split("/") if part not in (".", ".."))


def _kind(name: str) -> int | None:
    """0: an image, 1: a text, 2: metadata, by the suffix behind the last point of a name in lower case."""
    suffix = name.rpartition(".")[2] if "." in name else ""
    if suffix in IMAGE_SUFFIXES:
        return 0
    return {"txt": 1, "json": 2}.get(suffix)
