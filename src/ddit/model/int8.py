"""The frozen text encoder with its linear layers in 8 bit: a quarter of float32's memory, half of bfloat16's.

Weights only, a scale a row, multiplied in the activations' own type: integers of 8 bits are exact in bfloat16. Plain
torch; the libraries that offer it (torchao, bitsandbytes) bring far more than these lines, and warnings of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x (..., in) times integers (out, in): keeps the integers alone for the backward pass, which reaches x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, integers: Tensor) -> Tensor:
        ctx.save_for_backward(integers)
        return F.linear(x, integers.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (integers,) = ctx.saved_tensors
        return gradients[0] @ integers.to(gradients[0].dtype), None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) as int8, and a float32 scale (out,) a row: that of its largest entry over 127."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A frozen linear layer y = scale * (W x) + b with W in int8, each row scaled to its largest entry."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        integers, scale = quantize(linear.weight)
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """As every module, but the scales stay in float32."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.weight.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's type."""
        y = (_Product.apply(x, self.weight) * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def quantize_linears(module: nn.Module) -> None:
    """Puts every linear layer below the module in 8 bit, in place, and frees its weights; the rest stays as it is."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
