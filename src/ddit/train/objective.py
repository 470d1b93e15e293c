"""The loss of one micro-batch: pictures drawn and pictures read, in one forward of the transformer if shapes allow."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddit.config.runs import ObjectiveConfig
from ddit.diffusion import flow, masked
from ddit.diffusion.masked import MaskedConfig
from ddit.model.dual_dit import DualDiT, DualOutput
from ddit.train.batch import Batch, Drawn, Read
from ddit.train.cross_entropy import weighted_nll


class Losses(NamedTuple):
    """Scalars in float32; `total` is what to minimise, a part that took no part is None."""

    total: Tensor
    image: Tensor | None
    text: Tensor | None
    alignment: Tensor | None


def step_losses(
    transformer: DualDiT,
    batch: Batch,
    drawn_latents: Tensor | None,
    read_latents: Tensor | None,
    drawn_states: Tensor | None,
    read_states: Tensor | None,
    cfg: ObjectiveConfig,
    *,
    mask_token_id: int,
    alignment_head: nn.Module | None = None,
) -> Losses:
    """Losses of a micro-batch, each a mean over its samples, so that their mean over micro-batches is the global one.

    One forward when both halves have the same latent size and text length, else two. Ranks that share a model must come
    to the same choice, since they gather its weights together.

    Args:
        transformer: the weights of its text head are used directly: of a sharded model, call this inside the root's
            forward.
        drawn_latents, read_latents: clean latents (n, C, h, w) of the two halves, in float32; None for a half that
            `batch` does not have, or for pictures to read that are null, all of them.
        drawn_states, read_states: text states (n, L, D_text) of `prompt_ids` and of `noisy_ids`.
        alignment_head: given where `cfg.alignment_weight` is above 0.
    """
    drawn, read = batch.drawn, batch.read
    halves = []
    if drawn is not None:
        halves.append(_drawn_half(drawn, drawn_latents, drawn_states))
    if read is not None:
        halves.append(_read_half(read, read_latents, read_states, mask_token_id))
    output = _forward(transformer, halves, cfg.alignment_block if alignment_head is not None else None)

    image = text = alignment = None
    parts = []
    if drawn is not None and drawn_latents is not None and output.velocity is not None:
        velocity = output.velocity
        image = flow.flow_loss(
            lambda x, t: velocity, drawn_latents, cfg=cfg.flow, t=drawn.t, noise=drawn.noise
        ).mean()
        parts.append(image)
    if read is not None and output.text_hidden is not None:
        head = transformer.text_proj_out
        text = text_loss(head, output.text_hidden, read, cfg.text, mask_token_id=mask_token_id)
        parts.append(cfg.lambda_text * text)
    if drawn is not None and alignment_head is not None:
        assert drawn.features is not None
        assert output.features is not None
        alignment = alignment_loss(alignment_head, output.features[: len(drawn.t)], drawn.features)
        parts.append(cfg.alignment_weight * alignment)
    return Losses(torch.stack(parts).sum(), image, text, alignment)


class _Half(NamedTuple):
    """What the transformer is given for the m samples of one half-batch; `at` (m, L): the masked positions."""

    latents: Tensor | None
    t: Tensor
    states: Tensor
    num_t2i: int = 0
    null_rows: Tensor | None = None
    at: Tensor | None = None


def _drawn_half(drawn: Drawn, latents: Tensor | None, states: Tensor | None) -> _Half:
    assert latents is not None
    assert states is not None
    return _Half(flow.add_noise(latents, drawn.noise, drawn.t), drawn.t, states, num_t2i=len(drawn.t))


def _read_half(read: Read, latents: Tensor | None, states: Tensor | None, mask_token_id: int) -> _Half:
    assert states is not None
    null_rows = None if latents is None else read.pictures.is_null
    at = _is_masked(read, mask_token_id)
    return _Half(latents, torch.zeros_like(read.t), states, null_rows=null_rows, at=at)


def _forward(transformer: DualDiT, halves: list[_Half], features_after: int | None) -> DualOutput:
    """Velocity, features and the text head's input of the halves, from one forward if they fit together."""
    if len(halves) == 2:
        if not _fit(*halves):
            drawn, read = (_forward(transformer, [half], features_after) for half in halves)
            return DualOutput(drawn.velocity, None, drawn.features, read.text_hidden)
        halves = [_join(*halves)]
    (half,) = halves
    dtype = next(transformer.parameters()).dtype
    return transformer(
        None if half.latents is None else half.latents.to(dtype),
        half.t,
        half.states.to(dtype),
        num_t2i=half.num_t2i,
        null_rows=half.null_rows,
        logit_mask=half.at,
        text_hidden=True,
        features_after=features_after,
    )


def _fit(drawn: _Half, read: _Half) -> bool:
    if drawn.latents is None or read.latents is None:
        return False
    same_size = drawn.latents.shape[1:] == read.latents.shape[1:]
    return same_size and drawn.states.shape[1:] == read.states.shape[1:]


def _join(drawn: _Half, read: _Half) -> _Half:
    assert drawn.latents is not None
    assert read.latents is not None
    return _Half(
        torch.cat([drawn.latents, read.latents]),
        torch.cat([drawn.t, read.t]),
        torch.cat([drawn.states, read.states]),
        drawn.num_t2i,
        None if read.null_rows is None else F.pad(read.null_rows, (drawn.num_t2i, 0)),
        read.at,
    )


def _is_masked(read: Read, mask_token_id: int) -> Tensor:
    return (read.noisy_ids == mask_token_id) & read.answer_mask


def text_loss(
    head: nn.Linear, hidden: Tensor, read: Read, cfg: MaskedConfig, *, mask_token_id: int
) -> Tensor:
    """Mean of `masked.masked_loss` over the samples, without the matrix of all logits.

    hidden (selected, D): the text head's input at the masked positions, in row-major order.
    """
    at = _is_masked(read, mask_token_id)
    weights = masked.nll_weights(read.answer_mask, read.t, cfg) / len(read.t)
    token_weights = weights[:, None].expand_as(at)[at]
    return weighted_nll(
        hidden, head.weight, head.bias, read.input_ids[at], token_weights, ruled_out=mask_token_id
    )


class AlignmentHead(nn.Module):
    """Image tokens to the teacher's features: an MLP that is dropped after training."""

    def __init__(self, hidden_size: int, feature_channels: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(hidden_size, hidden_size)
        self.fc_out = nn.Linear(hidden_size, feature_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc_out(F.silu(self.fc_in(tokens)))


def alignment_loss(head: nn.Module, tokens: Tensor, features: Tensor) -> Tensor:
    """Representation alignment (after REPA, Yu et al. 2024): mean of 1 - cosine, image token by image token.

    A deviation from D-DiT, off by default. tokens (n, N, D) in row-major order; features (n, F, h, w) with h w = N.
    """
    target = features.flatten(2).transpose(1, 2)  # (n, N, F)
    return (1 - F.cosine_similarity(head(tokens).float(), target, dim=-1)).mean()
