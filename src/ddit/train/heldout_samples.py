"""Held-out samples, which a run never trains on."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddit import prompts
from ddit.config.data import DataConfig
from ddit.data.mixture import HalfBatches
from ddit.data.sampler import sample_rng
from ddit.data.samples import CorruptSample, Source, Turn, read_sample
from ddit.data.sources import open_source
from ddit.model.encoders import TextCodec
from ddit.prompts import PromptStyle, TokenizedPrompt
from ddit.train.batch import Images, Row, caption_ids, conversation_ids, fit_sample_image, stack_images
from ddit.train.batches import I2T, ImageFacts, Opener, all_cached, open_sources


class HeldOutSamples(NamedTuple):
    """n fixed samples, cropped to squares; their latents are modes.

    prompt_ids: (n, t2i_length), of the captions. caption_texts, turn_texts: (n, i2t_length), of the captions and of the
    conversations. has_caption, has_question: (n,) bool; where False, the rows of that text mean nothing.
    """

    images: Images
    prompt_ids: Tensor
    captions: list[str | None]
    has_caption: Tensor
    caption_texts: TokenizedPrompt
    turn_texts: TokenizedPrompt
    conversations: list[tuple[Turn, ...]]
    has_question: Tensor

    @property
    def is_text(self) -> Tensor:
        """Which samples are text alone, without image and question: (n,) bool."""
        if self.images.is_null is None:
            return torch.zeros_like(self.has_question)
        return self.images.is_null & ~self.has_question & torch.tensor([*map(bool, self.conversations)])


def held_out_samples(
    data: DataConfig,
    count: int,
    codec: TextCodec,
    facts: ImageFacts,
    *,
    style: PromptStyle,
    patch_size: int,
    open_with: Opener = open_source,
) -> HeldOutSamples:
    """At most `count` samples of `data.held_out`, the same ones whatever the run's seed.

    Raises:
        ValueError: if there is no usable sample among those tried.
    """
    unit = facts.downsample * patch_size
    side = data.image_size // unit * unit
    shape = (side, side)
    try:
        sources = open_sources(data.held_out, open_with)
    except ValueError as error:
        raise ValueError(f"data.held_out: {error} (name samples of your own there, or none: [])") from None
    is_cached = all_cached(sources, "data.held_out", facts, [shape])
    count = min(count, sum(len(source) for source, _ in sources))
    plan = HalfBatches([(s, c.weight) for s, c in sources], count, shapes=[shape], seed=0, stream=I2T)
    places = dict.fromkeys(plan.place(0, i) for i in range(count))
    read = [_read_sample(sources[place.source][0], place.index, data, codec, style) for place in places]
    found = [sample for sample in read if sample is not None]
    if not found:
        raise ValueError(f"none of {count} samples of data.held_out could be used")
    rows = [Row(fit_sample_image(sample.image, shape), sample.prompt_ids) for sample in found]
    is_null = torch.tensor([row.image is None for row in rows])
    images = stack_images(
        rows, shape, facts.latent_shape(shape), is_cached, None, is_null if is_null.any() else None
    )
    return HeldOutSamples(
        images,
        torch.stack([sample.prompt_ids for sample in found]),
        [sample.caption for sample in found],
        torch.tensor([sample.caption is not None for sample in found]),
        _stack([sample.caption_text for sample in found]),
        _stack([sample.turn_text for sample in found]),
        [sample.turns for sample in found],
        torch.tensor([any(turn.question is not None for turn in sample.turns) for sample in found]),
    )


def _stack(texts: list[tuple[Tensor, Tensor]]) -> TokenizedPrompt:
    ids, masks = zip(*texts, strict=True)
    return TokenizedPrompt(torch.stack(ids), torch.stack(masks))


class _Read(NamedTuple):
    """One held-out sample with its texts as ids and answer mask; an empty text stands in for one that it lacks."""

    image: Any
    prompt_ids: Tensor
    caption: str | None
    caption_text: tuple[Tensor, Tensor]
    turns: tuple[Turn, ...]
    turn_text: tuple[Tensor, Tensor]


def _read_sample(
    source: Source, index: int, data: DataConfig, codec: TextCodec, style: PromptStyle
) -> _Read | None:
    """Sample `index` with all its texts; None if it has none, or is corrupt."""
    prompt_ids = prompts.empty_prompt(codec, 1, data.t2i_length, style=style)[0]
    empty = prompts.training_caption(codec, [""], data.i2t_length, style=style)
    t2i = i2t = None
    caption_text = turn_text = (empty.input_ids[0], empty.answer_mask[0])
    with contextlib.suppress(CorruptSample):
        sample = read_sample(source, index, sample_rng(0, 0, index), i2t=False)
        prompt_ids = caption_ids(codec, sample, data.t2i_length, style)
        as_turn = sample._replace(turns=(Turn(None, sample.caption or ""),))
        caption_text, t2i = conversation_ids(codec, as_turn, data.i2t_length, style), sample
    with contextlib.suppress(CorruptSample):
        sample = read_sample(source, index, sample_rng(0, 0, index), i2t=True, with_image=t2i is None)
        turn_text, i2t = conversation_ids(codec, sample, data.i2t_length, style), sample
    first = t2i or i2t
    if first is None:
        return None
    return _Read(
        first.image,
        prompt_ids,
        t2i.caption if t2i else None,
        caption_text,
        i2t.turns if i2t else (),
        turn_text,
    )
