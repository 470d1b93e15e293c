"""Checkpoints of a run: `ckpt-STEP/` with `state.safetensors` and `state.json`; written aside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, DESCRIPTION = "state.safetensors", "state.json"


class Checkpoint(NamedTuple):
    step: int
    tensors: dict[str, Tensor]
    description: dict[str, Any]


def save_checkpoint(
    run: Path, step: int, tensors: dict[str, Tensor], description: dict[str, Any], *, keep: int
) -> Path:
    """Writes the checkpoint of `step` (steps done) and removes all but the newest `keep`."""
    target = run / f"ckpt-{step:08d}"
    aside = run / f"{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
    size = (aside / TENSORS).stat().st_size
    (aside / DESCRIPTION).write_text(
        json.dumps({"step": step, "num_bytes": size, **description}, indent=2) + "\n"
    )
    for path in (aside / TENSORS, aside / DESCRIPTION, aside):
        _to_disk(path)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _to_disk(run)
    for old in sorted(run.glob("ckpt-????????"))[:-keep]:
        shutil.rmtree(old)
    return target


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_newest(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run folder; torn ones are passed over with a word on stderr."""
    for folder in sorted(run.glob("ckpt-*"), reverse=True):
        try:
            if folder.suffix == ".tmp":
                raise ValueError("it was never finished")
            description = json.loads((folder / DESCRIPTION).read_text())
            size = (folder / TENSORS).stat().st_size
            if size != description["num_bytes"]:
                raise ValueError(f"{TENSORS} has {size} bytes, not {description['num_bytes']}")
            return Checkpoint(description["step"], load_file(folder / TENSORS), description)
        except (ValueError, KeyError, OSError, SafetensorError) as error:
            print(f"checkpoint {folder} is passed over: {error}", file=sys.stderr)
    return None


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `prefix.PARAMETER.KEY`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{key}": value.detach().clone()
        for index, entry in state.items()
        for key, value in entry.items()
    }


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`; learning rates and the like stay as the optimiser was built."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name[len(prefix) + 1 :].split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
