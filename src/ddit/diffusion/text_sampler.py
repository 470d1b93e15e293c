"""Sampling texts by masked diffusion (`masked`): from all masked to none, by an unmasking rule."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, subs_log_probs
from ddit.diffusion.unmasking import (
    all_confident,
    answer_blocks,
    choose_positions,
    confidence_of,
    sample_categorical,
    top_p_filter,
)
from ddit.settings import UnmaskingRule

FINAL_TIME = 1e-5
CACHE_BYTES, PART_BYTES = 2**21, 2**28
"""Of distributions at a time: on a CPU, whose cache is to hold them, and elsewhere."""


class TextState(NamedTuple):
    """Texts after a step, (B, L) each.

    ids: mask tokens where nothing is filled yet.
    answer_mask: bool, positions that are filled or to be filled; the rest is given.
    confidence: float32, the probability of a token when it was filled in; 1 where it is given or follows the end of the
        text, 0 where nothing is filled.
    is_settled: bool, positions that no later step changes.
    """

    ids: Tensor
    answer_mask: Tensor
    confidence: Tensor
    is_settled: Tensor


OnStep = Callable[[int, int, TextState], None]
"""Called after every step with (steps done, the most that are taken, state)."""


class TextSample(NamedTuple):
    """What `sample_text` returns: ids (B, L) without mask tokens, and the steps that each sample took, (B,)."""

    ids: Tensor
    num_steps: Tensor


def sample_text(
    logits_fn: LogitsFn,
    input_ids: Tensor,
    answer_mask: Tensor,
    *,
    num_steps: int,
    mask_token_id: int,
    eos_token_id: int | None = None,
    banned_ids: Sequence[int] = (),
    rule: UnmaskingRule | None = None,
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> TextSample:
    """Fills the answer positions, from all masked to none; each sample has its own state and its own randomness.

    A batch gives what single calls give. A finished sample takes no more steps.

    Args:
        input_ids: (B, L); positions outside `answer_mask` are pinned and never change.
        answer_mask: (B, L) bool; True is ours to fill.
        num_steps: N, the most steps a sample takes. Order "random" may take one more, with probability 1e-5 a position.
        eos_token_id: where everything before a sample's first end-of-text token is filled, the rest is filled
            with it. None switches this off.
        banned_ids: tokens that are never chosen, beside the mask token.
        rule: which positions a step fills, and how their tokens are drawn; by default the published sampling.
        generators: one a sample, on the device of the logits or the CPU; None: the default generator.

    Raises:
        ValueError: if num_steps is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    sampler = TextSampler(
        logits_fn,
        input_ids,
        answer_mask,
        mask_token_id,
        eos_token_id,
        banned_ids,
        rule or UnmaskingRule(),
        generators,
    )
    sampler.run(num_steps, on_step)
    return TextSample(sampler.ids, sampler.num_steps)


class _Choices(NamedTuple):
    """What a step would fill in at M masked positions, each (M,).

    tokens, probs: and their probabilities. confidence: see `unmasking.confidence_of`. best, best_probs: the likeliest
    tokens.
    """

    tokens: Tensor
    probs: Tensor
    confidence: Tensor
    best: Tensor
    best_probs: Tensor


