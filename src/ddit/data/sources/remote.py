"""Files behind a URL (s3://, hf://, https:// and whatever else fsspec reads), and a bounded cache of what was read.

What a reading gives depends on nothing but the file: trouble on the way is tried again, and then ends the run, which
can be resumed; it never makes a sample corrupt, which another one would replace.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import FileLock

from ddit.data.samples import SourceError
from ddit.errors import one_line
from ddit.files import write_atomically

Found = TypeVar("Found")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|[a-z0-9]+::")
_MAGIC = re.compile(r"[*\[]")  # a question mark begins a query
_BLOCK = 8 << 20
_ATTEMPTS = 5
_FIRST_DELAY = 0.5
_VERSION_KEYS = (
    "size",
    "ETag",
    "etag",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "blob_id",
    "created",
)
_NUM_PARTS = 256
_DEFAULT_GIB = 20.0
_KEPT_SECONDS = 30 * 86_400
"""Whole copies that nobody has opened for so long are removed."""


def is_url(path: str | Path | RemotePath) -> bool:
    return isinstance(path, RemotePath) or _URL.match(str(path)) is not None


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URL. It may be shared by processes and threads: nothing stays open."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, inner: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{inner}")

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.partition("?")[0].rstrip("/").rpartition("/")[0])

    @cached_property
    def info(self) -> dict[str, Any]:
        """Size and version, as the storage has them; `ValueError` if there is no such file."""
        try:
            return _try(self.url, lambda fs, path: fs.info(path))
        except FileNotFoundError:
            raise ValueError(f"'{self.url}' does not exist") from None

    @property
    def size(self) -> int:
        return int(self.info["size"])

    @property
    def version(self) -> int:
        """A checksum of what the storage says about the file's contents and time."""
        return zlib.crc32(repr([str(self.info[key]) for key in _VERSION_KEYS if key in self.info]).encode())

    def read(self) -> bytes:
        """The whole file, through the cache; one that was read before is taken to be unchanged.

        Raises:
            FileNotFoundError: there is none.
            SourceError: it cannot be read.
        """
        return _cached(self.url, lambda: self.fetch())

    def read_span(self, offset: int, size: int) -> bytes:
        """So many bytes from `offset` on, fewer at the end of the file, through the cache. Errors as `read`."""
        return _cached(
            f"{self.url}@{self.version}:{offset}+{size}", lambda: self.fetch(offset, offset + size)
        )

    def fetch(self, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes from `start` to `end`, not through the cache. Errors as `read`."""
        data = _try(self.url, lambda fs, path: fs.cat_file(path, start=start, end=end))
        if start is not None and end is not None and len(data) > end - start:
            return data[start:end]  # a web server that gives whole files only
        return data

    def open(self) -> IO[bytes]:
        """The file for reading from front to back, by blocks and not through the cache."""
        return io.BufferedReader(_Blocks(self), _BLOCK)


class _Blocks(io.RawIOBase):
    def __init__(self, path: RemotePath) -> None:
        self._path, self._offset = path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._path.size}[whence]
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        end = min(self._offset + len(buffer), self._path.size)
        data = self._path.fetch(self._offset, end) if self._offset < end else b""
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


AnyPath = Path | RemotePath


def file_size(path: AnyPath) -> int:
    return path.size if isinstance(path, RemotePath) else path.stat().st_size


def open_file(path: AnyPath) -> IO[bytes]:
    return path.open() if isinstance(path, RemotePath) else path.open("rb")


def find_remote(pattern: str, suffix: str) -> list[RemotePath]:
    """The files that a URL with `*`, or the URL of a folder or file names, in order.

    A folder's are those that end with `suffix`. [] if there is none; a URL that ends so is not looked up.
    """
    if _MAGIC.search(pattern):
        names = _try(pattern, lambda fs, path: [fs.unstrip_protocol(name) for name in fs.glob(path)])
    elif pattern.partition("?")[0].lower().endswith(suffix):
        return [RemotePath(pattern)]
    else:
        names = _try(pattern, lambda fs, path: [fs.unstrip_protocol(name) for name in fs.find(path)])
    return [RemotePath(name) for name in sorted(names) if name.lower().endswith(suffix)]


def _try(url: str, work: Callable[[Any, str], Found]) -> Found:
    """`work` of the file system and the path within it, again if that fails, later each time.

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: all attempts failed.
    """
    try:
        import fsspec
    except ImportError:
        raise SourceError(f"'{url}' is a URL, which needs fsspec: pip install fsspec") from None
    for attempt in range(_ATTEMPTS):
        try:  # the file system anew each time: it is not to be used in a process that was forked later
            return work(*fsspec.url_to_fs(url))
        except FileNotFoundError:
            raise
        except Exception as error:  # each library has errors of its own
            is_final = isinstance(error, ImportError | PermissionError | ValueError)
            if is_final or attempt == _ATTEMPTS - 1:
                hint = (
                    ": pip install 'ddit[s3]'"
                    if url.startswith("s3:") and isinstance(error, ImportError)
                    else ""
                )
                raise SourceError(f"cannot read '{url}': {one_line(error)}{hint}") from error
        time.sleep(_FIRST_DELAY * 2**attempt)
    raise AssertionError


# --- copies ---


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ddit, or ~/.cache/ddit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddit"


def local_copy(url: str) -> Path:
    """A copy of a whole file on this machine, for files that list samples. `ValueError` if there is none.

    Copies that nobody has used for a month are removed.
    """
    remote = RemotePath(url)
    copies = cache_folder() / "copies"
    copy = copies / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{remote.version:08x}" / remote.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if not copy.is_file():
            with write_atomically(copy) as part, remote.open() as source, part.open("wb") as target:
                while block := source.read(_BLOCK):
                    target.write(block)
    os.utime(copy.parent)
    for folder in copies.iterdir():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
    return copy


def _limit() -> int:
    """Bytes of the cache on this machine, by $DDIT_CACHE_GIB."""
    text = os.environ.get("DDIT_CACHE_GIB", "")
    try:
        gib = float(text) if text else _DEFAULT_GIB
    except ValueError:
        gib = -1.0
    if not gib >= 0:
        raise SourceError(f"DDIT_CACHE_GIB must be a number of GiB, not '{text}'")
    return int(gib * 2**30)


def _cached(key: str, fetch: Callable[[], bytes]) -> bytes:
    """What `fetch` gives, or a copy of it. Any number of processes may share the copies.

    Copies are spread over folders, each of which keeps to its share of the limit: a copy for which there is no room
    replaces others, at random. In a set that is larger than the cache the next sample is a random one, too, so that
    no order would be better: the one that was read last is the one that will be wanted last.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = cache_folder() / "remote" / _part_of(digest) / digest
    with suppress(OSError):
        data = path.read_bytes()
        if data:
            return data
    data = fetch()
    share = _limit() // _NUM_PARTS
    if len(data) <= share:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(path.parent, share - len(data))
            with write_atomically(path) as part:
                part.write_bytes(data)
    return data


def _part_of(digest: str) -> str:
    """The folder of a copy: one of `_NUM_PARTS`."""
    return digest[:2]


def _make_room(folder: Path, most: int) -> None:
    """Removes files until those that are left have at most so many bytes. Others may be removing them, too."""
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            files.append((path, path.stat().st_size))
    total = sum(size for _, size in files)
    if total > most:
        random.SystemRandom().shuffle(files)
    while total > most:
        path, size = files.pop()
        path.unlink(missing_ok=True)
        total -= size
