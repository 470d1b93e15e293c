"""Folders of images: class folders, whose names are the captions, or images each with a text file beside it."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddit.config.data import FoldersData
from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, LeftOut, Sample, Turn
from ddit.data.sources.class_names import article_for, clean_name
from ddit.data.sources.finding import is_hidden
from ddit.data.sources.images import load_image, measure_all, measure_file, read_whole
from ddit.data.sources.parquet_files import known_split
from ddit.data.sources.remote import is_url
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.tar_index import NUM_NAMES
from ddit.data.sources.texts import make_caption_sample

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif",
)  # fmt: skip
TEXT_SUFFIXES = (".txt", ".caption")
_PLAIN_FOLDERS = ("image", "images", "img", "imgs", "jpeg", "jpg", "png", "photos", "pictures")
"""Names of folders within a class's that say nothing of it."""


class FoldersSource:
    """The images of a folder and its subfolders, in order of their paths; links are followed.

    Only packed names are held in memory.

    Attributes:
        classes: the classes' names, in order; empty with sidecars.
        labels: (len,) int32, the class of every image; -1 with sidecars.
    """

    def __init__(self, cfg: FoldersData) -> None:
        self.cfg = cfg
        self.folder = find_image_folder(cfg.path)
        found = scan_images(self.folder)
        self._left_out = found.left_out
        self._folders = found.folders
        self.classes: list[str] = []
        kept = np.arange(len(found.owners))
        owners = np.array(found.owners, np.int32)
        labels = np.full(len(found.folders), -1, np.int32)
        if cfg.captions == "folders":
            _check_splits(self.folder, [found.folders[owner] for owner in np.unique(owners)])
            named = {owner: _class_of(found.folders[owner]) for owner in np.unique(owners).tolist()}
            self.classes = sorted(set(named.values()) - {""})
            for owner, name in named.items():
                labels[owner] = self.classes.index(name) if name else -1
            kept = np.flatnonzero(labels[owners] >= 0)
            self._leave_out([found.names[i] for i in np.flatnonzero(labels[owners] < 0)])
        elif not found.num_texts:
            raise ValueError(
                f"no image in '{self.folder}' has a text file beside it: put the caption of 1.jpg into 1.txt"
            )
        if not len(kept):
            raise ValueError(no_captions(self.folder))
        self._owners = owners[kept]
        self.labels = labels[self._owners]
        self._names = _Packed([found.names[i] for i in kept])
        self._texts = _Packed([found.texts[i] for i in kept])

    def _leave_out(self, loose: list[bytes]) -> None:
        """Images at the top of class folders."""
        if loose:
            first = tuple(str(self.folder / _text(name)) for name in loose[:NUM_NAMES])
            self._left_out["in no class folder"] = LeftOut(len(loose), first)

    def __len__(self) -> int:
        return len(self._owners)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._within(index, self._names)

    def name(self, index: int) -> str:
        return _text(os.fsencode(self.path(index)))

    def left_out(self) -> dict[str, LeftOut]:
        """The files that no sample uses, and folders without any, by cause."""
        return self._left_out

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        cfg = self.cfg
        if cfg.captions == "sidecar":
            caption = self._caption(index)
            return make_caption_sample(self._image(index, with_image), caption, i2t=i2t)
        name = self.classes[self.labels[index]]
        is_question = i2t and rng.random() < cfg.question_fraction
        if is_question:
            turn = Turn(rng.choice(cfg.question_templates), name)
            return Sample(self._image(index, with_image), None, (turn,), short_answers=True)
        caption = rng.choice(cfg.templates).format(name=name, article=article_for(name))
        return make_caption_sample(self._image(index, with_image), caption, i2t=i2t)

    def sizes(self) -> np.ndarray:
        def build() -> Arrays:
            return {"sizes": measure_all(lambda index: measure_file(self.path(index)), range(len(self)))}

        return self._cached("sizes", build)

    def digests(self) -> np.ndarray:
        def build() -> Arrays:
            return {
                "digests": digest_all(lambda index: read_whole(self.path(index)), self.name, range(len(self)))
            }

        return self._cached("digests", build)

    def _cached(self, what: str, build: Callable[[], Arrays]) -> np.ndarray:
        """What is computed of the images, cached beside the folder until one of its files changes."""
        seen = hashlib.sha256()
        for index in range(len(self)):
            path = self.path(index)
            try:
                stat = path.stat()
                seen.update(os.fsencode(path) + f"/{stat.st_size}/{stat.st_mtime_ns}".encode())
            except OSError:
                seen.update(os.fsencode(path))
        return cache_beside(self.folder.resolve(), what, build, settings=seen.hexdigest())[what]

    def _image(self, index: int, with_image: bool) -> Image.Image | None:
        return load_image(self.path(index)) if with_image else None

    def _within(self, index: int, names: _Packed) -> Path:
        return self.folder / os.fsdecode(self._folders[self._owners[index]]) / os.fsdecode(names[index])

    def _caption(self, index: int) -> str:
        if not self._texts[index]:
            raise CorruptSample("no caption", f"{self.name(index)}: no text file beside it")
        path = self._within(index, self._texts)
        try:
            caption = read_whole(path).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise CorruptSample("bad text", f"{path}: {error}") from None
        except (OSError, ValueError):
            raise CorruptSample("no caption", f"{path} cannot be read") from None
        if not caption:
            raise CorruptSample("no caption", f"{path} is empty")
        return caption


