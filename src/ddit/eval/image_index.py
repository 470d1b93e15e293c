"""The images that a benchmark's file names, found below a folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ddit.data.sources.finding import is_hidden

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


class ImageIndex:
    """The images of a folder and of all folders below it, also behind links.

    A name is first of all a path from the folder. Otherwise the file may lie deeper, have another suffix of an image,
    or lie in the folder itself if the name has folders; but it never lies in a subfolder that the name contradicts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ValueError(f"no such folder of images: '{folder}'")
        self._files: dict[str, list[Path]] = {}  # by name, with and without the suffix
        self._name_of: dict[Path, PurePosixPath] = {}
        self._missing, self._num_found = "", 0
        for path in _walk(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                for key in (path.name, path.stem):
                    self._files.setdefault(_composed(key), []).append(path)

    def find(self, *names: str) -> Path:
        """The image of the first name that there is, or else the path where it is missing.

        Raises:
            ValueError: several images may be meant, or two names mean one image.
        """
        for name in names:
            found = self._find(PurePosixPath(name.replace("\\", "/")))
            if found is not None:
                self._num_found += 1
                return found
        self._missing = self._missing or " or ".join(names)
        return self.folder / names[0]

    def check(self) -> None:
        """`ValueError` if names were looked for and none was found: the folder is not the one that is meant."""
        if self._missing and not self._num_found:
            raise ValueError(
                f"no image {self._missing} in '{self.folder}': give the right folder as --images"
            )

    def _find(self, name: PurePosixPath) -> Path | None:
        direct = self.folder / name
        if os.path.isfile(direct):
            return direct
        stem = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
        listed = self._files.get(_composed(name.name)) or self._files.get(_composed(stem)) or []
        fitting = [path for path in listed if self._fits(path, name)]
        if not fitting:
            return None
        rank = max(self._rank(path, name) for path in fitting)
        best = {os.path.realpath(path): path for path in fitting if self._rank(path, name) == rank}
        if len({path.parent for path in best.values()}) > 1:
            first, second = sorted(best.values())[:2]
            raise ValueError(
                f"'{name}' may be '{first}' or '{second}': name the images with their folders, "
                "or give one of these folders as --images"
            )
        found = next(iter(best.values()))
        if len(name.parts) > 1 and found.parent.name != name.parent.name:
            other = self._name_of.setdefault(found, name)
            if other != name:
                raise ValueError(
                    f"'{other}' and '{name}' would both be '{found}': keep the folders of the images"
                )
        return found

    def _fits(self, path: Path, name: PurePosixPath) -> bool:
        is_bare = len(name.parts) < 2
        return is_bare or path.parent == self.folder or path.parent.name == name.parent.name

    def _rank(self, path: Path, name: PurePosixPath) -> tuple[int, bool]:
        """How many folders agree, from the file upwards; and whether the file lies in the image folder itself."""
        agreeing = 0
        for own, wanted in zip(reversed(path.parent.parts), reversed(name.parent.parts), strict=False):
            if own != wanted:
                break
            agreeing += 1
        return agreeing, path.parent == self.folder


def _composed(name: str) -> str:
    """Names that differ only in how accents are encoded, as macOS and Linux do, are the same."""
    return unicodedata.normalize("NFC", name)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden; a folder that links lead to, too, is walked once, without them."""
    seen: set[str] = set()
    folders, links = [folder], []
    while folders or links:
        place = folders.pop() if folders else links.pop()
        if os.path.realpath(place) in seen or not os.access(place, os.R_OK | os.X_OK):
            continue
        seen.add(os.path.realpath(place))
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            else:
                yield Path(entry.path)
