"""Muon (Jordan et al. 2024): momentum, orthogonalised by a Newton-Schulz iteration, for matrices.

The update and the state are those of `torch.optim.Muon`, which on sharded matrices exchanges every product of the
iteration. Here each rank orthogonalises its share of the matrices whole: one exchange before, and one after.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ddit.devices import compute_dtype
from ddit.train.parallel import local

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, num_iterations: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """About U V^T of a matrix U S V^T: (m, n) -> (m, n) in bfloat16, singular values in about [0.7, 1.2].

    dtype: of the products.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16().to(dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).bfloat16()


class Muon(torch.optim.Optimizer):
    """w <- (1 - lr decay) w - lr max(1, m / n)^0.5 orthogonalize(g + momentum buffer), the buffer in float32.

    Matrices may be sharded by rows (FSDP2), all over the same ranks. A kernel (m, i, h, w) is a matrix of n = i h w.

    dtype: of the products; by default bfloat16, as in torch's, where the device is quick at it, else float32.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95,
        num_iterations: int = 5, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.num_iterations, self.dtype = num_iterations, dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on the gradients that are there; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            directions = []
            for param in params:
                gradient, buffer = local(param.grad), local(self._buffer(param))
                buffer.lerp_(gradient, 1 - group["momentum"])
                directions.append(gradient.lerp(buffer, group["momentum"]).flatten(1).bfloat16())  # Nesterov
            for param, update in zip(params, self._orthogonalize_all(params, directions), strict=True):
                rows, columns = _matrix_shape(param)
                scale = max(1.0, rows / columns) ** 0.5
                weight = local(param)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.to(weight.dtype).view_as(weight), alpha=-group["lr"] * scale)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state["momentum_buffer"]

    def _orthogonalize_all(self, params: Sequence[Tensor], parts: list[Tensor]) -> list[Tensor]:
        """This rank's rows of the orthogonalised matrices, from this rank's rows of the matrices."""
        group = _shard_group(params[0]) if params else None
        if group is None or group.size() == 1:
            return [self._orthogonalize(part) for part in parts]
        shapes = [_matrix_shape(param) for param in params]
        wholes = _collect(parts, shapes, group)
        solved = [self._orthogonalize(whole) for whole in wholes]
        return _distribute(solved, shapes, group, parts[0])

    def _orthogonalize(self, matrix: Tensor) -> Tensor:
        return orthogonalize(matrix, self.num_iterations, self.dtype or compute_dtype("auto", matrix.device))


def _matrix_shape(param: Tensor) -> tuple[int, int]:
    return param.shape[0], param.numel() // param.shape[0]


def _shard_group(param: Tensor) -> dist.ProcessGroup | None:
    """The ranks over which a matrix is sharded."""
    return param.device_mesh.get_group("shard") if isinstance(param, DTensor) else None


def _rows(num_rows: int, rank: int, size: int) -> slice:
    """The rows that FSDP2 gives a rank: as `Tensor.chunk` cuts."""
    chunk = -(-num_rows // size)
    return slice(min(rank * chunk, num_rows), min((rank + 1) * chunk, num_rows))


def _collect(
    parts: Sequence[Tensor], shapes: Sequence[tuple[int, int]], group: dist.ProcessGroup
) -> list[Tensor]:
    """Every rank's rows of the matrices that are this rank's to solve (each `size`-th), put together."""
    rank, size = group.rank(), group.size()
    sent = [parts[i].flatten() for peer in range(size) for i in range(peer, len(parts), size)]
    own = range(rank, len(parts), size)
    counts = [[_count(shapes[i], peer, size) for i in own] for peer in range(size)]
    sent_counts = [sum(parts[i].numel() for i in range(peer, len(parts), size)) for peer in range(size)]
    received = _exchange(torch.cat(sent), sent_counts, [sum(row) for row in counts], group)
    pieces = [part.split(row) for part, row in zip(received, counts, strict=True)]
    return [torch.cat([piece[k] for piece in pieces]).view(shapes[i]) for k, i in enumerate(own)]


def _distribute(
    solved: Sequence[Tensor], shapes: Sequence[tuple[int, int]], group: dist.ProcessGroup, like: Tensor
) -> list[Tensor]:
    """The inverse of `_collect`: this rank's rows of every matrix, from the ranks that solved them."""
    rank, size = group.rank(), group.size()
    sent = [m[_rows(len(m), peer, size)].flatten() for peer in range(size) for m in solved]
    flat = torch.cat([like.new_empty(0), *sent])
    sent_counts = [
        sum(_count(shapes[i], peer, size) for i in range(rank, len(shapes), size)) for peer in range(size)
    ]
    counts = [[_count(shapes[i], rank, size) for i in range(peer, len(shapes), size)] for peer in range(size)]
    received = _exchange(flat, sent_counts, [sum(row) for row in counts], group)
    updates: list[Tensor] = [like] * len(shapes)
    for peer, (part, row) in enumerate(zip(received, counts, strict=True)):
        for i, piece in zip(range(peer, len(shapes), size), part.split(row), strict=True):
            updates[i] = piece.view(-1, shapes[i][1])
    return updates


def _count(shape: tuple[int, int], rank: int, size: int) -> int:
    rows = _rows(shape[0], rank, size)
    return (rows.stop - rows.start) * shape[1]


def _exchange(
    sent: Tensor, sent_counts: list[int], counts: list[int], group: dist.ProcessGroup
) -> Sequence[Tensor]:
    """One all-to-all of flat pieces in rank order; what each rank sent to this one."""
    received = sent.new_empty(sum(counts))
    dist.all_to_all_single(received, sent, counts, sent_counts, group=group)
    return received.split(counts)
