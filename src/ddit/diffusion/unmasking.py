"""Unmasking rules (`settings.UnmaskingRule`): which masked positions a step fills. No model, no noise schedule.

Shape legend: b unfinished samples, L text tokens, M masked positions of these samples (row-major), V vocabulary.
"""

import math

import torch
from torch import Tensor

from ddit.settings import Order, UnmaskingRule


def answer_blocks(answer_mask: Tensor, block_size: int) -> Tensor:
    """The block of each answer position, counted from 0: (B, L) bool -> (B, L) integers; elsewhere without meaning."""
    if block_size == 0:
        return torch.zeros_like(answer_mask, dtype=torch.long)
    return (answer_mask.cumsum(1) - 1).clamp(min=0) // block_size


def top_p_filter(probs: Tensor, top_p: float) -> Tensor:
    """Distributions (..., V) kept to the fewest tokens that hold `top_p` together; the same tensor at 1."""
    if top_p == 1:
        return probs
    ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p  # the first token always
    kept = torch.zeros_like(kept).scatter(-1, tokens, kept)
    probs = torch.where(kept, probs, 0.0)
    return probs / probs.sum(-1, keepdim=True)


def confidence_of(order: Order, probs: Tensor, tokens: Tensor) -> Tensor:
    """What a rule ranks positions by, (M, V) and their tokens (M,) -> (M,); the largest is filled first.

    The token's probability; for "margin" the likeliest token's lead over the second (arXiv 2502.06768); for
    "entropy" minus the entropy.
    """
    if order == "margin":
        best = probs.topk(2, dim=-1).values
        return best[:, 0] - best[:, 1]
    if order == "entropy":
        tiny = torch.finfo(probs.dtype).tiny  # x log x by itself is not vectorised on a CPU
        return torch.linalg.vecdot(probs, probs.clamp(min=tiny).log())
    return probs.gather(1, tokens[:, None]).flatten()


def choose_positions(
    rule: UnmaskingRule, confidence: Tensor, is_masked: Tensor, blocks: Tensor, least: Tensor
) -> Tensor:
    """Which positions to fill: (b, L) bool.

    Args:
        rule: of order "confidence", "margin", "threshold" or "entropy".
        confidence: (M,), see `confidence_of`.
        is_masked: (b, L) bool, the M masked positions.
        blocks: (b, L), see `answer_blocks`; the first one with a masked position is filled.
        least: (b,), how many are filled in any case; what is missing in the block is taken from the next.
    """
    dense = torch.full(is_masked.shape, -math.inf, device=confidence.device).masked_scatter(
        is_masked, confidence
    )
    ranks = dense.argsort(dim=1, descending=True, stable=True)  # highest first, leftmost first among equals
    after = torch.where(is_masked, blocks, blocks.max() + 1)  # what is filled already comes last
    ranks = ranks.gather(1, after.gather(1, ranks).argsort(dim=1, stable=True))
    dense, after = dense.gather(1, ranks), after.gather(1, ranks)
    chosen = torch.arange(is_masked.shape[1], device=is_masked.device) < least[:, None]
    in_block = after == after[:, :1]
    if rule.order == "threshold":
        chosen |= in_block & (dense > rule.threshold)
    if rule.order == "entropy":
        chosen |= in_block & ((-dense).cumsum(1) + dense <= rule.entropy_bound)
    return torch.zeros_like(is_masked).scatter(1, ranks, chosen) & is_masked


def all_confident(best: Tensor, is_masked: Tensor, commit_above: float) -> Tensor:
    """Samples whose likeliest tokens at masked positions (their probabilities (M,) at (b, L)) are all above
    `commit_above`: (b,) bool."""
    if commit_above == 1:
        return torch.zeros(len(is_masked), dtype=torch.bool, device=is_masked.device)
    dense = torch.ones(is_masked.shape, device=best.device).masked_scatter(is_masked, best)
    return (dense > commit_above).all(1)


def sample_categorical(weights: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (M,) with probabilities proportional to weights (M, V), by numbers (M,) that are uniform in [0, 1).

    By the inverse of the cumulated weights: a position takes one random number, where a race of exponentials takes V.
    """
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1:]
    below = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulated, below, right=True).flatten()  # the first token whose sum is above
