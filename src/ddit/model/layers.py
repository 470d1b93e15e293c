"""What a block has beside its attention: modulation and the MLP; shape legend in `ddit.model.dual_dit`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(nn.Module):
    """AdaLN: maps the conditioning vector to `num_chunks` vectors of size D."""

    def __init__(self, dim: int, num_chunks: int) -> None:
        super().__init__()
        self.num_chunks = num_chunks
        self.linear = nn.Linear(dim, num_chunks * dim)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(cond))[:, None].chunk(self.num_chunks, dim=-1)  # each (B, 1, D)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without affine parameters, then AdaLN's shift and scale: (B, S, D) -> (B, S, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class GeluProjection(nn.Module):
    """Linear layer followed by the tanh form of GELU."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if not torch.compiler.is_compiling():
            return F.gelu(x, approximate="tanh")
        # The same function by way of a sigmoid, whose compiled loop takes a third of the time on a CPU.
        y = x.float()
        return (y * torch.sigmoid(math.sqrt(8 / math.pi) * y * (1 + 0.044715 * y * y))).to(x.dtype)


class FeedForward(nn.Module):
    """Two-layer MLP of width 4 D, with a dropout between the layers, of 0 unless a run sets it (`set_dropout`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GeluProjection(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def set_dropout(module: nn.Module, p: float) -> None:
    """The share of the activations within the MLPs of `module` that are dropped in training."""
    for part in module.modules():
        if isinstance(part, FeedForward):
            dropout = part.net[1]
            assert isinstance(dropout, nn.Dropout)
            dropout.p = p
