"""Logits of partly masked texts about pictures, with as little computed as the model and the settings allow.

Exact: with `image_attends_text=False` the image side is computed once a picture, for all passes and all texts about it.
Approximate, and off by default: the image side of other models and the text encoder's states are kept over passes.

Shape legend: B samples of a batch, b those of a pass, L text tokens, P pictures of the batch, M masked positions of a
pass, V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, subs_log_probs
from ddit.model.dual_dit import BlockKV, DualDiT, ImageKV
from ddit.model.t5_cache import T5Cache

if TYPE_CHECKING:  # takes seconds to import
    from ddit.model.encoders import TextCodec

StatesFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The text encoder's states (b, L, D_text) of (noisy_ids, at, rows), as a `LogitsFn` is called."""


class Refresh:
    """When what is kept of a sample is computed anew: in its first pass, where a block begins, and every few passes.

    every: passes of a sample from one to the next; 0 only where a block begins. 1 is always.
    blocks: (B, L), the block of each answer position, see `unmasking.answer_blocks`.
    """

    def __init__(self, every: int, blocks: Tensor) -> None:
        self.every, self.blocks = every, blocks
        self._passes = torch.zeros(len(blocks), dtype=torch.long, device=blocks.device)  # since then
        self._block = torch.full_like(self._passes, -1)  # at work then

    def due(self, is_masked: Tensor, rows: Tensor) -> Tensor:
        """(b,) bool for the samples `rows` with masked positions `is_masked` (b, L); counts the pass."""
        block = torch.where(is_masked, self.blocks[rows], self.blocks.shape[1]).amin(1)
        due = block != self._block[rows]
        if self.every:
            due |= self._passes[rows] >= self.every
        self._block[rows] = block
        self._passes[rows] = torch.where(due, 1, self._passes[rows] + 1)
        return due


class TextStates:
    """States of noisy texts; asked twice in one pass, as by guidance, it computes them once."""

    def __init__(self, codec: "TextCodec", refresh: Refresh | None = None) -> None:
        self.codec, self.refresh = codec, refresh
        self._cache = None if refresh is None else T5Cache(codec.encoder, len(refresh.blocks))
        self._asked, self._states = torch.empty(0), torch.empty(0)

    @torch.no_grad()
    def __call__(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        if self._asked is not noisy_ids:
            self._asked = noisy_ids
            if self.refresh is None or self._cache is None:
                self._states = self.codec.states(noisy_ids)
            else:
                self._states = self._cache.states(noisy_ids, rows, self.refresh.due(is_masked, rows))
        return self._states


def isolated_logits(model: DualDiT, states_fn: StatesFn, cache: ImageKV, pictures: Tensor) -> LogitsFn:
    """Logits of a model with `image_attends_text=False` against what `read_image` kept: a pass is the text stream.

    pictures: (B,), which of the cache's pictures each sample is about.
    """

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        return model.text_logits(states_fn(noisy_ids, is_masked, rows), cache, is_masked, rows=pictures[rows])

    return logits


class JointLogits:
    """Logits of a model whose image side sees the text (or of any model, in whole passes).

    Args:
        latents: (P, C, H, W); None is the null image.
        pictures: (B,), which of these each sample is about.
        refresh: None computes both streams in every pass; else the image side's keys and values are kept in between.
    """

    def __init__(
        self,
        model: DualDiT,
        states_fn: StatesFn,
        latents: Tensor | None,
        pictures: Tensor,
        refresh: Refresh | None = None,
    ) -> None:
        self.model, self.states_fn = model, states_fn
        self.latents, self.pictures, self.refresh = latents, pictures, refresh
        self._cache: ImageKV = []  # of all samples, (B, heads, N, E)

    def __call__(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        states = self.states_fn(noisy_ids, is_masked, rows)
        if self.refresh is None:
            return self._whole(states, is_masked, rows, keep=False)
        due = self.refresh.due(is_masked, rows)
        if due.all():
            return self._whole(states, is_masked, rows, keep=True)
        if not due.any():
            return self.model.text_logits(states, self._cache, is_masked, rows=rows)
        whole = self._whole(states[due], is_masked[due], rows[due], keep=True)
        kept = self.model.text_logits(states[~due], self._cache, is_masked[~due], rows=rows[~due])
        is_whole = due[:, None].expand_as(is_masked)[is_masked][:, None]  # (M, 1)
        logits = whole.new_zeros(len(is_whole), whole.shape[1])
        return logits.masked_scatter(is_whole, whole).masked_scatter(~is_whole, kept)

    def _whole(self, states: Tensor, is_masked: Tensor, rows: Tensor, *, keep: bool) -> Tensor:
        latents = None if self.latents is None else self.latents[self.pictures[rows]]
        t = torch.zeros(len(rows), device=states.device)
        out = self.model(latents, t, states, num_t2i=0, logit_mask=is_masked, keep_image=keep)
        if keep:
            self._keep(out.image_kv, rows)
        return out.logits

    def _keep(self, cache: ImageKV, rows: Tensor) -> None:
        if not self._cache:
            shape = (len(self.pictures), *cache[0].k.shape[1:])
            self._cache = [BlockKV(b.k.new_zeros(shape), b.v.new_zeros(shape), b.text_mod) for b in cache]
        for kept, fresh in zip(self._cache, cache, strict=True):
            kept.k[rows], kept.v[rows] = fresh.k, fresh.v


class ApproximationError(NamedTuple):
    """How far approximate logits are from the exact ones, over the masked positions of all passes.

    kl: mean of KL(exact || approximate), nats. agreement: share of positions with the same likeliest token.
    """

    kl: float
    agreement: float
    num_positions: int


class ErrorMeter:
    """A `LogitsFn` that answers with the exact logits and notes how far the approximate ones are from them."""

    def __init__(self, exact: LogitsFn, approximate: LogitsFn, mask_token_id: int) -> None:
        self.exact, self.approximate, self.mask_token_id = exact, approximate, mask_token_id
        self._kl, self._agree, self._count = 0.0, 0, 0

    def __call__(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        logits = self.exact(noisy_ids, is_masked, rows)
        p, q = (
            subs_log_probs(x, self.mask_token_id)
            for x in (logits, self.approximate(noisy_ids, is_masked, rows))
        )
        self._kl += torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum().item()
        self._agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        self._count += len(p)
        return logits

    @property
    def error(self) -> ApproximationError:
        count = max(self._count, 1)
        return ApproximationError(self._kl / count, self._agree / count, self._count)
