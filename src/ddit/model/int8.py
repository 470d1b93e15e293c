"""The frozen text encoder with its linear layers in 8 bit: a quarter of float32's memory, half of bfloat16's.

Weights only, a scale a row, multiplied in the activations' own type: integers of 8 bits are exact in bfloat16. Plain
torch; the libraries that offer it (torchao, bitsandbytes) bring far more than these lines, and warnings of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddit.model.encoders import TextCodec


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


class Int8Linear(nn.Module):
    """A frozen linear layer y = scale * (W x) + b with W in int8, each row scaled to its largest entry."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's type."""
        y = (_Product.apply(x, self.weight) * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def quantize_text_encoder(codec: TextCodec) -> None:
    """Puts every linear layer of the codec's encoder in 8 bit, in place; embeddings and norms stay as they are.

    The float weights are freed layer by layer. What is left is for use, not for saving.
    """
    for module in list(codec.encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
