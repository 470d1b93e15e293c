"""The loss of one micro-batch: t2i and i2t samples, in one pass through the transformer's blocks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddit.config.runs import ObjectiveConfig
from ddit.diffusion import flow, masked
from ddit.model.dual_dit import DualDiT, Part
from ddit.objectives import MaskedConfig
from ddit.train.batch import Batch, I2TBatch, T2IBatch, text_of
from ddit.train.cross_entropy import weighted_nll

Pair = tuple[Tensor | None, Tensor | None]
"""A tensor of the t2i half and one of the i2t half."""


class Losses(NamedTuple):
    """Scalars in float32; `total` is to be minimised; a part that is not trained is None."""

    total: Tensor
    image: Tensor | None
    text: Tensor | None
    alignment: Tensor | None
    reward: Tensor | None = None
    distillation: Tensor | None = None


def step_losses(
    transformer: DualDiT,
    batch: Batch,
    latents: Pair,
    states: Pair,
    cfg: ObjectiveConfig,
    *,
    mask_token_id: int,
    eos_token_id: int | None = None,
    alignment_head: nn.Module | None = None,
) -> Losses:
    """Losses of a micro-batch, each a mean over its samples, so that their mean over micro-batches is the global one.

    One pass through the blocks, whatever the sizes of the halves' images and texts, and whatever images are null, so
    that ranks which share a model gather its weights alike.

    Args:
        transformer: the weights of its text head are used directly: of a sharded model, call this inside the root's
            forward.
        latents: clean latents (n, C, h, w) of the t2i and the i2t half, in float32; None for a half that `batch` does
            not have, or for an i2t half whose images are all null. Of an i2t half with several texts an image, one
            after another, each image once.
        states: text states (n, L, D_text) of `prompt_ids` and of `noisy_ids`; of texts in blocks (n, 2 L, D_text), of
            `text_of`.
        eos_token_id: for `cfg.text.normalizer` "unpadded".
        alignment_head: given where `cfg.alignment_weight` is above 0.
    """
    t2i, i2t = batch.t2i, batch.i2t
    dtype = next(transformer.parameters()).dtype
    parts: list[Part] = []
    if t2i is not None:
        parts.append(_t2i_part(t2i, latents[0], states[0], dtype))
    if i2t is not None:
        is_scored = _is_scored(i2t, cfg.text, mask_token_id)
        block_size = transformer.config.text_block_size
        shown = None if latents[1] is None else latents[1].to(dtype)
        i2t, i2t_parts = _i2t_parts(i2t, shown, states[1], is_scored, block_size, dtype)
        parts = _joined(parts, i2t_parts)
    outputs = transformer.forward_parts(
        parts, features_after=cfg.alignment_block if alignment_head is not None else None
    )
    velocity, features = outputs[0].velocity, outputs[0].features
    hidden = [output.text_hidden for output in outputs if output.text_hidden is not None]

    image = text = alignment = None
    terms = []
    if t2i is not None and latents[0] is not None and velocity is not None:
        image = flow.flow_loss(
            lambda x, t: velocity, latents[0], cfg=cfg.flow, t=t2i.t, noise=t2i.noise
        ).mean()
        terms.append(cfg.image_weight * image)
    if i2t is not None:
        head = transformer.text_proj_out
        text = text_loss(
            head, torch.cat(hidden), i2t, cfg.text, mask_token_id=mask_token_id, eos_token_id=eos_token_id
        )
        terms.append(cfg.lambda_text * text)
    if t2i is not None and alignment_head is not None:
        assert t2i.features is not None
        assert features is not None
        alignment = alignment_loss(alignment_head, features[: len(t2i.t)], t2i.features)
        terms.append(cfg.alignment_weight * alignment)
    return Losses(torch.stack(terms).sum(), image, text, alignment)


class Drawn(NamedTuple):
    """Drawings of an earlier model, the old policy, to be learnt from at one noise level each: n rows.

    Attributes:
        latents: (n, C, h, w), clean. states: (n, L, D), of their prompts.
        quality: (n,) in [0, 1]: 1 is to be drawn more often, 0 less, and 1/2 as often as now.
        t, noise: (n,) and (n, C, h, w). old_velocity: (n, C, h, w), the old policy's there.
    """

    latents: Tensor
    states: Tensor
    quality: Tensor
    t: Tensor
    noise: Tensor
    old_velocity: Tensor

    def part(self, i: int, num_parts: int) -> "Drawn":
        """Part `i` of equal ones."""
        return Drawn(*(value.tensor_split(num_parts)[i] for value in self))


def reward_loss(velocity_fn: flow.VelocityFn, drawn: Drawn) -> Tensor:
    """DiffusionNFT's loss (arXiv 2509.16117, with beta = 1): the mean of q E(v) + (1 - q) E(2 v_old - v).

    E is the squared error of the clean latents, of which the velocity's is t times as large, over the mean absolute
    one. Where v = v_old and q = 1/2, its gradient is 0.
    """
    t, target = drawn.t.view(-1, 1, 1, 1), drawn.noise - drawn.latents
    velocity = velocity_fn(flow.add_noise(drawn.latents, drawn.noise, drawn.t), drawn.t).float()

    def error(v: Tensor) -> Tensor:
        miss = (t * (v - target)).flatten(1)
        return miss.square().mean(1) / miss.detach().abs().mean(1).clamp_min(1e-4)

    towards, away = error(velocity), error(2 * drawn.old_velocity - velocity)
    return (drawn.quality * towards + (1 - drawn.quality) * away).mean()


class Distilled(NamedTuple):
    """Noisy latents and the velocities that they are to have under a prompt in other words: n rows.

    Attributes:
        latents: (n, C, h, w), at the times t (n,). states: (n, L, D), of the prompts.
        velocity: (n, C, h, w), in float32.
    """

    latents: Tensor
    t: Tensor
    states: Tensor
    velocity: Tensor

    def part(self, i: int, num_parts: int) -> "Distilled":
        """Part `i` of equal ones."""
        return Distilled(*(value.tensor_split(num_parts)[i] for value in self))


def distillation_loss(velocity_fn: flow.VelocityFn, distilled: Distilled) -> Tensor:
    """The mean squared difference of the velocities."""
    return F.mse_loss(velocity_fn(distilled.latents, distilled.t).float(), distilled.velocity)


def _t2i_part(t2i: T2IBatch, latents: Tensor | None, states: Tensor | None, dtype: torch.dtype) -> Part:
    assert latents is not None
    assert states is not None
    noisy = flow.add_noise(latents, t2i.noise, t2i.t)
    return Part(noisy.to(dtype), t2i.t, states.to(dtype), num_t2i=len(t2i.t))


def _i2t_parts(
    i2t: I2TBatch,
    latents: Tensor | None,
    states: Tensor | None,
    is_scored: Tensor,
    block_size: int,
    dtype: torch.dtype,
) -> tuple[I2TBatch, list[Part]]:
    """The half in the order of its parts: samples with an image, then those without, of one length of text each."""
    assert states is not None
    states = states.to(dtype)
    width, is_null = i2t.input_ids.shape[1], i2t.images.is_null
    texts_per_image = 1 if latents is None else len(states) // len(latents)
    image_of = torch.arange(len(states), device=states.device) // texts_per_image
    if latents is None or is_null is None:
        is_null = torch.full((len(states) // texts_per_image,), latents is None)
    kinds = torch.full((len(states),), width) if i2t.lengths is None else i2t.lengths.cpu()
    kinds = kinds + (width + 1) * is_null.cpu().repeat_interleave(texts_per_image)
    order = kinds.argsort(stable=True)
    if (kinds[1:] < kinds[:-1]).any():
        of_rows = order.to(states.device)
        states, is_scored, image_of = states[of_rows], is_scored[of_rows], image_of[of_rows]
        if latents is not None and texts_per_image == 1:
            latents = latents[of_rows]
        i2t = i2t._replace(
            input_ids=i2t.input_ids[of_rows], answer_mask=i2t.answer_mask[of_rows],
            noisy_ids=i2t.noisy_ids[of_rows], t=i2t.t[of_rows],
        )  # fmt: skip
    parts, start = [], 0
    found, counts = kinds[order].unique_consecutive(return_counts=True)
    for kind, count in zip(found.tolist(), counts.tolist(), strict=True):
        (has_none, length), rows = divmod(kind, width + 1), slice(start, start + count)
        _, text = text_of(i2t.cut(rows, length), block_size)
        copies = states[rows].unflatten(1, (-1, width))[
            :, :, :length
        ]  # in blocks two, a clean and a noisy one
        scored = F.pad(is_scored[rows, :length], (0 if text is None else length, 0))
        t, sees = torch.zeros(count, device=states.device), None if text is None else text.sees
        shown = shared_by = None
        if latents is not None and not has_none:
            shown, shared_by = (latents[rows], None) if texts_per_image == 1 else (latents, image_of[rows])
        parts.append(Part(shown, t, copies.flatten(1, 2), 0, scored, sees, shared_by))
        start += count
    return i2t, parts


def _joined(t2i: list[Part], i2t: list[Part]) -> list[Part]:
    """All parts, those of both kinds as one where their sizes agree: half as many products, each twice as large."""
    if not t2i or i2t[0].sees is not None or i2t[0].rows is not None or not _fit(t2i[0], i2t[0]):
        return t2i + i2t
    one, other = t2i[0], i2t[0]
    assert one.latents is not None
    assert other.latents is not None
    joint = Part(
        torch.cat([one.latents, other.latents]),
        torch.cat([one.t, other.t]),
        torch.cat([one.text_states, other.text_states]),
        one.num_t2i,
        other.logit_mask,
    )
    return [joint, *i2t[1:]]


def _fit(one: Part, other: Part) -> bool:
    if one.latents is None or other.latents is None:
        return False
    sizes = [
        (part.latents.shape[1:], part.text_states.shape[1:])
        for part in (one, other)
        if part.latents is not None
    ]
    return sizes[0] == sizes[1]


def _is_scored(i2t: I2TBatch, cfg: MaskedConfig, mask_token_id: int) -> Tensor:
    """The positions whose tokens are to be told, (n, L) bool: masked ones or, where others may be wrong, all."""
    return i2t.answer_mask if cfg.wrong_share else (i2t.noisy_ids == mask_token_id) & i2t.answer_mask


def text_loss(
    head: nn.Linear,
    hidden: Tensor,
    i2t: I2TBatch,
    cfg: MaskedConfig,
    *,
    mask_token_id: int,
    eos_token_id: int | None = None,
) -> Tensor:
    """Mean of `masked.masked_loss` over the samples, without the matrix of all logits.

    With `cfg.wrong_share` visible tokens count, too, as if at t = 1.

    hidden: (selected, D), the text head's input at the positions that are scored, in row-major order.
    """
    is_scored, t = _is_scored(i2t, cfg, mask_token_id), i2t.t
    if cfg.wrong_share:
        t = torch.where(i2t.noisy_ids == mask_token_id, t if t.dim() == 2 else t[:, None], 1.0)
    weights = masked.nll_weights(i2t.input_ids, i2t.answer_mask, t, cfg, eos_token_id) / len(t)
    return weighted_nll(
        hidden, head.weight, head.bias, i2t.input_ids[is_scored], weights.expand_as(is_scored)[is_scored],
        ruled_out=mask_token_id, sharpen=cfg.sharpen,
    )  # fmt: skip


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
