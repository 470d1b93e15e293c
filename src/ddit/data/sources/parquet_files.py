"""Which parquet files of a folder are a split's, by the layouts of the hub: what was asked for, or an error."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

from ddit.config.data import HuggingFaceData
from ddit.data.sources.finding import files_below, match_files, match_urls
from ddit.data.sources.remote import AnyPath, is_url

SAVED_FILES = ("state.json", "dataset_dict.json")
"""One of them is in a folder that the library's `save_to_disk` wrote."""

_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {word: split for split, words in _SYNONYMS.items() for word in words}
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}\b.*")
_NO_SPLITS = ("part", "data", "shard", "chunk", "file", "batch", "output")
"""Of `part-00000-of-00002.parquet` and the like."""
_BETWEEN_WORDS = re.compile(r"[-._ \d]+")


class _File(NamedTuple):
    """A parquet file, the split that its path names (None: none), and the folder of its configuration."""

    path: Path
    split: str | None
    config: str


def split_names(split: str) -> list[str]:
    """The splits that "train", "train[:100]" or "train+test[10%:]" is made of."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def has_configs(folder: Path) -> bool:
    """Whether the folder is a repository of the hub that describes its own splits (`configs:` in README.md)."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return False
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return re.search(r"^configs:", head, re.MULTILINE) is not None


def split_files(path: str, name: str | None, split: str) -> list[AnyPath] | None:
    """The parquet files of a split; None for an id of the hub. Of a URL all that it names are taken as the split.

    A split is named by a file (`train-00000-of-00002.parquet`, `train.parquet`) or by a folder above it
    (`train/0000.parquet`), a configuration `name` by the folder above that. Where no file names a split all are
    "train". A single file is taken as it is, unless another split than "train" is wanted.

    Raises:
        ValueError: there is no such file, split or configuration, several configurations have the split, or beside
            files that name a split there are others that name none.
    """
    if is_url(path):
        return [*match_urls(path, ".parquet")]
    plain = Path(path).expanduser()
    files: list[_File] = []
    if plain.is_file():
        files = [_describe(plain, Path(plain.name), set())]
        if split in (HuggingFaceData.split, files[0].split):
            return [plain]
    elif plain.is_dir():
        files = _describe_all(files_below(plain, (".parquet",)), plain)
    elif glob.has_magic(path) or "{" in path:
        found = match_files(path)
        if found:
            files = _describe_all(found, Path(os.path.commonpath([file.parent for file in found])))
            return [file.path for file in _of_split(path, files, _CANONICAL.get(split, split))]
    elif path.count("/") > 1 or path.startswith((".", "/", "~")) or path.endswith(".parquet"):
        raise ValueError(f"'{path}' does not exist: give a folder or pattern of parquet files, or a hub id")
    else:
        return None
    if not files:
        raise ValueError(f"there is no parquet file at '{path}'")
    return [*_choose(path, files, name, _CANONICAL.get(split, split))]


def _choose(path: str, files: list[_File], name: str | None, split: str) -> list[Path]:
    if name is not None:
        files = [file for file in files if name in file.path.parts or name == file.config]
        if not files:
            raise ValueError(
                f"'{path}' has no configuration {name!r}: no folder of parquet files has that name"
            )
    chosen = _of_split(path, files, split)
    configs = sorted({file.config for file in chosen if file.split is not None})
    if len(configs) > 1:
        raise ValueError(
            f"'{path}' holds the split {split!r} in several configurations ({', '.join(configs)}): set name to one, "
            "or give a pattern of the files that are meant"
        )
    return [file.path for file in chosen]


def _of_split(path: str, files: list[_File], split: str) -> list[_File]:
    splits = sorted({file.split for file in files if file.split is not None})
    if not splits and split == HuggingFaceData.split:
        return files
    chosen = [file for file in files if file.split == split]
    if not chosen:
        known = f"it has {', '.join(splits)}" if splits else "its files name no split: leave split out"
        raise ValueError(f"'{path}' has no split {split!r}: {known}")
    unnamed = [file.path for file in files if file.split is None]
    if unnamed:
        raise ValueError(
            f"{len(unnamed)} parquet files of '{path}' name no split, '{unnamed[0]}' first, while others do: give a "
            "pattern of the files that are meant"
        )
    return chosen


def _describe_all(paths: list[Path], top: Path) -> list[_File]:
    relative = [path.relative_to(top) for path in paths]
    # A folder beside one that is named after a known split is a split of its own, as `extra` is.
    beside = {folder.parent for inner in relative for folder in inner.parents if known_split(folder.name)}
    return [_describe(path, inner, beside) for path, inner in zip(paths, relative, strict=True)]


def _describe(path: Path, inner: Path, split_folders: set[Path]) -> _File:
    """`inner` is the path below the folder that was given; `split_folders` hold a folder for each split."""
    sharded = _SHARD.fullmatch(inner.stem)
    stem = inner.stem if sharded is None else sharded["split"]
    if known_split(stem):
        return _File(path, known_split(stem), str(inner.parent))
    for folder in inner.parents:
        if folder.name and (known_split(folder.name) or folder.parent in split_folders):
            return _File(path, known_split(folder.name) or folder.name, str(folder.parent))
    is_split = sharded is not None and stem.lower() not in _NO_SPLITS
    return _File(path, stem if is_split else None, str(inner.parent))


def known_split(name: str) -> str | None:
    """The one of train, validation and test that a file or folder is named after, as `val2017` or `my-train` are."""
    named = {_CANONICAL[word] for word in _BETWEEN_WORDS.split(name.lower()) if word in _CANONICAL}
    return named.pop() if len(named) == 1 else None
