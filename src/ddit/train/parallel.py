"""Several processes under torchrun (gloo), each computing its slice of every global batch.

The step is the same whatever their number: noise is drawn for the global batch, then sliced, and gradients are
averaged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes."""

    index: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def slice_of(self, count: int) -> slice:
        """This rank's part of `count` samples, all parts of equal size (`ValueError` if they cannot be)."""
        if count % self.size:
            raise ValueError(f"{count} samples cannot be shared equally by {self.size} processes")
        part = count // self.size
        return slice(self.index * part, (self.index + 1) * part)

    def average(self, tensors: list[Tensor], extra: Tensor) -> Tensor:
        """Averages `tensors` in place and returns the average of the small vector `extra`, in one exchange."""
        if self.size == 1:
            return extra
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), extra])
        dist.all_reduce(flat)
        flat /= self.size
        *parts, extra = flat.split([*(tensor.numel() for tensor in tensors), extra.numel()])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
        return extra

    def sum(self, tensor: Tensor) -> None:
        """Sums a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def join_ranks() -> Ranks:
    """Joins the processes that torchrun started; a process started otherwise is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), size)
