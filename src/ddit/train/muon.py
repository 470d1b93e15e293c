"""Muon (Jordan et al. 2024): momentum, orthogonalised by a Newton-Schulz iteration, for matrices.

The update and the state are those of `torch.optim.Muon`; under several processes each orthogonalises its share of the
matrices, which is the larger part of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddit.train.parallel import Ranks

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, num_iterations: int) -> Tensor:
    """About U V^T of a matrix U S V^T: (m, n) -> (m, n) in bfloat16, singular values in about [0.7, 1.2]."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """w <- (1 - lr decay) w - lr max(1, m / n)^0.5 orthogonalize(g + momentum buffer), the buffer in float32."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95,
        num_iterations: int = 5, ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.num_iterations, self.ranks = num_iterations, ranks or Ranks()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on the gradients that are there; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            directions = []
            for param in params:
                buffer = self._buffer(param).lerp_(param.grad, 1 - group["momentum"])
                directions.append(param.grad.lerp(buffer, group["momentum"]))  # Nesterov
            for param, update in zip(params, self._orthogonalize_all(directions), strict=True):
                scale = max(1.0, param.shape[0] / param.shape[1]) ** 0.5
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update.to(param.dtype), alpha=-group["lr"] * scale)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state["momentum_buffer"]

    def _orthogonalize_all(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.zeros(sum(matrix.numel() for matrix in matrices), dtype=torch.bfloat16)
        updates = [
            part.view_as(m)
            for part, m in zip(flat.split([m.numel() for m in matrices]), matrices, strict=True)
        ]
        for index in range(self.ranks.index, len(matrices), self.ranks.size):
            updates[index].copy_(orthogonalize(matrices[index], self.num_iterations))
        self.ranks.sum(flat)
        return updates
