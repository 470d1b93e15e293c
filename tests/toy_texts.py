"""Texts over three tokens, few enough to be enumerated: models of them, and bounds by brute force."""

import itertools

import torch
from torch import Tensor

from ddit.diffusion.likelihood import MaskSets, set_log_probs
from ddit.diffusion.masked import LogitsFn, subs_log_probs

VOCAB, MASK, LENGTH = 4, 3, 4


def context_logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
    """Logits that depend on all that is visible and on the position; no joint distribution has such conditionals."""
    context = (noisy_ids * torch.arange(1, noisy_ids.shape[1] + 1)).sum(1, keepdim=True)
    position = torch.arange(noisy_ids.shape[1])[None]
    return torch.sin((context + 3 * position)[..., None] * 0.7 + 1.3 * torch.arange(VOCAB))[is_masked] * 3


def conditionals_of(joint: Tensor) -> LogitsFn:
    """The logits of a joint distribution over three tokens at each of the positions, (3, ..., 3)."""

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        found = []
        for ids, positions in zip(noisy_ids, is_masked, strict=True):
            for position in positions.nonzero().flatten().tolist():
                visible = tuple(
                    slice(None) if token == MASK or i == position else token
                    for i, token in enumerate(ids.tolist())
                )
                left = joint[visible]  # the axes that are masked
                axis = sum(token == MASK for token in ids[:position].tolist())
                others = [i for i in range(left.dim()) if i != axis]
                found.append(torch.cat([(left.sum(others) if others else left).log(), torch.zeros(1)]))
        return torch.stack(found)

    return logits


def bound(
    logits_fn: LogitsFn, ids: Tensor, sets: MaskSets, units: Tensor | None = None
) -> tuple[float, float]:
    """The bound of a text (L,), of which by default each position is a unit."""
    units = torch.arange(len(ids)) if units is None else units
    count = len(sets.is_masked)
    ids, units = ids.expand(count, -1), units.expand(count, -1)
    values = set_log_probs(logits_fn, ids, units, units >= 0, sets.is_masked, mask_token_id=MASK)
    return sets.bound(values)


def by_orders(logits_fn: LogitsFn, ids: Tensor, units: list[list[int]]) -> float:
    """The mean over all orders of the units of the log-likelihood of revealing one after the other."""
    totals = []
    for order in itertools.permutations(units):
        noisy = ids.clone()
        noisy[[position for unit in units for position in unit]] = MASK
        total = 0.0
        for unit in order:
            is_masked = torch.zeros(1, len(ids), dtype=torch.bool)
            is_masked[0, unit] = True
            log_probs = subs_log_probs(logits_fn(noisy[None], is_masked, torch.zeros(1)), MASK)
            total += log_probs.gather(1, ids[unit][:, None]).sum().item()
            noisy[unit] = ids[unit]
        totals.append(total)
    return sum(totals) / len(totals)
