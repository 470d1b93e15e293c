"""The mesh of ranks and what is sharded over it (FSDP2). The only file that knows how.

One process is a mesh of one, so that every run takes the same path whatever its size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ddit.config.runs import ParallelConfig
from ddit.devices import Ranks


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


def sync_gradients(root: nn.Module, is_last: bool, how: str) -> None:
    """Whether the next backward pass averages gradients over the ranks: after the last micro-batch, and before it only
    where `how` is "sharded", then over the shards of a replica. Else they add up on this rank."""
    assert isinstance(root, FSDPModule)
    root.set_requires_gradient_sync(is_last or how == "sharded")
    root.set_requires_all_reduce(is_last)


def free_gathered(root: nn.Module) -> None:
    """Lets go of gathered weights; to be called when the shards were changed or a forward had no backward pass."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def total_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all tensors together, each sharded one counted once whatever the number of replicas."""
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):  # whose norm would have three digits
        tensors = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
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
