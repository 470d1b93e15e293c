"""Checkpoints of a run: `ckpt-STEP/`, written by all ranks under another name, then renamed by the first.

A folder holds torch's distributed checkpoint, which loads at any number of ranks, and `manifest.json`: the run's
description and the size of every file, by which an incomplete folder is recognised.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ddit.devices import Ranks

MANIFEST = "manifest.json"
_PATTERN = "ckpt-????????"


class Checkpoint(NamedTuple):
    """A complete checkpoint: the steps done, its folder, and the run's description when it was written."""

    step: int
    folder: Path
    description: dict[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    *,
    keep: int,
    ranks: Ranks,
) -> Path:
    """Writes the checkpoint of `step` (steps done) and removes all but the newest `keep`; all ranks together.

    Raises:
        OSError: in one line, on every rank, if it cannot be written (a full disk); those before it are left whole.
    """
    target = run / f"ckpt-{step:08d}"
    part = run / f"{target.name}.tmp"
    if ranks.is_first:
        for old in run.glob("ckpt-*.tmp"):
            shutil.rmtree(old, ignore_errors=True)
    ranks.wait()
    problem = _write(part, state)
    if ranks.is_first:
        if problem is None:
            problem = _seal(part, target, {"step": step, **description})
        if problem is None:
            _prune(run, target, keep)
        else:
            shutil.rmtree(part, ignore_errors=True)
    problem = ranks.share(problem)
    if problem is not None:
        raise OSError(f"the checkpoint of step {step} cannot be written to {run}: {problem}")
    return target


class _Writer(FileSystemWriter):
    """Raises the system's own error where `torch.save` hides it behind one of its own ("unexpected pos 704")."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


def _write(part: Path, state: Mapping[str, Tensor]) -> str | None:
    """Writes this rank's part; what went wrong on any rank, in one line, the same on all of them."""
    try:
        part.mkdir(parents=True, exist_ok=True)
        state_dict_saver.save(dict(state), storage_writer=_Writer(part))
    except OSError as error:
        return error.strerror or str(error)
    except CheckpointException as error:  # the library's wrapper of whatever happened on whichever rank
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, OSError):
                return cause.strerror or str(cause)
        return f"{type(causes[0]).__name__}: {str(causes[0]).splitlines()[0]}"
    return None


def _seal(part: Path, target: Path, description: dict[str, Any]) -> str | None:
    """Adds the manifest and renames; what went wrong, in one line."""
    try:
        files = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps({**description, "files": files}, indent=2) + "\n")
        for path in (part / MANIFEST, part):
            _to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        _to_disk(target.parent)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(run: Path, newest: Path, keep: int) -> None:
    """Leaves `newest` and the `keep - 1` before it. Later ones are incomplete: the run did not resume from them."""
    older = sorted(path for path in run.glob(_PATTERN) if path.name < newest.name)
    later = [path for path in run.glob(_PATTERN) if path.name > newest.name]
    for path in [*older[: max(len(older) - keep + 1, 0)], *later]:
        shutil.rmtree(path, ignore_errors=True)


def find_newest(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run folder; incomplete ones are skipped with a line on stderr."""
    for folder in sorted(run.glob("ckpt-*"), reverse=True):
        try:
            if folder.suffix == ".tmp":
                raise ValueError("it was never finished")
            description = json.loads((folder / MANIFEST).read_text())
            for name, size in description.pop("files").items():
                found = (folder / name).stat().st_size
                if found != size:
                    raise ValueError(f"{name} has {found} bytes, not {size}")
            return Checkpoint(description["step"], folder, description)
        except (ValueError, KeyError, OSError) as error:
            reason = f"{MANIFEST} lacks {error}" if isinstance(error, KeyError) else error
            print(f"checkpoint {folder} is skipped: {reason}", file=sys.stderr)
    return None


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of the tensors in a checkpoint's folder."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(m.size) for name, m in found.items() if isinstance(m, TensorStorageMetadata)}


def load_tensors(folder: Path, state: dict[str, Tensor]) -> None:
    """Fills the tensors of `state` in place, each with its part if it is sharded; all ranks together."""
    state_dict_loader.load(state, storage_reader=FileSystemReader(folder))
