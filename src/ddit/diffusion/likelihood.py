"""Log-likelihoods of texts under the text process: the NELBO with its time integrated out, over sets of masked units.

A text has n units: positions, or groups of positions that are masked and revealed together. At time t a set S of m
of the n units is masked with probability t^m (1 - t)^(n - m), and the integral of t^(m - 1) (1 - t)^(n - m) over t in
[0, 1] is 1 / (m C(n, m)). So the continuous-time bound needs no time:

    log p(x) >= sum over S, not empty, of f(S) / (m C(n, m)),    f(S) = sum over units i in S of log p(x_i | the rest)

which is the mean over all orders of revealing one unit after the other of that order's log-likelihood: exact where the
model's conditionals agree with one joint distribution.

Nothing here knows a model, see `masked.LogitsFn`. Shape legend: n units, S sets, H strata, b samples, L positions.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, masked_token_nll, without_padding


@dataclass(frozen=True, eq=False)
class MaskSets:
    """Sets of units to mask, in strata of sets of equal size (or, of long texts, of similar sizes).

    Attributes:
        is_masked: (S, n) bool; the sets of one stratum follow each other.
        scale: (S,) float64, so that the bound is the sum over the strata of the means of scale * f.
        counts: sets drawn in each stratum.
        unseen: share of each stratum's sets that were not drawn, 0 where it holds all.
    """

    is_masked: Tensor
    scale: Tensor
    counts: tuple[int, ...]
    unseen: tuple[float, ...]

    @property
    def is_exact(self) -> bool:
        """Whether these are all sets there are."""
        return not any(self.unseen)

    def bound(self, values: Tensor) -> tuple[float, float]:
        """The bound of log p, and its standard error, from f of each set, (S,).

        The error is that of the draw of sets (with the finite population's correction), 0 if nothing was left to draw.
        """
        total, variance = 0.0, 0.0
        scaled = (self.scale * values.cpu().double()).split(self.counts)
        for stratum, unseen in zip(scaled, self.unseen, strict=True):
            total += stratum.mean().item()
            if unseen:
                variance += unseen * stratum.var().item() / len(stratum)
        return total, math.sqrt(variance)


def mask_sets(
    num_units: int, num_samples: int, generator: torch.Generator, *, block_size: int = 0
) -> MaskSets:
    """All 2^n - 1 sets if they are at most num_samples, else so many, drawn.

    Each size m of 1..n is a stratum, with about as many sets as every other; a stratum with fewer has all of its own,
    and none is drawn twice. If there are more sizes than half of num_samples, neighbouring ones share a stratum.

    block_size: of texts in blocks (`blocks`) of so many units. The bound is the sum of the blocks' own, which share
        num_samples, at least two each; a set masks units of one block, and the blocks before it are clean.

    Raises:
        ValueError: if num_samples is less than 2, which has no standard error.
    """
    assert num_units >= 1
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    if 0 < block_size < num_units:
        sizes = [min(block_size, num_units - start) for start in range(0, num_units, block_size)]
        share = max(2, num_samples // len(sizes))
        return _side_by_side([mask_sets(size, share, generator) for size in sizes])
    num_strata = min(num_units, num_samples // 2)
    edges = [1 + num_units * h // num_strata for h in range(num_strata + 1)]
    strata = [range(low, high) for low, high in itertools.pairwise(edges)]
    capacities = [math.comb(num_units, sizes[0]) if len(sizes) == 1 else math.inf for sizes in strata]
    counts = _shared_out(num_samples, capacities)
    sets, scale, unseen = [], [], []
    for sizes, count, capacity in zip(strata, counts, capacities, strict=True):
        drawn = _draw_sets(num_units, sizes, count, capacity, generator)
        sets += drawn
        scale += [len(sizes) / len(units) for units in drawn]
        unseen.append(1 - count / capacity)
    is_masked = torch.zeros(len(sets), num_units, dtype=torch.bool)
    for row, units in enumerate(sets):
        is_masked[row, list(units)] = True
    return MaskSets(is_masked, torch.tensor(scale, dtype=torch.float64), tuple(counts), tuple(unseen))


class TextUnits(NamedTuple):
    """The units of texts: each token of an answer is one, and so is the end, an end-of-text token with its padding.

    units: (B, L), -1 where a position is given and never masked. is_scored: (B, L) bool; padding is no choice of the
    model's (`text_sampler.sample_text` fills it in), hence it costs nothing. counts: (B,), of the units.
    """

    units: Tensor
    is_scored: Tensor
    counts: Tensor


def text_units(input_ids: Tensor, answer_mask: Tensor, eos_token_id: int) -> TextUnits:
    """The units of training texts (B, L) with their answer masks. A text without an end-of-text token has no end."""
    is_scored = without_padding(input_ids, answer_mask, eos_token_id)
    units = torch.where(answer_mask, is_scored.cumsum(1) - 1, -1)
    return TextUnits(units, is_scored, is_scored.sum(1))


def set_log_probs(
    logits_fn: LogitsFn,
    input_ids: Tensor,
    units: Tensor,
    is_scored: Tensor,
    is_masked: Tensor,
    *,
    mask_token_id: int,
) -> Tensor:
    """f(S) of a set each: the log-probability of what it masks, given the rest of its text; (b,) in float32.

    Args:
        input_ids: (b, L), clean.
        units: (b, L), the unit of each position; -1 where it is given and never masked.
        is_scored: (b, L) bool; what else a set masks is masked, but costs nothing.
        is_masked: (b, n) bool, the set.
    """
    is_masked = is_masked.gather(1, units.clamp(min=0)) & (units >= 0)  # (b, L)
    noisy_ids = torch.where(is_masked, mask_token_id, input_ids)
    return -masked_token_nll(
        logits_fn, input_ids, noisy_ids, is_masked & is_scored, mask_token_id=mask_token_id
    ).sum(1)


def _side_by_side(blocks: list[MaskSets]) -> MaskSets:
    """The sets of blocks that follow each other in a text, whose bounds add up."""
    return MaskSets(
        torch.block_diag(*(sets.is_masked for sets in blocks)).bool(),
        torch.cat([sets.scale for sets in blocks]),
        tuple(count for sets in blocks for count in sets.counts),
        tuple(share for sets in blocks for share in sets.unseen),
    )


def _shared_out(total: int, capacities: list[float]) -> list[int]:
    """How many each gets of `total`, in equal shares, what one has no room for going to the others."""
    counts = [0] * len(capacities)
    for done, index in enumerate(sorted(range(len(capacities)), key=capacities.__getitem__)):
        counts[index] = int(min(capacities[index], total // (len(capacities) - done)))
        total -= counts[index]
    return counts


def _draw_sets(
    num_units: int, sizes: range, count: int, capacity: float, generator: torch.Generator
) -> list[tuple[int, ...]]:
    """So many sets of units: different ones where all are of one size, else each of a random size."""
    if len(sizes) > 1:
        drawn = torch.randint(sizes.start, sizes.stop, (count,), generator=generator).tolist()
        return [_draw_set(num_units, size, generator) for size in drawn]
    if 2 * count >= capacity:  # few enough to list
        every = list(itertools.combinations(range(num_units), sizes[0]))
        return [every[i] for i in torch.randperm(len(every), generator=generator)[:count].tolist()]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:  # at most half of all: each draw is a new one at least every other time
        found.setdefault(_draw_set(num_units, sizes[0], generator))
    return list(found)


def _draw_set(num_units: int, size: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(sorted(torch.randperm(num_units, generator=generator)[:size].tolist()))
