"""What the verbs print and where they write."""

import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import typer

from ddit.errors import near_misses

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def print_result(as_json: bool, line: str, **values: object) -> None:
    """Prints the line, or with --json the values as one JSON object."""
    typer.echo(to_json(values) if as_json else line)


def to_json(value: object) -> str:
    """JSON of one line; in ASCII alone if it holds what UTF-8 cannot, such as a file name in Latin-1."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def check_image_path(file: Path | None, suffixes: Collection[str]) -> None:
    """Checks that an image of one of these formats can be written there, if one is asked for."""
    if file is None:
        return
    if file.suffix.lower() not in suffixes:
        raise ValueError(f"'{file}' should end in {' or '.join(sorted(suffixes))}")
    check_writable(file.parent)


def check_free(paths: Sequence[Path], ways: str = "") -> None:
    """Raises ValueError if files exist. ways: what could be given beside --overwrite."""
    taken = [f"'{path}'" for path in paths if path.exists()]
    if taken:
        others = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        verb = "exist" if len(taken) > 1 else "exists"
        raise ValueError(f"{taken[0]}{others} {verb}: give --overwrite{ways}")


def check_free_folder(folder: Path) -> None:
    """Raises ValueError if a folder exists and is not empty."""
    if not (folder.is_dir() and not any(folder.iterdir())):
        check_free([folder])


def check_writable(folder: Path) -> None:
    """Makes a folder and tries to write there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file, not a folder" if folder.is_file() else error.strerror
        raise ValueError(f"cannot write to '{folder}': {reason}") from None


def check_choice(what: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError if a name is not one of those known."""
    if value not in known:
        raise ValueError(f"unknown {what} '{value}': use {', '.join(known)}{near_misses(value, known)}")
