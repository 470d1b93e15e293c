"""Rules of writing: which of the masked positions a pass writes. Nothing here knows a model or a noise schedule.

Shape legend: b unfinished samples, L text tokens, M masked positions of these samples (row-major), V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ddit.errors import near_misses

Order = Literal["random", "first-hitting", "confidence", "margin", "threshold", "entropy"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class UnmaskingRule:
    """How the masked positions are written; the defaults are the published sampling.

    Attributes:
        order: which positions a pass writes.
            "random": ancestral sampling, as published: N equal steps from t = 1 to 1e-5, then a pass that takes the
            argmax of what is still masked (with probability 1e-5 a position).
            "first-hitting": the same law; the step of each position is drawn beforehand and empty steps are left
            out (Zheng et al., arXiv 2409.02908).
            "confidence", "margin": the surest positions first, the same number in every pass.
            "threshold", "entropy": all that are sure enough, and at least what N passes need; with N = L that is
            one.
        temperature: of the draws; 0 takes the most likely token.
        top_p: tokens are drawn from the fewest that hold this probability together; in (0, 1], 1 is all.
        threshold: order "threshold" writes every position whose token is more probable than this, and the most
            probable one in any case (Fast-dLLM, arXiv 2505.22618); in (0, 1].
        entropy_bound: order "entropy" writes positions in the order of their entropies, as many as keep the sum of
            all but the largest at or below this, in nats (EB-sampler, arXiv 2505.24857).
        commit_above: once the likeliest token of every masked position is more probable than this, everything is
            written at once (after Prophet, arXiv 2508.19982); in (0, 1], 1 is never.
        block_size: answer positions of a block; blocks are written left to right (LLaDA, arXiv 2502.09992). 0: one
            block.

    Raises:
        ValueError: on a value out of range or an unknown order.
    """

    order: Order = "random"
    temperature: float = 1.0
    top_p: float = 1.0
    threshold: float = 0.9
    entropy_bound: float = 0.1
    commit_above: float = 1.0
    block_size: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(
                f"unknown order '{self.order}': use {', '.join(ORDERS[:-1])} or {ORDERS[-1]}"
                f"{near_misses(str(self.order), ORDERS)}"
            )
        for name in ("temperature", "entropy_bound"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("top_p", "threshold", "commit_above"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.block_size < 0 or int(self.block_size) != self.block_size:
            raise ValueError(f"block_size must be a whole number of at least 0, got {self.block_size}")


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
    """By what a rule ranks positions, (M, V) and their tokens (M,) -> (M,); the largest is written first.

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
    rule: UnmaskingRule, sure: Tensor, is_masked: Tensor, blocks: Tensor, least: Tensor
) -> Tensor:
    """Which positions to write: (b, L) bool.

    Args:
        rule: of order "confidence", "margin", "threshold" or "entropy".
        sure: (M,), see `confidence_of`.
        at: (b, L) bool, the M masked positions.
        blocks: (b, L), see `answer_blocks`; the first one with a masked position is at work.
        least: (b,), how many are written in any case; what is missing in the block is taken from the next.
    """
    dense = torch.full(is_masked.shape, -math.inf, device=sure.device).masked_scatter(is_masked, sure)
    ranks = dense.argsort(dim=1, descending=True, stable=True)  # surest first, leftmost first among equals
    after = torch.where(is_masked, blocks, blocks.max() + 1)  # what is written already comes last
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
    return (
        torch.ones(is_masked.shape, device=best.device).masked_scatter(is_masked, best) > commit_above
    ).all(1)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (M,) with probabilities proportional to weights (M, V), by numbers (M,) that are uniform in [0, 1).

    By the inverse of the cumulated weights: a position takes one random number, where a race of exponentials takes V.
    """
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1:]
    below = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulated, below, right=True).flatten()  # the first token whose sum is above
