"""Arrays that are slow to compute from a file (offsets, sizes), cached beside it until the file changes."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddit.files import write_atomically

Arrays = dict[str, np.ndarray]

_STAMP = "stamp"
_VERSION = 2


def cache_beside(path: Path, what: str, build: Callable[[], Arrays], *, settings: str = "") -> Arrays:
    """The arrays that `build` computes from `path`, or those in `PATH.WHAT.npz` if they are of the same file.

    The same file has the same size and time of change; `settings` is what else the arrays depend on. Where the
    folder cannot be written, the cache is under $XDG_CACHE_HOME/ddit (or ~/.cache/ddit), and if that cannot be
    written either, there is none. Files are written atomically: any number of processes may do this at once.
    """
    stamp = _stamp(path, settings)
    places = (path.with_name(f"{path.name}.{what}.npz"), _in_cache(path, what))
    for place in places:
        arrays = _read(place, stamp)
        if arrays is not None:
            return arrays
    arrays = build()
    for place in places:
        if _write(place, {**arrays, _STAMP: stamp}):
            break
    return arrays


def _stamp(path: Path, settings: str) -> np.ndarray:
    status = path.stat()
    return np.array([_VERSION, status.st_size, status.st_mtime_ns, zlib.crc32(settings.encode())], np.int64)


def _in_cache(path: Path, what: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return base / "ddit" / "data" / f"{path.name}.{digest}.{what}.npz"


def _read(place: Path, stamp: np.ndarray) -> Arrays | None:
    try:
        # given a path, numpy leaves a truncated file open
        with place.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    same = _STAMP in arrays and np.array_equal(arrays.pop(_STAMP), stamp)
    return arrays if same else None


def _write(place: Path, arrays: Arrays) -> bool:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(place) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError:
        return False
    return True