class TextSampler:
    """State of `sample_text`, which fills the positions that are open: all of the answer, or a part of it at a time."""

    def __init__(
        self,
        logits_fn: LogitsFn,
        input_ids: Tensor,
        answer_mask: Tensor,
        mask_token_id: int,
        eos_token_id: int | None,
        banned_ids: Sequence[int],
        rule: UnmaskingRule,
        generators: Sequence[torch.Generator] | None,
    ) -> None:
        self.logits_fn, self.answer_mask = logits_fn, answer_mask
        self.mask_token_id, self.eos_token_id, self.banned_ids = mask_token_id, eos_token_id, banned_ids
        self.rule, self.generators = rule, generators
        self.ids = torch.where(answer_mask, mask_token_id, input_ids)
        self.confidence = (~answer_mask).float()  # (B, L)
        self.num_steps = torch.zeros(len(input_ids), dtype=torch.long)
        self.open(answer_mask)

    def open(self, positions: Tensor) -> None:
        """The next `run` fills these, (B, L) bool."""
        self.is_open = positions
        self.blocks = answer_blocks(positions, self.rule.block_size)  # (B, L)

    def run(self, num_steps: int, on_step: OnStep | None) -> None:
        hits = self._hitting_steps(num_steps) if self.rule.order == "random" else None
        done = 0
        while self._is_masked().any():
            self._step(max(num_steps - done, 1), hits, num_steps)
            self._stop_at_end_of_text()
            done += 1
            if on_step is not None and done < num_steps:
                on_step(done, num_steps, self.state)
        if on_step is not None:
            on_step(num_steps, num_steps, self.state)

    @property
    def state(self) -> TextState:
        is_settled = (self.ids != self.mask_token_id) & ~self._is_editable()
        return TextState(self.ids.clone(), self.answer_mask, self.confidence.clone(), is_settled)

    def _is_masked(self) -> Tensor:
        return (self.ids == self.mask_token_id) & self.is_open  # (B, L)

    def _is_editable(self) -> Tensor:
        """Filled positions that a step may fill anew: of the block at work, where the rule edits. (B, L) bool."""
        if self.rule.edit_above == 1:
            return torch.zeros_like(self.is_open)
        is_masked = self._is_masked()
        at_work = torch.where(is_masked, self.blocks, self.blocks.max() + 1).amin(1, keepdim=True)
        return self.is_open & ~is_masked & (self.blocks == at_work)

    def _step(self, steps_left: int, hits: Tensor | None, num_steps: int) -> None:
        is_masked = self._is_masked()
        rows = is_masked.any(1).nonzero().flatten()
        is_masked, is_editable = is_masked[rows], self._is_editable()[rows]
        counts, uniform = is_masked.sum(1), None
        if self.rule.temperature != 0:
            drawn = zip(rows.tolist(), counts.tolist(), strict=True)
            uniform = torch.cat([self._uniform(row, count) for row, count in drawn]).to(self.ids.device)
        self.num_steps[rows.cpu()] += 1
        logits = self.logits_fn(self.ids[rows], is_masked | is_editable, rows)
        if is_editable.any():
            is_of_masked = is_masked[is_masked | is_editable]
            self._edit(logits[~is_of_masked], is_editable, rows)
            logits = logits[is_of_masked]
        tokens, probs, confidence, best, best_probs = self._choices(logits, uniform)
        if hits is not None:
            step = torch.where(is_masked, hits[rows], num_steps + 1)
            chosen = is_masked & (step == step.amin(1, keepdim=True))
            is_left = step[is_masked] == num_steps  # over, by the last step
            tokens, probs = torch.where(is_left, best, tokens), torch.where(is_left, best_probs, probs)
        else:
            least = (counts + steps_left - 1) // steps_left
            chosen = choose_positions(self.rule, confidence, is_masked, self.blocks[rows], least)
        chosen |= is_masked & all_confident(best_probs, is_masked, self.rule.commit_above)[:, None]
        ids, known = self.ids[rows], self.confidence[rows]
        self.ids[rows] = torch.where(chosen, ids.masked_scatter(is_masked, tokens), ids)
        self.confidence[rows] = torch.where(chosen, known.masked_scatter(is_masked, probs), known)

    def _edit(self, logits: Tensor, is_editable: Tensor, rows: Tensor) -> None:
        """Fills those of the filled positions (b, L) anew where another token is likelier than `edit_above`.

        logits: (E, V), at these positions.
        """
        best = self._choices(logits, None)
        ids, known = self.ids[rows], self.confidence[rows]
        is_other = (best.probs > self.rule.edit_above) & (best.tokens != ids[is_editable])
        edited = is_editable.masked_scatter(is_editable, is_other)
        self.ids[rows] = ids.masked_scatter(edited, best.tokens[is_other])
        self.confidence[rows] = known.masked_scatter(edited, best.probs[is_other])

    def _choices(self, logits: Tensor, uniform: Tensor | None) -> _Choices:
        """What would be filled in at M positions, (M, V) and random numbers (M,) if tokens are drawn.

        A part of the positions at a time: with a large vocabulary all their distributions would not fit the cache.
        """
        num_bytes = CACHE_BYTES if logits.device.type == "cpu" else PART_BYTES
        size = max(num_bytes // (4 * logits.shape[-1]), 1)
        parts: list[_Choices] = []
        for first in range(0, len(logits), size):
            part = slice(first, first + size)
            probs = self._distributions(logits[part])
            tokens = best = probs.argmax(-1)
            if uniform is not None:
                tokens = sample_categorical(top_p_filter(probs, self.rule.top_p), uniform[part])
            parts.append(
                _Choices(
                    tokens,
                    probs.gather(1, tokens[:, None]).flatten(),
                    confidence_of(self.rule.order, probs, tokens),
                    best,
                    probs.gather(1, best[:, None]).flatten(),
                )
            )
        return _Choices(*map(torch.cat, zip(*parts, strict=True)))

    def _distributions(self, logits: Tensor) -> Tensor:
        """(M, V) -> (M, V) in float32, by the rule's temperature and without what is banned."""
        if self.rule.temperature not in (0, 1):
            logits = logits.float() / self.rule.temperature
        return subs_log_probs(logits, self.mask_token_id, self.banned_ids).exp()

    def _uniform(self, row: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers (count,) in [0, 1) of a sample's own generator."""
        generator = self.generators[row] if self.generators is not None else None
        device = generator.device if generator is not None else "cpu"
        return torch.rand(count, generator=generator, device=device, dtype=dtype)

    def _stop_at_end_of_text(self) -> None:
        """Fills what is masked after an answer's first end-of-text token before which nothing is masked."""
        if self.eos_token_id is None:
            return
        is_masked = self._is_masked()
        # Not an end that is given, as after an earlier turn.
        is_end = (self.ids == self.eos_token_id) & self.is_open
        ended_before = is_end.cumsum(1) > 0
        masked_before = (is_masked & ~ended_before).any(1)
        self.end(is_masked & ended_before & ~masked_before[:, None])

    def end(self, positions: Tensor) -> None:
        """Fills these, (B, L) bool, with the end-of-text token."""
        assert self.eos_token_id is not None
        self.ids = torch.where(positions, self.eos_token_id, self.ids)
        self.confidence = torch.where(positions, 1.0, self.confidence)

    def _hitting_steps(self, num_steps: int) -> Tensor:
        """The step of ancestral sampling that fills each position, (B, L) in 0..N; N is the argmax at the end.

        The published sampling takes N equal steps from t = 1 to 1e-5 and then the argmax of what is still masked. A
        position is filled at a uniform time (with blocks, uniform in its block's slice of [0, 1]), which is drawn
        beforehand here, so that steps which fill nothing are left out (first hitting, Zheng et al., arXiv 2409.02908).
        """
        is_open, blocks = self.is_open.cpu(), self.blocks.cpu()  # not every device has float64
        u = torch.zeros(self.ids.shape, dtype=torch.float64)
        for row, mask in enumerate(is_open):
            u[row, mask] = self._uniform(row, int(mask.sum()), torch.float64).cpu()
        num_blocks = torch.where(is_open, blocks, 0).amax(1)[:, None] + 1  # (B, 1)
        u = (num_blocks - 1 - blocks + u) / num_blocks
        steps = ((1 - u) / (1 - FINAL_TIME) * num_steps).long().clamp(0, num_steps)
        return steps.to(self.ids.device)
