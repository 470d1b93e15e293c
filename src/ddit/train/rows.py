"""From one sample to its row of a batch, and from rows to tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddit import prompts
from ddit.data.buckets import Shape
from ddit.data.samples import CorruptSample, Latents, Sample
from ddit.images import fit_image
from ddit.model.encoders import TextCodec
from ddit.prompts import PromptStyle
from ddit.train.batch import Pictures

Made = TypeVar("Made")
LatentShape = tuple[int, int, int]


class Row(NamedTuple):
    """One sample, made: its picture cut to its bucket (uint8, 3 H W), cached or absent, and its texts as ids (L,)."""

    picture: Tensor | Latents | None
    input_ids: Tensor
    answer_mask: Tensor | None = None


def fit_sample_image(picture: Image.Image | Latents | None, shape: Shape) -> Tensor | Latents | None:
    """A picture resized and cropped to `shape`, uint8 (3, H, W); latents and what is no picture as they are."""
    if picture is None or isinstance(picture, Latents):
        return picture
    return torch.from_numpy(np.array(fit_image(picture, *shape))).permute(2, 0, 1)


def caption_ids(codec: TextCodec, sample: Sample, length: int, style: PromptStyle) -> Tensor:
    """Ids (L,) of the prompt to draw from; `CorruptSample` if there is no usable caption."""
    caption = sample.caption
    if not caption:
        raise CorruptSample("no caption", "the sample has nothing to draw from")
    return guarded(lambda: prompts.training_prompt(codec, [caption], length, style=style)[0])


def conversation_ids(
    codec: TextCodec, sample: Sample, length: int, style: PromptStyle
) -> tuple[Tensor, Tensor]:
    """Ids and answer mask (L,) of all turns, worded as the benchmark asks. `CorruptSample`: no usable text."""
    if not sample.turns:
        raise CorruptSample("no text", "the sample has nothing to read")
    turns = list(sample.turns)
    if sample.short_answers:
        turns = [
            (q if q is None else style.short_answer(q, unanswerable=sample.unanswerable), a) for q, a in turns
        ]
    row = guarded(lambda: prompts.training_conversation(codec, [turns], length, style=style))
    return row.input_ids[0], row.answer_mask[0]


def guarded(tokenize: Callable[[], Made]) -> Made:
    """A text that spells a reserved token is a fault of its sample, at which training does not stop."""
    try:
        return tokenize()
    except ValueError as error:
        raise CorruptSample("unusable text", str(error)) from None


def normals(rngs: Sequence[np.random.Generator], shape: LatentShape) -> Tensor:
    """Standard normal numbers (n, *shape) in float32, each row from its own generator."""
    out = np.empty((len(rngs), *shape), dtype=np.float32)
    for row, rng in zip(out, rngs, strict=True):
        rng.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)


def row_latents(row: Row) -> Latents:
    assert isinstance(row.picture, Latents)
    return row.picture


def stack_images(
    rows: list[Row],
    shape: Shape,
    latent_shape: LatentShape,
    is_cached: bool,
    noise: Tensor | None,
    is_null: Tensor | None,
) -> Pictures:
    """The pictures of a batch whose pixels are `shape` or whose latents are `latent_shape`; without noise, no `std`."""
    if not is_cached:
        blank = torch.zeros(3, *shape, dtype=torch.uint8)
        pixels = [blank if row.picture is None else row.picture for row in rows]
        return Pictures(torch.stack(pixels), None, None, noise, is_null)  # type: ignore[arg-type]
    blank = torch.zeros(latent_shape, dtype=torch.float16)
    latents = [Latents(blank, blank, None) if row.picture is None else row_latents(row) for row in rows]
    mean = torch.stack([entry.mean for entry in latents]).float()
    std = None
    if noise is not None:
        std = torch.stack([blank if entry.std is None else entry.std for entry in latents]).float()
    return Pictures(None, mean, std, noise, is_null)