class _Packed:
    """Strings of bytes by index, held as one."""

    def __init__(self, items: list[bytes]) -> None:
        self._ends = np.cumsum([0, *map(len, items)])
        self._data = b"".join(items)

    def __getitem__(self, index: int) -> bytes:
        return self._data[self._ends[index] : self._ends[index + 1]]


class FoundImages(NamedTuple):
    """The images of a folder: of each the folder's number, its name, and that of the text file beside it (or b"").

    folders: below the folder that was searched, b"" being itself.
    """

    folders: list[bytes]
    owners: list[int]
    names: list[bytes]
    texts: list[bytes]
    left_out: dict[str, LeftOut]

    @property
    def num_texts(self) -> int:
        return sum(map(bool, self.texts))


def find_image_folder(path: str) -> Path:
    """The folder of a path; a `ValueError` if there is none, or it is behind a URL."""
    if is_url(path):
        raise ValueError(
            f"'{path}' is a URL, and a folder of images must be on this machine: pack it into tars"
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"'{folder}' {what}: give a folder of images")
    return folder


def no_captions(folder: Path) -> str:
    """What to do with a folder whose images have no captions, or that has no image."""
    return (
        f"'{folder}' holds no image with a caption: put images into a folder for each class (dog/1.jpg), or a text "
        "file with its caption beside each (1.jpg, 1.txt), or name the JSON file that lists them"
    )


def scan_images(folder: Path) -> FoundImages:
    """The images below a folder, by their suffix, in order of their paths. Links are followed, each folder once.

    A link that leads nowhere is an image that is missing, if it is named like one.
    """
    found = FoundImages([], [], [], [], {})
    left_out: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [b""]
    while waiting:
        inner = waiting.pop()
        place = os.path.join(os.fsencode(folder), inner)
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        images, texts, below, others = _list_folder(place)
        waiting += [os.path.join(inner, name) for name in reversed(below)]
        used = set()
        for name in images:
            text = texts.get(os.path.splitext(name)[0], b"")
            used.add(text)
            found.owners.append(len(found.folders))
            found.names.append(name)
            found.texts.append(text)
        found.folders.append(inner)
        others += [("no image by its suffix", text) for text in texts.values() if text not in used]
        if not images and not below:
            others.append(("folder without images", b""))
        for cause, name in others:
            left_out.setdefault(cause, []).append(_text(os.path.join(place, name)))
    found.left_out.update(
        {cause: LeftOut(len(names), tuple(names[:NUM_NAMES])) for cause, names in left_out.items()}
    )
    return found


class _Listed(NamedTuple):
    images: list[bytes]
    texts: dict[bytes, bytes]
    folders: list[bytes]
    others: list[tuple[str, bytes]]


def _list_folder(place: bytes) -> _Listed:
    """The names in one folder, in order: images, text files by their stem, folders, and the rest with its cause."""
    found = _Listed([], {}, [], [])
    for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
        stem, suffix = os.path.splitext(entry.name)
        kind = os.fsdecode(suffix).lower()
        if is_hidden(os.fsdecode(entry.name)):
            found.others.append(("hidden", entry.name))
        elif entry.is_dir():
            found.folders.append(entry.name)
        elif kind in IMAGE_SUFFIXES:
            found.images.append(entry.name)
        elif kind in TEXT_SUFFIXES:
            found.texts.setdefault(stem, entry.name)
        else:
            found.others.append(("no image by its suffix", entry.name))
    return found


def _class_of(folder: bytes) -> str:
    """The class of the images in a folder; "" at the top, where they have none."""
    parts = _text(folder).split(os.sep)
    while len(parts) > 1 and parts[-1].lower() in _PLAIN_FOLDERS:
        parts.pop()
    return clean_name(parts[-1])


def _check_splits(folder: Path, folders: list[bytes]) -> None:
    """Raises `ValueError` if the folders are of several splits, which are not to be mixed."""
    tops = {_text(inner).split(os.sep)[0] for inner in folders if os.fsencode(os.sep) in inner}
    splits = {known_split(name): name for name in sorted(tops)}
    splits.pop(None, None)
    if len(splits) > 1:
        names = sorted(splits.values())
        raise ValueError(
            f"'{folder}' holds the splits {', '.join(names)}: give the folder of one, '{folder / names[-1]}'"
        )


def _text(name: bytes) -> str:
    """A file's name as text that can be printed and tokenised."""
    return unicodedata.normalize("NFC", os.fsdecode(name).encode(errors="replace").decode())
