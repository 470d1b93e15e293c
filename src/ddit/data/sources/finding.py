"""The files of a source: named by a path, a folder or a pattern, also below links."""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path

from ddit.data.sources.remote import AnyPath, RemotePath, find_remote, is_url, local_copy

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SIDECAR = ".npz"


def find_file(path: str | Path) -> Path:
    """The path of an existing file, of a URL that of a copy; a `ValueError` if there is none."""
    if is_url(path):
        return local_copy(str(path))
    found = Path(path).expanduser()
    if not found.is_file():
        what = "is a folder, not a file" if found.is_dir() else "does not exist"
        raise ValueError(f"'{found}' {what}: give the path of the file that lists the samples")
    return found


def find_folder(path: str | Path | None, beside: str) -> AnyPath:
    """The folder of images: `path`, or that of the file `beside`; a `ValueError` if there is none.

    That of a URL is not looked up.
    """
    if path is None:
        return RemotePath(beside).parent if is_url(beside) else Path(beside).expanduser().parent
    if is_url(path):
        return RemotePath(str(path))
    found = Path(path).expanduser()
    if not found.is_dir():
        raise ValueError(f"there is no folder '{found}': set images to the folder that the images are in")
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no data by its name: `.x`, macOS' `._x` and `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder and its subfolders whose names end so (in any case), in order of their paths.

    Links are followed; a file or folder that several paths lead to is used once. Hidden ones are left out.

    Raises:
        ValueError: a link leads nowhere.
    """
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    folders, links = [folder], []
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        if place.is_file():
            found.setdefault(place.resolve(), place)
        elif not place.exists():
            raise ValueError(f"'{place}' is a link to '{os.readlink(place)}', which does not exist")
        elif (real := place.resolve()) not in seen:
            seen.add(real)
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
                is_wanted = entry.name.lower().endswith(suffixes)
                if is_hidden(entry.name) or not (is_wanted or entry.is_dir()):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_symlink():
                    links.append(Path(entry.path))
                else:
                    path = Path(entry.path)
                    found.setdefault(path.resolve(), path)
    return sorted(found.values())


def match_files(pattern: str) -> list[Path]:
    """The files that a pattern with `*`, `?`, `[..]`, `{00..99}` or `{a,b}` names, in order, each once.

    Folders and the caches that `ddit` keeps beside its data are left out. [] if there is none at all.

    Raises:
        ValueError: of the alternatives in braces some name files and others none.
    """
    found: dict[Path, None] = {}
    missing: list[str] = []
    for one in expand_braces(str(Path(pattern).expanduser())):
        names = [one] if Path(one).is_file() else glob.glob(one, recursive=True)
        files = [path for path in map(Path, sorted(names)) if path.is_file() and path.suffix != _SIDECAR]
        found |= dict.fromkeys(files)
        missing += [] if files else [one]
    if missing and (found or len(missing) > 1):
        raise ValueError(
            f"{len(missing)} shards of '{pattern}' are missing, '{missing[0]}' first: use * for those that are there"
        )
    return list(found)


def match_urls(pattern: str, suffix: str) -> list[RemotePath]:
    """The files that the URL of a file, of a folder, or with `*`, `{00..99}` or `{a,b}` names, in order, each once.

    Raises:
        ValueError: there is none, also of one alternative in braces alone.
    """
    found: dict[RemotePath, None] = {}
    for one in expand_braces(pattern):
        files = find_remote(one, suffix)
        if not files:
            raise ValueError(f"there is no {suffix} file at '{one}'")
        found |= dict.fromkeys(files)
    return list(found)


def expand_braces(pattern: str) -> list[str]:
    """All patterns that `{00..12}` and `{a,b}` stand for, as in a shell; zeros in front are kept."""
    parts = _BRACES.split(pattern)  # text and what is in braces, in turn
    choices = [[part] if i % 2 == 0 else _alternatives(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _alternatives(text: str) -> list[str]:
    bounds = _RANGE.fullmatch(text)
    if bounds is None:
        return text.split(",")
    first, last = bounds.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
