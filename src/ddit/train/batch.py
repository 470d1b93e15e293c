"""A micro-batch as plain tensors, with all its random numbers drawn; and the way from one sample to its row."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddit import prompts
from ddit.data.buckets import Shape
from ddit.data.samples import CorruptSample, Latents, Sample
from ddit.images import fit_image
from ddit.model.encoders import TextCodec
from ddit.model.text_blocks import BlockText, clean_and_noisy, text_blocks
from ddit.prompts import MINI, PUBLISHED, PromptStyle

Value = TypeVar("Value")
LatentShape = tuple[int, int, int]
"""Channels, height and width."""

STYLES = {"published": PUBLISHED, "mini": MINI}


class Images(NamedTuple):
    """The images of a half-batch: either `pixels` or, where they were cached, the latents' `mean` (and `std`).

    pixels: (n, 3, H, W) uint8, a quarter of the bytes of floats; `encoders.ImageCodec` maps them to [-1, 1].
    mean, std: (n, C, h, w). sampling_noise: (n, C, h, w), standard normal; None takes the mode of the latents.
    is_null: (n,) bool, samples without an image (pixels or latents are zeros); None: all have one.
    """

    pixels: Tensor | None
    mean: Tensor | None
    std: Tensor | None
    sampling_noise: Tensor | None
    is_null: Tensor | None = None


class T2IBatch(NamedTuple):
    """Text to image. prompt_ids: (n, L), dropped captions are the empty prompt; t: (n,); noise: (n, C, h, w).

    features: (n, F, h', w'), of the teacher, where the alignment loss is on. states: (n, L, D), of `prompt_ids`, where
    they are there ahead of the step.
    """

    images: Images
    prompt_ids: Tensor
    t: Tensor
    noise: Tensor
    features: Tensor | None = None
    states: Tensor | None = None


class I2TBatch(NamedTuple):
    """Image to text. input_ids, noisy_ids: (n, L); answer_mask: (n, L) bool; t: (n,), or (n, L) of texts in blocks.

    images: n, or n / k where each has k texts, one after another.
    states: (n, L, D), of `noisy_ids`, where they are there ahead of the step; (n, 2 L, D), of `text_of`, in blocks.
    lengths: (n,), of each text with its padding, beyond which nothing counts; None: L.
    """

    images: Images
    input_ids: Tensor
    answer_mask: Tensor
    noisy_ids: Tensor
    t: Tensor
    states: Tensor | None = None
    lengths: Tensor | None = None

    def cut(self, rows: Tensor | slice, length: int) -> "I2TBatch":
        """The texts of some samples, cut to a length; without images and states."""
        ids, answer, noisy, t = (
            self.input_ids[rows],
            self.answer_mask[rows],
            self.noisy_ids[rows],
            self.t[rows],
        )
        t = t[:, :length] if t.dim() == 2 else t
        none = Images(None, None, None, None)
        return I2TBatch(none, ids[:, :length], answer[:, :length], noisy[:, :length], t)


def padded_lengths(ids: Tensor, lengths: Sequence[int], eos_token_id: int) -> Tensor:
    """Of texts (n, L), the first of `lengths` that holds each and its end, else L: (n,)."""
    places = torch.arange(1, ids.shape[1] + 1)
    needed = torch.where(ids != eos_token_id, places, 0).amax(1) + 1
    offered = torch.tensor([*lengths, ids.shape[1]])
    return offered[torch.searchsorted(offered, needed).clamp(max=len(lengths))]


def text_of(i2t: I2TBatch, block_size: int) -> tuple[Tensor, BlockText | None]:
    """What the text encoder reads: the noisy ids (n, L), or those of texts in blocks behind the clean ids, (n, 2 L)."""
    if not block_size:
        return i2t.noisy_ids, None
    layout = clean_and_noisy(text_blocks(i2t.answer_mask, block_size))
    return torch.cat([i2t.input_ids, i2t.noisy_ids], dim=1), layout


class Batch(NamedTuple):
    """One micro-batch of one rank; a half that is not trained is None.

    corrupt: replaced samples, by cause. num_cut: samples whose text was too long and lost its end.
    """

    t2i: T2IBatch | None
    i2t: I2TBatch | None
    corrupt: dict[str, int]
    num_cut: int = 0


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """The micro-batches of a rank's batch, in order and of equal size (views); the counts stay with the first."""
    parts = []
    for i in range(num_parts):
        counts = (batch.corrupt, batch.num_cut) if i == 0 else ({}, 0)
        parts.append(Batch(_cut(batch.t2i, i, num_parts), _cut(batch.i2t, i, num_parts), *counts))
    return parts


def _cut(value: Value, i: int, num_parts: int) -> Value:
    """Part `i` of a tensor, or of all tensors of a (nested) tuple."""
    if isinstance(value, Tensor):
        size = len(value) // num_parts
        return cast(Value, value[i * size : (i + 1) * size])
    if isinstance(value, tuple):
        return cast(Value, type(value)(*(_cut(entry, i, num_parts) for entry in value)))
    assert value is None
    return value


