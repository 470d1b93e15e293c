"""The pool of precomputed latents: rendering and encoding are paid once, then a sample is a read of a few kilobytes.

A folder with `pool.json` (what it was made from), `latents.bin` (N, C, H, W) and, with a teacher, `features.bin`
(N, F, h, w), both float16, and `done.bin`, one byte a chunk, so that an interrupted making goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

EncodeChunk = Callable[[int, int], tuple[Tensor, Tensor | None]]
"""(first, end) -> latents (end - first, C, H, W) and, with a teacher, its features (end - first, F, h, w)."""

_NUM_FOR_STATISTICS = 2000


class LatentPool:
    """Map-style reader: `latents(indices)` and `features(indices)` in float32."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        description = self.folder / "pool.json"
        if not description.is_file():
            raise ValueError(
                f"{self.folder} holds no latent pool (pool.json is missing): run the latents recipe first"
            )
        self.description: dict[str, Any] = json.loads(description.read_text())
        missing = int((np.fromfile(self.folder / "done.bin", dtype=np.uint8) == 0).sum())
        if missing:
            raise ValueError(
                f"{self.folder}: {missing} chunks of latents are missing: run the latents recipe to its end"
            )
        self._latents = _open(self.folder, self.description, "latents", "r")
        self._features = _open(self.folder, self.description, "features", "r")
        if self._features is not None:
            sample = self._features[:_NUM_FOR_STATISTICS].astype(np.float32)
            self._mean, self._std = (f(sample, axis=(0, 2, 3), keepdims=True)[0] for f in (np.mean, np.std))

    def __len__(self) -> int:
        return self.description["num_scenes"]

    @property
    def feature_channels(self) -> int | None:
        shape = self.description["features_shape"]
        return shape[0] if shape else None

    def latents(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(self._latents[indices].astype(np.float32))

    def features(self, indices: np.ndarray) -> Tensor:
        """The teacher's features, of mean 0 and deviation 1 a channel: what all pictures share is no target."""
        if self._features is None:
            raise ValueError(f"{self.folder} holds no teacher's features, which the alignment loss needs")
        return torch.from_numpy(
            (self._features[indices].astype(np.float32) - self._mean) / (self._std + 1e-6)
        )


def _open(folder: Path, description: dict[str, Any], name: str, mode: Any) -> Any:
    shape = description[f"{name}_shape"]
    if not shape:
        return None
    return np.memmap(folder / f"{name}.bin", np.float16, mode, shape=(description["num_scenes"], *shape))


def prepare_pool(folder: Path, description: dict[str, Any]) -> None:
    """Creates the files of a pool, or finds those of the same description; another description is a `ValueError`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pool.json"
    text = json.dumps(description, indent=2) + "\n"
    if path.exists():
        if json.loads(path.read_text()) != json.loads(text):
            raise ValueError(
                f"{folder} holds a pool made with other settings: remove it or choose another folder"
            )
        return
    for name in ("latents", "features"):
        if description[f"{name}_shape"]:
            _open(folder, description, name, "w+").flush()
    np.zeros(num_chunks(description), np.uint8).tofile(folder / "done.bin")
    path.write_text(text)


def num_chunks(description: dict[str, Any]) -> int:
    return -(-description["num_scenes"] // description["chunk_size"])


def fill_pool(
    folder: Path,
    encode: EncodeChunk,
    *,
    worker: int = 0,
    num_workers: int = 1,
    on_chunk: Callable[[], None] | None = None,
) -> None:
    """Makes the chunks that are still missing; of several workers each takes every `num_workers`-th chunk."""
    description = json.loads((folder / "pool.json").read_text())
    done = np.memmap(folder / "done.bin", np.uint8, "r+")
    files = [_open(folder, description, name, "r+") for name in ("latents", "features")]
    for chunk in range(worker, num_chunks(description), num_workers):
        if not done[chunk]:
            first = chunk * description["chunk_size"]
            end = min(first + description["chunk_size"], description["num_scenes"])
            for file, values in zip(files, encode(first, end), strict=True):
                if file is not None and values is not None:
                    file[first:end] = values.to(torch.float16).numpy()
                    file.flush()
            done[chunk] = 1
            done.flush()
        if on_chunk is not None:
            on_chunk()
