"""Checkpoints of a run: `ckpt-STEP/`, written by all ranks under another name, then renamed by the first.

A folder holds torch's distributed checkpoint, which loads at any number of ranks, and `manifest.json`: the run's
description and the size of every file, by which an incomplete folder is recognised.
"""

import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ddit.devices import Ranks

MANIFEST = "manifest.json"
_PATTERN = "ckpt-????????"
GROUP_BYTES = 1 << 28


class Checkpoint(NamedTuple):
    """A complete checkpoint: the steps done, its folder, and the run's description when it was written."""

    step: int
    folder: Path
    description: dict[str, Any]


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / f"ckpt-{step:08d}"


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
    target = checkpoint_folder(run, step)
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


def find_newest(run: Path, step: int | None = None) -> Checkpoint | None:
    """The newest complete checkpoint of a run folder, or that of a step; incomplete ones are skipped with a line on
    stderr."""
    for folder in sorted(
        run.glob("ckpt-*" if step is None else checkpoint_folder(run, step).name), reverse=True
    ):
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


def stored_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, whether they are complete or not."""
    return sorted(int(path.name.removeprefix("ckpt-")) for path in run.glob(_PATTERN))


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of the tensors in a checkpoint's folder."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(m.size) for name, m in found.items() if isinstance(m, TensorStorageMetadata)}


def load_tensors(folder: Path, state: dict[str, Tensor]) -> None:
    """Fills the tensors of `state` in place, each with its part if it is sharded; all ranks together."""
    state_dict_loader.load(state, storage_reader=FileSystemReader(folder))


class StoredTensors:
    """Some tensors of a checkpoint, whole, on the CPU, for one process that reads alone.

    shapes: by name, without `prefix`, which the names of those meant begin with.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        found = stored_shapes(folder)
        self.shapes = {n.removeprefix(prefix): shape for n, shape in found.items() if n.startswith(prefix)}

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """The named tensors in `dtype`; ValueError if one is not there."""
        missing = [name for name in names if name not in self.shapes]
        if missing:
            raise ValueError(f"'{self._folder}' has no {self._prefix}{missing[0]}")
        state = {self._prefix + name: torch.empty(self.shapes[name], dtype=dtype) for name in names}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
            state_dict_loader.load(state, storage_reader=FileSystemReader(self._folder), no_dist=True)
        return {name.removeprefix(self._prefix): tensor for name, tensor in state.items()}

    def stream(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in `dtype`, a few at a time: no more than about `GROUP_BYTES` are held."""
        group: list[str] = []
        size = 0
        for name in names:
            group.append(name)
            size += math.prod(self.shapes[name]) * dtype.itemsize
            if size > GROUP_BYTES:
                yield from self.read(group, dtype).items()
                group, size = [], 0
        if group:
            yield from self.read(group, dtype).items()
