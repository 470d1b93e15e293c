"""The losses on held-out samples."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ddit.config.runs import ObjectiveConfig
from ddit.data.samples import Turn
from ddit.devices import Ranks
from ddit.diffusion import flow, masked
from ddit.diffusion.likelihood import MaskSets, TextUnits, mask_sets, set_log_probs, text_units
from ddit.inference.callables import ImageContext, TextStates, logits_fn, velocity_fn
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.text_blocks import last_answer, text_blocks
from ddit.prompts import TokenizedPrompt
from ddit.train.batch import Images, padded_lengths
from ddit.train.frozen import clean_latents
from ddit.train.heldout_samples import HeldOutSamples

UPTAKE_T = 0.85
NUM_TIME_BINS = 10
NUM_MASKS = 4
"""Of a text in its likelihood bound: each evaluation costs so many passes a text."""


class _Part(NamedTuple):
    """Rows that one rank measures; `counts` (n,) bool is False for those that only keep the ranks in step."""

    rows: Tensor
    counts: Tensor


class _Texts(NamedTuple):
    """Texts of one kind, (n, L), with the masks of their likelihood bounds: always the same.

    lengths: (n,), of the texts with their padding. there: (n,) bool. sets: of each text, at most `NUM_MASKS`, or two a
    block. is_masked: (n, most sets, units) bool; a text with fewer has its first one again.
    """

    texts: TokenizedPrompt
    lengths: Tensor
    there: Tensor
    units: TextUnits
    sets: list[MaskSets]
    is_masked: Tensor

    @classmethod
    def of(
        cls, texts: TokenizedPrompt, there: Tensor, lengths: Sequence[int], eos_token_id: int, block_size: int
    ) -> Self:
        if block_size:
            texts = texts._replace(answer_mask=last_answer(texts.answer_mask))
        padded = padded_lengths(texts.input_ids, lengths, eos_token_id)
        units = text_units(*texts, eos_token_id)
        # What is not there, or has no answer, is never measured.
        sizes, there = units.counts.clamp(min=1).tolist(), there & (units.counts > 0)
        sets = [
            mask_sets(size, NUM_MASKS, torch.Generator().manual_seed(row), block_size=block_size)
            for row, size in enumerate(sizes)
        ]
        most = max(len(own.is_masked) for own in sets)
        is_masked = torch.zeros(len(sets), most, max(sizes), dtype=torch.bool)
        for row, (size, own) in enumerate(zip(sizes, sets, strict=True)):
            is_masked[row, :, :size] = own.is_masked[0]
            is_masked[row, : len(own.is_masked), :size] = own.is_masked
        return cls(texts, padded, there, units, sets, is_masked)


class HeldOut:
    """Losses on held-out samples: of images by time, whether the prompt is heeded, and how likely texts about images
    are.

    Each rank measures its share, and all make the same number of forward passes, of `chunk` samples. Noise, times and
    masks belong to the samples, so that evaluations differ by the weights alone.
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
        block_size: int = 0,
        lengths: Sequence[int] = (),
    ) -> None:
        self.samples, self.images, self.codec, self.ranks = samples, images, codec, ranks
        self.chunk, self.i2t_fraction, self.lengths = chunk, i2t_fraction, lengths
        self.captions = [text for text in samples.captions if text is not None]
        eos = codec.eos_token_id
        self._texts = {
            "question": _Texts.of(samples.turn_texts, samples.has_question, lengths, eos, block_size),
            "caption": _Texts.of(samples.caption_texts, samples.has_caption, lengths, eos, block_size),
            "text": _Texts.of(samples.turn_texts, samples.is_text, lengths, eos, block_size),
        }

    def measure(self, model: DualDiT) -> dict[str, float]:
        """The figures of one evaluation; one for which no sample has the text is left out.

        Of images: the velocity loss at uniform times, `flow_loss`, and in ten bins of them, `flow_t0.05` to
        `flow_t0.95`; at t = 0.85 under the true and under a shuffled caption. Of texts about images, if these are
        trained: the bound of -log p in nats, of a text and of a token (`likelihood`); from one pass with all of an
        answer masked, the NLL per token (padding left out) and the share of answers exactly right.

        NAME_ci is half of NAME's 95 % interval, over the samples.
        """
        found: dict[str, float] = {}
        if self.i2t_fraction < 1 and self.samples.has_caption.any():
            found |= self._measure_images(model)
        if self.i2t_fraction > 0:
            for name, texts in self._texts.items():
                if texts.there.any():
                    found |= self._measure_texts(model, name, texts)
        return found

    def _parts(self, there: Tensor, lengths: Tensor | None) -> Iterator[_Part]:
        """This rank's chunks of the rows that are there, filled up so that all ranks have as many, of one size.

        lengths: of their texts, by which they are ordered.
        """
        rows = there.nonzero()[:, 0]
        rows = rows if lengths is None else rows[lengths[rows].argsort(stable=True)]
        size, rank = self.ranks.size, self.ranks.index
        share = -(-len(rows) // size)
        positions = torch.arange(share) * size + rank
        counts = positions < len(rows)
        rows = rows[positions % len(rows)]
        for start in range(0, share, self.chunk):
            part = slice(start, start + self.chunk)
            yield _Part(rows[part], counts[part])

    def _measured(
        self, there: Tensor, measure: Callable[[Tensor], Tensor], lengths: Tensor | None = None
    ) -> Tensor:
        """What `measure` gives of the samples that are there, (n, k) in float64, in their order and on all ranks.

        measure: of rows (b,), values (b, k) on the CPU.
        """
        mine: list[tuple[int, list[float]]] = []
        for rows, counts in self._parts(there, lengths):
            measured = zip(rows.tolist(), measure(rows).tolist(), counts.tolist(), strict=True)
            mine += [(row, values) for row, values, is_counted in measured if is_counted]
        found = dict(self.ranks.gather(mine))
        return torch.tensor([found[row] for row in sorted(found)], dtype=torch.float64)

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
        length = int(padded_lengths(texts.input_ids, self.lengths, self.codec.eos_token_id).max())
        texts = TokenizedPrompt(*(part[:, :length] for part in texts))
        turns = [samples.conversations[row][0] for row in asked.tolist()]
        turns += [Turn(None, samples.captions[row] or "") for row in captioned.tolist()]
        return torch.cat([asked, captioned]), texts, turns

    def _measure_images(self, model: DualDiT) -> dict[str, float]:
        there = self.samples.has_caption
        shuffled = torch.arange(len(there))
        shuffled[there] = shuffled[there].roll(1)
        times = torch.full((len(there), 1 + NUM_TIME_BINS), UPTAKE_T)
        times[there, 1:] = flow.stratified_times(int(there.sum()), NUM_TIME_BINS)

        def measure(rows: Tensor) -> Tensor:
            """At the uptake's time under the shuffled caption; there and in each bin under the true one."""
            latents = self.latents(rows)
            noise = torch.stack([sample_noise(int(row), latents[0]) for row in rows])
            states = [self.codec.states(self.samples.prompt_ids[texts]) for texts in (shuffled[rows], rows)]
            errors = []
            for text_states, t in [(states[0], times[rows, 0]), *((states[1], t) for t in times[rows].T)]:
                t = t.to(latents.device)
                velocity = velocity_fn(model, text_states)(flow.add_noise(latents, noise, t), t)
                errors.append((velocity.float() - (noise - latents)).square().flatten(1).mean(1))
            return torch.stack(errors, dim=1).cpu()

        errors = self._measured(there, measure)
        false, true, bins = errors[:, 0], errors[:, 1], errors[:, 2:]
        found = {"velocity_true": true.mean().item(), "velocity_shuffled": false.mean().item()}
        found |= mean_with_interval("uptake", false - true) | mean_with_interval("flow_loss", bins.mean(1))
        for index, values in enumerate(bins.T):
            found |= mean_with_interval(f"flow_t{(index + 0.5) / NUM_TIME_BINS:.2f}", values)
        return found

    def _measure_texts(self, model: DualDiT, name: str, texts: _Texts) -> dict[str, float]:
        values = self._measured(texts.there, partial(self._text_values, model, texts), texts.lengths)
        nll, num_words, is_exact, bound, num_tokens = values.T
        return {
            f"{name}_nll": (nll.sum() / num_words.sum().clamp(min=1)).item(),
            f"{name}_exact": is_exact.mean().item(),
            **mean_with_interval(f"{name}_nelbo", bound),
            **ratio_with_interval(f"{name}_nelbo_token", bound, num_tokens),
        }

    def _text_values(self, model: DualDiT, texts: _Texts, rows: Tensor) -> Tensor:
        """Of texts (b,), (b, 5): from a pass with all masked, NLL, tokens, and whether all are right; then the bound of
        -log p, and its tokens, the end being one."""
        mask_id, eos = self.codec.mask_token_id, self.codec.eos_token_id
        length = int(texts.lengths[rows].max())
        ids, answer = (part[rows, :length] for part in texts.texts)
        context = self.image_context(rows)
        device, blocks = context.index.device, None
        if model.config.text_block_size:
            blocks = text_blocks(answer, model.config.text_block_size).to(device)
        states_fn = TextStates(self.codec, blocks=blocks, text_input=model.config.text_input)
        logits_of = logits_fn(model, states_fn, context, blocks=blocks)
        logits = logits_of(torch.where(answer, mask_id, ids), answer.to(device), context.index)
        predicted = masked.subs_log_probs(logits, mask_id).float().cpu()  # (selected, V)
        nll, is_wrong = torch.zeros(ids.shape), torch.zeros_like(answer)
        nll[answer] = -predicted.gather(1, ids[answer][:, None])[:, 0]
        is_wrong[answer] = predicted.argmax(-1) != ids[answer]
        is_word = answer & (ids != eos)
        units, is_scored = (part[rows, :length].to(device) for part in texts.units[:2])
        log_probs = [
            set_log_probs(
                logits_of, ids.to(device), units, is_scored, is_masked.to(device), mask_token_id=mask_id
            ).cpu()
            for is_masked in texts.is_masked[rows].unbind(1)
        ]
        bounds = [
            -texts.sets[row].bound(of_sets[: len(texts.sets[row].is_masked)])[0]
            for row, of_sets in zip(rows.tolist(), torch.stack(log_probs, dim=1), strict=True)
        ]
        found = [(nll * is_word).sum(1), is_word.sum(1), ~is_wrong.any(1), torch.tensor(bounds)]
        return torch.stack([*found, texts.units.counts[rows]], dim=1)


def held_out_cost(figures: Mapping[str, float], objective: ObjectiveConfig) -> float | None:
    """What the best average is chosen by: held-out image loss and cost of the texts, weighted as in training.

    A caption's cost is its bound a token. An answer's is whether it is wrong, and a tenth of its bound: that grows with
    the confidence of a few errors, long after more answers have become right. None where there is neither.
    """
    share = objective.i2t_fraction
    texts = []
    for name, bound in figures.items():
        kind, is_bound, _ = name.partition("_nelbo_token")
        if is_bound and not name.endswith("_ci"):
            exact = figures.get(f"{kind}_exact") if kind == "question" else None
            texts.append(bound if exact is None else 1 - exact + 0.1 * bound)
    found = [(1 - share) * figures["flow_loss"]] if "flow_loss" in figures else []
    found += [share * objective.lambda_text * sum(texts) / len(texts)] if texts else []
    return sum(found) if found else None


def mean_with_interval(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values (n,) and, of two or more, half of its 95 % interval."""
    return ratio_with_interval(name, values, torch.ones_like(values))


def ratio_with_interval(name: str, values: Tensor, counts: Tensor) -> dict[str, float]:
    """The ratio of the sums of two figures of the same samples, (n,) each, and half of its 95 % interval.

    The interval is that of the mean of values - ratio * counts (the delta method).
    """
    ratio = values.sum() / counts.sum()
    found = {name: ratio.item()}
    if len(values) > 1:
        error = (values - ratio * counts).std() / counts.mean() / math.sqrt(len(values))
        found[f"{name}_ci"] = 1.96 * error.item()
    return found


def sample_noise(row: int, like: Tensor) -> Tensor:
    """The fixed noise of sample `row`."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(row))
    return noise.to(like.device)
