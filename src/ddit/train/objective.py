"""One step's loss: pictures drawn and pictures read in one forward pass of the transformer."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddit import flow, masked
from ddit.config import ObjectiveConfig
from ddit.model import DualDiT
from ddit.train.parallel import Ranks


class Batch(NamedTuple):
    """What a step is computed from; the first n samples are drawn, the other B - n are read.

    latents (B, C, H, W) clean; prompt_ids (n, L); read_ids and answer_mask (B - n, L); features (n, F, h, w) of the
    teacher, where alignment is on.
    """

    latents: Tensor
    prompt_ids: Tensor
    read_ids: Tensor
    answer_mask: Tensor
    features: Tensor | None = None


class Noise(NamedTuple):
    """Everything random in a step: times and noise of the drawn samples, times and masked ids of the read ones."""

    image_t: Tensor
    image_noise: Tensor
    text_t: Tensor
    noisy_ids: Tensor


class Losses(NamedTuple):
    total: Tensor
    image: Tensor | None
    text: Tensor | None
    alignment: Tensor | None


def draw_noise(
    batch: Batch,
    cfg: ObjectiveConfig,
    *,
    mask_token_id: int,
    generator: torch.Generator,
    ranks: Ranks | None = None,
) -> Noise:
    """The noise of this rank's batch, cut from that of the global batch, which is drawn whole on every rank."""
    ranks = ranks or Ranks()
    n, num_read = ranks.size * len(batch.prompt_ids), ranks.size * len(batch.read_ids)
    drawn, read = ranks.slice_of(n), ranks.slice_of(num_read)
    image_t = flow.sample_t(n, cfg.flow, generator=generator)[drawn]
    image_noise = torch.randn((n, *batch.latents.shape[1:]), generator=generator)[drawn]
    text_t = masked.sample_t(num_read, generator=generator)[read]
    noisy_ids = _mask_globally(batch, text_t, mask_token_id, generator, ranks)
    return Noise(image_t, image_noise, text_t, noisy_ids)


def _mask_globally(
    batch: Batch, t: Tensor, mask_token_id: int, generator: torch.Generator, ranks: Ranks
) -> Tensor:
    """`masked.mask_tokens` for this rank's rows, having drawn those of the ranks before it as well."""
    noisy_ids = batch.read_ids
    for _ in range(ranks.index + 1):
        noisy_ids = masked.mask_tokens(
            batch.read_ids, batch.answer_mask, t, mask_token_id=mask_token_id, generator=generator
        )
    return noisy_ids


def step_losses(
    model: DualDiT,
    batch: Batch,
    noise: Noise,
    text_states: Tensor,
    cfg: ObjectiveConfig,
    *,
    mask_token_id: int,
    alignment_head: nn.Module | None = None,
) -> Losses:
    """Losses of a global batch from one forward.

    text_states: (B, L, D_text), of the prompts of the drawn samples and then of the noisy ids of the read ones.
    """
    n, num_read = len(batch.prompt_ids), len(batch.read_ids)
    dtype = next(model.parameters()).dtype
    noisy = flow.add_noise(batch.latents[:n], noise.image_noise, noise.image_t)
    at = (noise.noisy_ids == mask_token_id) & batch.answer_mask
    output = model(
        torch.cat([noisy, batch.latents[n:]]).to(dtype),
        torch.cat([noise.image_t, torch.zeros(num_read)]),
        text_states.to(dtype),
        num_drawn=n,
        logit_mask=at if num_read else None,
        features_after=cfg.alignment_block if alignment_head is not None else None,
    )
    image = text = alignment = None
    total = torch.zeros(())
    if n:
        velocity = output.velocity
        image = flow.flow_loss(
            lambda x, t: velocity, batch.latents[:n], cfg=cfg.flow, t=noise.image_t, noise=noise.image_noise
        ).mean()
        total = total + image
    if num_read:
        logits = output.logits
        text = masked.masked_loss(
            lambda ids, asked, rows: logits,
            batch.read_ids,
            batch.answer_mask,
            mask_token_id=mask_token_id,
            cfg=cfg.text,
            t=noise.text_t,
            noisy_ids=noise.noisy_ids,
        ).mean()
        total = total + cfg.lambda_text * text
    if alignment_head is not None and n:
        assert batch.features is not None
        alignment = alignment_loss(alignment_head, output.features[:n], batch.features)
        total = total + cfg.alignment_weight * alignment
    return Losses(total, image, text, alignment)


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