def to_device(value: Value, device: torch.device) -> Value:
    """A batch with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return cast(Value, value.to(device, non_blocking=True))
    if isinstance(value, tuple):
        return cast(Value, type(value)(*(to_device(entry, device) for entry in value)))
    return value


# --- rows ---


class Row(NamedTuple):
    """One sample: its image cropped to its bucket (uint8, 3 H W), cached or absent, and its text as ids (L,).

    is_cut: whether the text was too long and lost its end.
    """

    image: Tensor | Latents | None
    input_ids: Tensor
    answer_mask: Tensor | None = None
    is_cut: bool = False


def fit_sample_image(image: Image.Image | Latents | None, shape: Shape) -> Tensor | Latents | None:
    """An image resized and cropped to `shape`, uint8 (3, H, W); latents and None as they are."""
    if image is None or isinstance(image, Latents):
        return image
    return torch.from_numpy(np.array(fit_image(image, *shape))).permute(2, 0, 1)


def caption_ids(codec: TextCodec, sample: Sample, length: int, style: PromptStyle) -> Tensor:
    """Ids (L,) of the caption as a prompt; `CorruptSample` if there is no usable one."""
    caption = sample.caption
    if not caption:
        raise CorruptSample("no caption", "the sample has no prompt")
    return _checked(lambda: prompts.training_prompt(codec, [caption], length, style=style)[0])


def conversation_ids(
    codec: TextCodec, sample: Sample, length: int, style: PromptStyle
) -> tuple[Tensor, Tensor]:
    """Ids and answer mask (L,) of all turns, worded as the benchmark asks. `CorruptSample`: no usable text."""
    if not sample.turns:
        raise CorruptSample("no text", "the sample has neither a question nor a caption")
    turns = _worded_turns(sample, style)
    row = _checked(lambda: prompts.training_conversation(codec, [turns], length, style=style))
    return row.input_ids[0], row.answer_mask[0]


def _worded_turns(sample: Sample, style: PromptStyle) -> list[tuple[str | None, str]]:
    if not sample.short_answers:
        return list(sample.turns)
    return [
        (q if q is None else style.short_answer(q, unanswerable=sample.unanswerable), a)
        for q, a in sample.turns
    ]


def is_caption_cut(codec: TextCodec, sample: Sample, ids: Tensor, style: PromptStyle) -> bool:
    """Whether the ids (L,) that `caption_ids` made lack the caption's end."""
    padding = codec.tokenizer.convert_tokens_to_ids(style.prompt_padding)
    if len(ids) > 1 and int(ids[-2]) in (codec.eos_token_id, padding):
        return False  # there is room left; the tokenizer is not asked twice
    return len(codec.token_ids(style.given(sample.caption or ""))) > len(ids) - 1


def is_conversation_cut(
    codec: TextCodec, sample: Sample, ids: Tensor, answer_mask: Tensor, style: PromptStyle
) -> bool:
    """Whether the ids (L,) that `conversation_ids` made lack the end of a question or answer, or whole turns.

    With twice the length the row would then go on, or be another.
    """
    num_answers = int(answer_mask[0]) + int((answer_mask[1:] & ~answer_mask[:-1]).sum())
    num_filled = int((ids != codec.eos_token_id).sum()) + num_answers
    if num_answers == len(sample.turns) and num_filled + style.min_answer_tokens < len(ids):
        return False
    turns = _worded_turns(sample, style)
    wide = prompts.training_conversation(codec, [turns], 2 * len(ids), style=style).input_ids[0]
    return bool((wide[: len(ids)] != ids).any() or (wide[len(ids) :] != codec.eos_token_id).any())


def _checked(tokenize: Callable[[], Value]) -> Value:
    """A text that spells a reserved token is its sample's fault, for which training does not stop."""
    try:
        return tokenize()
    except ValueError as error:
        raise CorruptSample("unusable text", str(error)) from None


def sample_noise(rngs: Sequence[np.random.Generator], shape: LatentShape) -> Tensor:
    """Standard normal numbers (n, *shape) in float32, each row from its own generator."""
    out = np.empty((len(rngs), *shape), dtype=np.float32)
    for row, rng in zip(out, rngs, strict=True):
        rng.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)


def latents_of(row: Row) -> Latents:
    assert isinstance(row.image, Latents)
    return row.image


def stack_images(
    rows: list[Row],
    shape: Shape,
    latent_shape: LatentShape,
    is_cached: bool,
    noise: Tensor | None,
    is_null: Tensor | None,
) -> Images:
    """The images of a batch whose pixels are `shape` or whose latents are `latent_shape`; without noise, no `std`."""
    if not is_cached:
        blank = torch.zeros(3, *shape, dtype=torch.uint8)
        pixels = [blank if row.image is None else row.image for row in rows]
        return Images(torch.stack(pixels), None, None, noise, is_null)  # type: ignore[arg-type]
    blank = torch.zeros(latent_shape, dtype=torch.float16)
    latents = [Latents(blank, blank, None) if row.image is None else latents_of(row) for row in rows]
    mean = torch.stack([entry.mean for entry in latents]).float()
    std = None
    if noise is not None:
        std = torch.stack([blank if entry.std is None else entry.std for entry in latents]).float()
    return Images(None, mean, std, noise, is_null)
