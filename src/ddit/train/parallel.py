"""The ranks: joining them, their mesh, and what is sharded over it (FSDP2). The only file that knows how.

One process is a group of one, so that every run takes the same way whatever its size.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ddit.config.runs import ParallelConfig
from ddit.devices import find_device

Value = TypeVar("Value")

SECONDS_TO_LET_GO = 0.5


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes, and the device it computes on."""

    index: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """The average of each value over the ranks, the same on all of them."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return (tensor / self.size).tolist()

    def sum_counts(self, counts: Mapping[str, int]) -> Counter[str]:
        """Counts by name, summed over the ranks, the same on all of them."""
        gathered: list[Any] = [None] * self.size
        if self.size == 1:
            gathered = [dict(counts)]
        else:
            dist.all_gather_object(gathered, dict(counts))
        total: Counter[str] = Counter()
        for part in gathered:
            total.update(part)
        return total

    def share(self, value: Value) -> Value:
        """The first rank's value, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def join_ranks() -> Ranks:
    """Joins the processes that torchrun started (NCCL on CUDA, else gloo); a process started otherwise is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = find_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        atexit.register(_leave)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if size > 1:
            dist.init_process_group(backend)
        else:
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _leave() -> None:
    """At exit. A thread of gloo's may still hold tensors of the last exchange, and would abort the process if it let go
    of them when there is no interpreter any more."""
    if not dist.is_initialized():
        return
    is_alone = dist.get_world_size() == 1
    dist.destroy_process_group()
    if not is_alone:
        time.sleep(SECONDS_TO_LET_GO)


def make_mesh(ranks: Ranks, num_replicas: int) -> DeviceMesh:
    """The ranks in a row ("shard"), or as a table ("replicate", "shard") of so many replicas.

    Raises `ValueError` if the replicas do not divide the ranks.
    """
    if num_replicas < 1 or ranks.size % num_replicas:
        raise ValueError(f"parallel.num_replicas is {num_replicas}, which does not divide {ranks.size} ranks")
    if num_replicas == 1:
        return init_device_mesh(ranks.device.type, (ranks.size,), mesh_dim_names=("shard",))
    shape = (num_replicas, ranks.size // num_replicas)
    return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard_blocks(
    root: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    cfg: ParallelConfig,
    compute_dtype: torch.dtype,
) -> None:
    """Shards each block, and what is left of `root`: float32 masters, computation in `compute_dtype`.

    Gradients are averaged over the ranks in float32. Inputs are not cast (times stay in float32). Parameters that are
    frozen while others of their block are trained (adapters) stay whole on every rank.
    """
    whole = {p for p in root.parameters() if not p.requires_grad}
    if mesh.device_type == "cpu" and not cfg.reshard_after_forward:
        blocks = ()  # weights stay gathered, and gloo overlaps with nothing: one exchange instead of many
    policy = MixedPrecisionPolicy(compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        reshard = cfg.reshard_after_forward
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=whole)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=whole)


def shard_frozen(root: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Shards a network that is only used: each block, and what is left of `root`."""
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)


def sync_gradients(root: nn.Module, on: bool) -> None:
    """Whether the next backward pass averages over the ranks, or only adds up on this one (accumulation)."""
    assert isinstance(root, FSDPModule)
    root.set_requires_gradient_sync(on)


def free_gathered(root: nn.Module) -> None:
    """Lets go of gathered weights; to be called when the shards were changed or a forward had no backward pass."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def total_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all tensors together, each sharded one counted once whatever the number of replicas."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (the same storage); any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def gather_on_first(tensors: Mapping[str, Tensor], ranks: Ranks, dtype: torch.dtype) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the first rank, floating ones in `dtype`, one at a time; elsewhere nothing.

    All ranks must call this together.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.is_first:
            kept = whole.detach().to("cpu", dtype if whole.is_floating_point() else None, copy=True)
            gathered[name] = kept
    return gathered
