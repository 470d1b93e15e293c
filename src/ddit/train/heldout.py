"""Held-out samples, which a run never trains on, and the losses on them."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddit import prompts
from ddit.config.data import DataConfig
from ddit.data.mixture import HalfBatches
from ddit.data.sampler import sample_rng
from ddit.data.samples import CorruptSample, Source, Turn, read_sample
from ddit.data.sources import open_source
from ddit.devices import Ranks
from ddit.diffusion import flow, masked
from ddit.inference.callables import ImageContext, TextStates, logits_fn, velocity_fn
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.prompts import PromptStyle, TokenizedPrompt
from ddit.train.batch import Images, Row, caption_ids, conversation_ids, fit_sample_image, stack_images
from ddit.train.batches import I2T, ImageFacts, Opener, all_cached, open_sources
from ddit.train.frozen import clean_latents

UPTAKE_T = 0.85


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
    sources = open_sources(data.held_out, open_with)
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


class _Part(NamedTuple):
    """Rows that one rank measures; `counts` (n,) bool is False for those that only keep the ranks in step."""

    rows: Tensor
    counts: Tensor


class HeldOut:
    """Losses on held-out samples: whether the prompt is heeded, and how well texts are read off images.

    Each rank measures its share, and all make the same number of forward passes, of `chunk` samples.
    """

    def __init__(
        self,
        samples: HeldOutSamples,
        images: ImageCodec,
        codec: TextCodec,
        ranks: Ranks,
        *,
        chunk: int,
        i2t_fraction: float,
    ) -> None:
        self.samples, self.images, self.codec, self.ranks = samples, images, codec, ranks
        self.chunk, self.i2t_fraction = chunk, i2t_fraction
        self.captions = [text for text in samples.captions if text is not None]

    def measure(self, model: DualDiT) -> dict[str, float]:
        """Velocity loss at t = 0.85 under the true and under a shuffled caption. If texts are trained, also, from one
        pass with all answers masked, the NLL per answer token (padding left out) and the share of answers exactly
        right.

        A figure for which no sample has the text is left out.
        """
        found: dict[str, float] = {}
        samples = self.samples
        if self.i2t_fraction < 1 and samples.has_caption.any():
            found |= self._measure_uptake(model)
        if self.i2t_fraction > 0:
            for name, texts, there in (
                ("question", samples.turn_texts, samples.has_question),
                ("caption", samples.caption_texts, samples.has_caption),
            ):
                if there.any():
                    found |= self._measure_texts(model, name, texts, there)
        return found

    def _parts(self, there: Tensor) -> Iterator[_Part]:
        """This rank's chunks of the rows that are there, filled up so that all ranks have as many, of one size."""
        rows = there.nonzero()[:, 0]
        size, rank = self.ranks.size, self.ranks.index
        share = -(-len(rows) // size)
        positions = torch.arange(share) * size + rank
        counts = positions < len(rows)
        rows = rows[positions % len(rows)]
        for start in range(0, share, self.chunk):
            part = slice(start, start + self.chunk)
            yield _Part(rows[part], counts[part])

    def _total(self, values: dict[str, float]) -> dict[str, float]:
        means = self.ranks.mean(list(values.values()))
        return {name: mean * self.ranks.size for name, mean in zip(values, means, strict=True)}

    def latents(self, rows: Tensor) -> Tensor:
        """Clean latents of these samples."""
        chosen = Images(*(None if part is None else part[rows] for part in self.samples.images))
        return clean_latents(chosen, self.images)

    def image_context(self, rows: Tensor) -> ImageContext:
        """The images of these samples, for texts about them, one each."""
        latents, is_null = self.latents(rows), self.samples.images.is_null
        nulls = None if is_null is None else is_null[rows].to(latents.device)
        return ImageContext(latents, None, torch.arange(len(rows), device=latents.device), nulls)

    def first_turns(self, count: int) -> tuple[Tensor, TokenizedPrompt, list[Turn]]:
        """The first questions, then the first captions, `count` of each: rows, training texts and turns."""
        samples = self.samples
        asked, captioned = (has.nonzero()[:count, 0] for has in (samples.has_question, samples.has_caption))
        parts = zip(samples.turn_texts, samples.caption_texts, strict=True)
        texts = TokenizedPrompt(
            *(torch.cat([turns[asked], captions[captioned]]) for turns, captions in parts)
        )
        turns = [samples.conversations[row][0] for row in asked.tolist()]
        turns += [Turn(None, samples.captions[row] or "") for row in captioned.tolist()]
        return torch.cat([asked, captioned]), texts, turns

    def _measure_uptake(self, model: DualDiT) -> dict[str, float]:
        there = self.samples.has_caption
        shuffled = torch.arange(len(there))
        shuffled[there] = shuffled[there].roll(1)
        sums = {"true": 0.0, "shuffled": 0.0, "count": 0.0}
        for rows, counts in self._parts(there):
            latents = self.latents(rows)
            noise = torch.stack([_noise(int(row), latents[0]) for row in rows])
            t = torch.full((len(rows),), UPTAKE_T, device=latents.device)
            noisy = flow.add_noise(latents, noise, t)
            for name, texts in (("true", rows), ("shuffled", shuffled[rows])):
                velocity = velocity_fn(model, self.codec.states(self.samples.prompt_ids[texts]))(noisy, t)
                error = (velocity.float() - (noise - latents)).square().flatten(1).mean(1)
                sums[name] += error.cpu()[counts].sum().item()
            sums["count"] += int(counts.sum())
        total = self._total(sums)
        true, false = total["true"] / total["count"], total["shuffled"] / total["count"]
        return {"velocity_true": true, "velocity_shuffled": false, "uptake": false - true}

    def _measure_texts(
        self, model: DualDiT, name: str, texts: TokenizedPrompt, there: Tensor
    ) -> dict[str, float]:
        mask_id, eos = self.codec.mask_token_id, self.codec.eos_token_id
        sums = {"nll": 0.0, "words": 0.0, "exact": 0.0, "count": 0.0}
        for rows, counts in self._parts(there):
            ids, answer = texts.input_ids[rows], texts.answer_mask[rows]
            context = self.image_context(rows)
            logits = logits_fn(model, TextStates(self.codec), context)(
                torch.where(answer, mask_id, ids), answer.to(context.index.device), context.index
            )
            predicted = masked.subs_log_probs(logits, mask_id).float().cpu()  # (selected, V)
            wanted = ids[answer]
            is_word = (wanted != eos) & counts[:, None].expand_as(answer)[answer]
            sums["nll"] -= predicted.gather(1, wanted[:, None])[:, 0][is_word].sum().item()
            sums["words"] += int(is_word.sum())
            wrong = torch.zeros_like(answer)
            wrong[answer] = predicted.argmax(-1) != wanted
            sums["exact"] += int((~wrong.any(1) & counts).sum())
            sums["count"] += int(counts.sum())
        total = self._total(sums)
        return {
            f"{name}_nll": total["nll"] / max(total["words"], 1),
            f"{name}_exact": total["exact"] / total["count"],
        }


def _noise(row: int, like: Tensor) -> Tensor:
    """The fixed noise of sample `row`."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(row))
    return noise.to(like.device)
