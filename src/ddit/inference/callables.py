"""A model as callables, for the two processes: `velocity_fn` for images, `logits_fn` for texts. The only place.

For texts as little is computed as the model and the settings allow. Exact: with `image_attends_text=False` the image
side is computed once an image, for all steps and all texts about it. Approximate, and off by default: the image side of
other models and the text encoder's states are reused over several steps (`Refresh`).

Shape legend: B samples of a batch, b those of a step, L text tokens, P images of the batch, M masked positions of a
step, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddit.diffusion.flow import VelocityFn
from ddit.diffusion.masked import LogitsFn
from ddit.model.block import BlockKV, ImageKV
from ddit.model.config import TextInput
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import TextCodec
from ddit.model.t5_cache import T5Cache
from ddit.model.text_blocks import of_rows, one_copy

StatesFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The text encoder's states (b, L, D_text) of (noisy_ids, is_masked, rows), as a `LogitsFn` is called."""


def velocity_fn(model: DualDiT, text_states: Tensor) -> VelocityFn:
    """Velocities under text states (B, L, D_text).

    For guidance they are those of the unconditional prompts, then of the conditional ones; called with fewer samples,
    the velocity is under the last states, the conditional ones.
    """
    dtype = next(model.parameters()).dtype
    text_states = text_states.to(dtype)

    def velocity(latents: Tensor, t: Tensor) -> Tensor:
        states = text_states[-len(latents) :]
        out = model(latents.to(dtype), t, states, num_t2i=len(latents)).velocity
        assert out is not None
        return out

    return velocity


@dataclass(frozen=True)
class ImageContext:
    """The images that a batch of texts is about.

    Attributes:
        latents: (P, C, H, W), clean; None is the null image.
        kv: the images' keys and values, where these do not depend on the text.
        index: (B,), the image of each text.
        null_rows: (B,) bool, texts that have the null image all the same.
    """

    latents: Tensor | None
    kv: ImageKV | None
    index: Tensor
    null_rows: Tensor | None = None

    @property
    def is_null(self) -> bool:
        """Whether all texts are about the null image."""
        return self.latents is None


def null_context(model: DualDiT, count: int, kv: ImageKV | None) -> ImageContext:
    """So many texts about the null image; `kv` is what `null_image_kv` gave."""
    index = torch.zeros(count, dtype=torch.long, device=model.null_image_embd.device)
    return ImageContext(None, kv, index)


def null_image_kv(model: DualDiT) -> ImageKV | None:
    """The null image's keys and values, where these do not depend on the text."""
    return None if model.config.image_attends_text else model.image_kv(None)


def logits_fn(
    model: DualDiT,
    states_fn: StatesFn,
    images: ImageContext,
    refresh: "Refresh | None" = None,
    *,
    blocks: Tensor | None = None,
) -> LogitsFn:
    """Logits of partly masked texts about images.

    refresh: when the image side is computed again, for models whose image side sees the text; None: in every step.
    blocks: (B or 1, L), of texts in blocks that are given whole (`text_blocks.one_copy`); `states_fn` knows them too.
    """
    if images.kv is not None:
        return _cached_logits(model, states_fn, images.kv, images.index, blocks)
    # What is kept of images has one size for all: where some are null, nothing is.
    return _JointLogits(model, states_fn, images, refresh if images.null_rows is None else None, blocks)


class Refresh:
    """When what is kept of a sample is computed again: in its first step, where a block begins, and every few steps.

    every: steps of a sample from one to the next; 0 only where a block begins. 1 is always.
    blocks: (B, L), the block of each answer position, see `unmasking.answer_blocks`.
    """

    def __init__(self, every: int, blocks: Tensor) -> None:
        self.every, self.blocks = every, blocks
        self._steps = torch.zeros(len(blocks), dtype=torch.long, device=blocks.device)  # since then
        self._block = torch.full_like(self._steps, -1)  # the one being filled then

    def due(self, is_masked: Tensor, rows: Tensor) -> Tensor:
        """(b,) bool for the samples `rows` with masked positions `is_masked` (b, L); counts the step."""
        block = torch.where(is_masked, self.blocks[rows], self.blocks.shape[1]).amin(1)
        due = block != self._block[rows]
        if self.every:
            due |= self._steps[rows] >= self.every
        self._block[rows] = block
        self._steps[rows] = torch.where(due, 1, self._steps[rows] + 1)
        return due


