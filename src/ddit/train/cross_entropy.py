"""Cross-entropy of a linear head over a large vocabulary, a chunk of tokens at a time: never all logits at once.

S tokens, D hidden size, V vocabulary. The losses are summed with weights that are known beforehand, so that the
gradients are computed in the forward pass, while a chunk's logits are there: three matrix products, nothing twice.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ddit.diffusion.masked import LEAST_LOG

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**25}
"""Logits held at once, by device: 16 MB in float32, and 128 MB where short products would be slow."""


def weighted_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    *,
    ruled_out: int,
    sharpen: float = 0.0,
    chunk_size: int | None = None,
) -> Tensor:
    """Sum over tokens of w_i times -log softmax(W h_i + b)[target_i], a scalar in float32.

    sharpen: so many times the entropy of the softmax is added where the target is its largest entry.

    Matrix products run in the type of `hidden`, or in autocast's; softmax and sums in float32. It can be differentiated
    once, by `hidden`, `weight` and `bias`.

    Args:
        hidden: (S, D). weight: (V, D). bias: (V,). targets: (S,). token_weights: (S,), constants.
        ruled_out: a token that is never predicted, as if its logit were minus infinity.
        chunk_size: tokens at once; None: as many as `CHUNK_ELEMENTS` logits are.
    """
    device = hidden.device.type
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"]) // len(weight))
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with_gradients = torch.is_grad_enabled()  # inside the function it is always off
    with torch.autocast(device, enabled=False):
        return _WeightedNll.apply(
            hidden,
            weight,
            bias,
            targets,
            token_weights.float(),
            ruled_out,
            sharpen,
            chunk_size,
            dtype,
            with_gradients,
        )  # type: ignore[return-value]


class _WeightedNll(torch.autograd.Function):
    """Forward computes the loss and its gradients; backward multiplies these by the gradient of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        ruled_out: int,
        sharpen: float,
        chunk_size: int,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> Tensor:
        head, head_bias = weight.to(dtype), bias.to(dtype)
        loss = torch.zeros((), device=hidden.device)
        by_hidden, by_weight, by_bias = [], None, None
        chunks = (x.split(chunk_size) for x in (hidden.to(dtype), targets, token_weights))
        for h, target, w in zip(*chunks, strict=True):
            logits = torch.addmm(head_bias, h, head.mT).float()  # (chunk, V)
            logits[:, ruled_out] = -math.inf
            log_probs = logits.log_softmax(-1)
            del logits
            loss -= w @ log_probs.gather(1, target[:, None])[:, 0]
            flatter = None
            if sharpen:
                own_loss, flatter = _entropy_of_right(log_probs, target, sharpen)
                loss += w @ own_loss
            if not with_gradients:
                continue
            error = log_probs.exp_()  # softmax minus one-hot; times w it is the gradient by the logits
            error.scatter_add_(1, target[:, None], -torch.ones_like(w)[:, None])
            if flatter is not None:
                error += flatter
            by_bias = _add(by_bias, w @ error)
            error = error.to(dtype)
            by_hidden.append(w[:, None] * (error @ head))
            by_weight = _add(by_weight, error.mT @ (w[:, None] * h).to(dtype))
        if by_weight is not None and by_bias is not None:
            ctx.gradients = (
                torch.cat(by_hidden).to(hidden.dtype),
                by_weight.to(weight.dtype),
                by_bias.to(bias.dtype),
            )
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of weighted_nll were used already")
        scaled = [part.mul_(gradients[0].to(part.dtype)) for part in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None, None, None, None, None, None


def _entropy_of_right(log_probs: Tensor, target: Tensor, sharpen: float) -> tuple[Tensor, Tensor]:
    """`sharpen` times the entropy where the target is the likeliest, else 0, (chunk,); its gradient by the logits."""
    probs, logs = log_probs.exp(), log_probs.clamp(min=LEAST_LOG)
    entropy, is_right = -(probs * logs).sum(-1), sharpen * (log_probs.argmax(-1) == target)
    return is_right * entropy, -is_right[:, None] * probs * (logs + entropy[:, None])


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Sums in float32; a single part stays as it is."""
    return part if total is None else total.float().add_(part)
