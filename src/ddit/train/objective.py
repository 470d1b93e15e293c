"""The loss of one micro-batch: t2i and i2t samples, in one forward pass of the transformer if their shapes agree."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddit.config.runs import ObjectiveConfig
from ddit.diffusion import flow, masked
from ddit.model.dual_dit import DualDiT, DualOutput
from ddit.settings import MaskedConfig
from ddit.train.batch import Batch, I2TBatch, T2IBatch
from ddit.train.cross_entropy import weighted_nll

Pair = tuple[Tensor | None, Tensor | None]
"""A tensor of the t2i half and one of the i2t half."""


class Losses(NamedTuple):
    """Scalars in float32; `total` is to be minimised; a part that is not trained is None."""

    total: Tensor
    image: Tensor | None
    text: Tensor | None
    alignment: Tensor | None


def step_losses(
    transformer: DualDiT,
    batch: Batch,
    latents: Pair,
    states: Pair,
    cfg: ObjectiveConfig,
    *,
    mask_token_id: int,
    alignment_head: nn.Module | None = None,
) -> Losses:
    """Losses of a micro-batch, each a mean over its samples, so that their mean over micro-batches is the global one.

    One forward pass when both halves have the same latent size and text length, else two. Ranks that share a model must
    come to the same choice, since they gather its weights together.

    Args:
        transformer: the weights of its text head are used directly: of a sharded model, call this inside the root's
            forward.
        latents: clean latents (n, C, h, w) of the t2i and the i2t half, in float32; None for a half that `batch` does
            not have, or for an i2t half whose images are all null.
        states: text states (n, L, D_text) of `prompt_ids` and of `noisy_ids`.
        alignment_head: given where `cfg.alignment_weight` is above 0.
    """
    t2i, i2t = batch.t2i, batch.i2t
    halves = []
    if t2i is not None:
        halves.append(_t2i_half(t2i, latents[0], states[0]))
    if i2t is not None:
        halves.append(_i2t_half(i2t, latents[1], states[1], mask_token_id))
    output = _forward(transformer, halves, cfg.alignment_block if alignment_head is not None else None)

    image = text = alignment = None
    parts = []
    if t2i is not None and latents[0] is not None and output.velocity is not None:
        velocity = output.velocity
        image = flow.flow_loss(
            lambda x, t: velocity, latents[0], cfg=cfg.flow, t=t2i.t, noise=t2i.noise
        ).mean()
        parts.append(image)
    if i2t is not None and output.text_hidden is not None:
        head = transformer.text_proj_out
        text = text_loss(head, output.text_hidden, i2t, cfg.text, mask_token_id=mask_token_id)
        parts.append(cfg.lambda_text * text)
    if t2i is not None and alignment_head is not None:
        assert t2i.features is not None
        assert output.features is not None
        alignment = alignment_loss(alignment_head, output.features[: len(t2i.t)], t2i.features)
        parts.append(cfg.alignment_weight * alignment)
    return Losses(torch.stack(parts).sum(), image, text, alignment)


class _Half(NamedTuple):
    """What the transformer is given for the m samples of one half-batch. is_masked: (m, L) bool."""

    latents: Tensor | None
    t: Tensor
    states: Tensor
    num_t2i: int = 0
    null_rows: Tensor | None = None
    is_masked: Tensor | None = None


def _t2i_half(t2i: T2IBatch, latents: Tensor | None, states: Tensor | None) -> _Half:
    assert latents is not None
    assert states is not None
    return _Half(flow.add_noise(latents, t2i.noise, t2i.t), t2i.t, states, num_t2i=len(t2i.t))


def _i2t_half(i2t: I2TBatch, latents: Tensor | None, states: Tensor | None, mask_token_id: int) -> _Half:
    assert states is not None
    null_rows = None if latents is None else i2t.images.is_null
    is_masked = _is_masked(i2t, mask_token_id)
    return _Half(latents, torch.zeros_like(i2t.t), states, null_rows=null_rows, is_masked=is_masked)


def _forward(transformer: DualDiT, halves: list[_Half], features_after: int | None) -> DualOutput:
    """Velocity, features and the text head's input of the halves, from one forward pass if they fit together."""
    if len(halves) == 2:
        if not _fit(*halves):
            t2i, i2t = (_forward(transformer, [half], features_after) for half in halves)
            return DualOutput(t2i.velocity, None, t2i.features, i2t.text_hidden)
        halves = [_join(*halves)]
    (half,) = halves
    dtype = next(transformer.parameters()).dtype
    return transformer(
        None if half.latents is None else half.latents.to(dtype),
        half.t,
        half.states.to(dtype),
        num_t2i=half.num_t2i,
        null_rows=half.null_rows,
        logit_mask=half.is_masked,
        text_hidden=True,
        features_after=features_after,
    )


def _fit(t2i: _Half, i2t: _Half) -> bool:
    if t2i.latents is None or i2t.latents is None:
        return False
    return t2i.latents.shape[1:] == i2t.latents.shape[1:] and t2i.states.shape[1:] == i2t.states.shape[1:]


def _join(t2i: _Half, i2t: _Half) -> _Half:
    assert t2i.latents is not None
    assert i2t.latents is not None
    return _Half(
        torch.cat([t2i.latents, i2t.latents]),
        torch.cat([t2i.t, i2t.t]),
        torch.cat([t2i.states, i2t.states]),
        t2i.num_t2i,
        None if i2t.null_rows is None else F.pad(i2t.null_rows, (t2i.num_t2i, 0)),
        i2t.is_masked,
    )


def _is_masked(i2t: I2TBatch, mask_token_id: int) -> Tensor:
    return (i2t.noisy_ids == mask_token_id) & i2t.answer_mask


def text_loss(
    head: nn.Linear, hidden: Tensor, i2t: I2TBatch, cfg: MaskedConfig, *, mask_token_id: int
) -> Tensor:
    """Mean of `masked.masked_loss` over the samples, without the matrix of all logits.

    hidden: (selected, D), the text head's input at the masked positions, in row-major order.
    """
    is_masked = _is_masked(i2t, mask_token_id)
    weights = masked.nll_weights(i2t.answer_mask, i2t.t, cfg) / len(i2t.t)
    token_weights = weights[:, None].expand_as(is_masked)[is_masked]
    return weighted_nll(
        hidden, head.weight, head.bias, i2t.input_ids[is_masked], token_weights, ruled_out=mask_token_id
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