class TextStates:
    """A `StatesFn`: states of noisy texts. Asked twice in one step, as by guidance, it computes them once.

    blocks: (B or 1, L), of texts in blocks that are given whole. text_input: the model's.
    """

    def __init__(
        self,
        codec: TextCodec,
        refresh: Refresh | None = None,
        *,
        blocks: Tensor | None = None,
        text_input: TextInput = "encoder",
    ) -> None:
        self.codec, self.refresh, self.blocks = codec, refresh, blocks
        self.text_input: TextInput = text_input
        self._cache = None if refresh is None else T5Cache(codec.encoder, len(refresh.blocks))
        self._asked, self._states = torch.empty(0), torch.empty(0)

    @torch.no_grad()
    def __call__(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        if self._asked is not noisy_ids:
            self._asked = noisy_ids
            if self.refresh is None or self._cache is None or self.text_input == "embeddings":
                text = None if self.blocks is None else one_copy(of_rows(self.blocks, rows))
                self._states = self.codec.i2t_states(noisy_ids, text, self.text_input)
            else:
                with self.codec.on_device():
                    self._states = self._cache.states(noisy_ids, rows, self.refresh.due(is_masked, rows))
        return self._states


def _cached_logits(
    model: DualDiT, states_fn: StatesFn, kv: ImageKV, index: Tensor, blocks: Tensor | None
) -> LogitsFn:
    """Against keys and values that are kept: a step is the text stream alone."""

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        mask, states = _sees(blocks, rows), states_fn(noisy_ids, is_masked, rows)
        if mask is not None:
            mask = F.pad(mask, (kv[0].k.shape[2], 0), value=True)[:, None]
        return model.text_logits(states, kv, is_masked, rows=index[rows], mask=mask)

    return logits


def _sees(blocks: Tensor | None, rows: Tensor) -> Tensor | None:
    """Which text tokens each one sees, (b, L, L) bool; None: all."""
    return None if blocks is None else one_copy(of_rows(blocks, rows).expand(len(rows), -1)).sees


class _JointLogits:
    """By both streams; `refresh` keeps the image side's keys and values between the steps in which it is due."""

    def __init__(
        self,
        model: DualDiT,
        states_fn: StatesFn,
        images: ImageContext,
        refresh: Refresh | None,
        blocks: Tensor | None,
    ) -> None:
        self.model, self.states_fn, self.images, self.refresh = model, states_fn, images, refresh
        self.blocks = blocks
        self.dtype = next(model.parameters()).dtype
        self._kv: ImageKV = []  # of all samples, (B, heads, N, E)

    def __call__(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        states = self.states_fn(noisy_ids, is_masked, rows).to(self.dtype)
        if self.refresh is None:
            return self._whole(states, is_masked, rows, keep=False)
        due = self.refresh.due(is_masked, rows)
        if due.all():
            return self._whole(states, is_masked, rows, keep=True)
        if not due.any():
            return self.model.text_logits(states, self._kv, is_masked, rows=rows)
        whole = self._whole(states[due], is_masked[due], rows[due], keep=True)
        kept = self.model.text_logits(states[~due], self._kv, is_masked[~due], rows=rows[~due])
        is_whole = due[:, None].expand_as(is_masked)[is_masked][:, None]  # (M, 1)
        logits = whole.new_zeros(len(is_whole), whole.shape[1])
        return logits.masked_scatter(is_whole, whole).masked_scatter(~is_whole, kept)

    def _whole(self, states: Tensor, is_masked: Tensor, rows: Tensor, *, keep: bool) -> Tensor:
        images = self.images
        latents = None if images.latents is None else images.latents[images.index[rows]].to(self.dtype)
        nulls = None if images.null_rows is None else images.null_rows[rows]
        t = torch.zeros(len(rows), device=states.device)
        out = self.model(
            latents, t, states, num_t2i=0, logit_mask=is_masked, null_rows=nulls, keep_image=keep,
            sees=_sees(self.blocks, rows),
        )  # fmt: skip
        if keep:
            self._keep(out.image_kv, rows)
        return out.logits

    def _keep(self, kv: ImageKV, rows: Tensor) -> None:
        if not self._kv:
            shape = (len(self.images.index), *kv[0].k.shape[1:])
            self._kv = [BlockKV(b.k.new_zeros(shape), b.v.new_zeros(shape), b.text_mod) for b in kv]
        for kept, fresh in zip(self._kv, kv, strict=True):
            kept.k[rows], kept.v[rows] = fresh.k, fresh.v
