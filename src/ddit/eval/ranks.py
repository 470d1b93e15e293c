"""Several processes under torchrun share the samples; the first one gathers what the others found."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes."""

    index: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def part(self, count: int) -> range:
        """This rank's run of `count` samples: all ranks' runs in order are the whole, and differ by at most one."""
        return range(count * self.index // self.size, count * (self.index + 1) // self.size)

    def gather(self, values: list[T]) -> list[T]:
        """All ranks' values in the order of the ranks, on every rank."""
        if self.size == 1:
            return values
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
            time.sleep(
                0.5
            )  # gloo's threads let go of the last tensors, which they cannot once Python is ending


def join_ranks() -> Ranks:
    """Joins the processes that torchrun started (over gloo); a process started otherwise is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
