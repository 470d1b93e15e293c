"""Arrays that are slow to compute from a file (offsets, sizes), cached beside it until the file changes."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddit.data.sources.remote import AnyPath, RemotePath, cache_folder
from ddit.files import write_atomically

Arrays = dict[str, np.ndarray]

_STAMP = "stamp"
_VERSION = 2


def cache_beside(path: AnyPath, what: str, build: Callable[[], Arrays], *, settings: str = "") -> Arrays:
    """The arrays that `build` computes from `path`, or those in `PATH.WHAT.npz` if they are of the same file.

    The same file has the same size and time of change; `settings` is what else the arrays depend on. Where the
    folder cannot be written, and for a URL, the cache is in `cache_folder`, and if that cannot be written either, there
    is none. Files are written atomically: any number of processes may do this at once.
    """
    stamp = _stamp(path, settings)
    places = [_in_cache(path, what)]
    if isinstance(path, Path):
        places.insert(0, path.with_name(f"{path.name}.{what}.npz"))
    for place in places:
        arrays = _read(place, stamp)
        if arrays is not None:
            return arrays
    arrays = build()
    for place in places:
        if _write(place, {**arrays, _STAMP: stamp}):
            break
    return arrays


def _stamp(path: AnyPath, settings: str) -> np.ndarray:
    if isinstance(path, RemotePath):
        size, changed = path.size, path.version
    else:
        size, changed = path.stat().st_size, path.stat().st_mtime_ns
    return np.array([_VERSION, size, changed, zlib.crc32(settings.encode())], np.int64)


def _in_cache(path: AnyPath, what: str) -> Path:
    whole = path.resolve() if isinstance(path, Path) else path
    digest = hashlib.sha256(str(whole).encode()).hexdigest()[:16]
    return cache_folder() / "data" / f"{path.name}.{digest}.{what}.npz"


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
