"""How likely texts are, given images: the engine under `Pipeline.score` and `choose`."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ddit.diffusion.likelihood import MaskSets, mask_sets, set_log_probs
from ddit.inference.batching import Step, StepCallback
from ddit.inference.callables import ImageContext, TextStates, logits_fn, null_context, null_image_kv
from ddit.inference.image_cache import FittedImage, ImageCache
from ddit.model.dual_dit import DualDiT, ImageKV
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.text_blocks import text_blocks
from ddit.prompts import GivenText, PromptStyle, given_text
from ddit.settings import ModelSettings, ScoreOptions


@dataclass(frozen=True)
class Score:
    """How likely a text is.

    Attributes:
        log_prob: bound of its log-likelihood in nats (`likelihood`); with a null weight, less so much of the null
            image's.
        standard_error: of the draw of masks in `log_prob`; 0 where all masks were taken.
        num_tokens: of the text, with the end-of-text token.
    """

    log_prob: float
    standard_error: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats a token, by which texts of different lengths may be compared."""
        return self.log_prob / self.num_tokens


@dataclass(frozen=True)
class Choice:
    """Which of several texts fits an image best.

    Attributes:
        index, text: of the candidate with the highest score; the first of equals.
        probabilities: of all candidates, in their order: the scores' softmax.
        scores: of all candidates.
    """

    index: int
    text: str
    probabilities: tuple[float, ...]
    scores: tuple[Score, ...]

    @classmethod
    def among(cls, candidates: Sequence[str], scores: Sequence[Score], *, per_token: bool = False) -> Self:
        """The best of these by `log_prob`, or by nats a token."""
        values = [score.per_token if per_token else score.log_prob for score in scores]
        highest = max(values)
        weights = [math.exp(value - highest) for value in values]
        index = values.index(highest)
        probabilities = tuple(weight / sum(weights) for weight in weights)
        return cls(index, candidates[index], probabilities, tuple(scores))


class _Row(NamedTuple):
    """A text as tensors (L,): its ids, the unit of each position, which are scored; and the sets of its n units."""

    ids: Tensor
    units: Tensor
    is_scored: Tensor
    sets: MaskSets


class _Pass(NamedTuple):
    """A masked text: which entry it is of, and which of its row's sets."""

    entry: int
    set: int


@dataclass
class _Work:
    """The entries to be scored: the text of each, by its number in `rows`, and its image (None: the null image).

    samples: which sample of the call each entry is (the first of those that share it).
    """

    rows: Sequence[_Row]
    which: Sequence[int]
    samples: Sequence[int]
    images: Sequence[FittedImage] | None

    def batches(self, batch_size: int) -> list[list[_Pass]]:
        """The passes of all entries, those of rows of one length together.

        A wave of images is gone through at a time, as many as are kept encoded; in it, the same masked text about
        several images follows each other, so that it is encoded once a batch.
        """
        wave = [0] * len(self.which)
        if self.images is not None:
            numbers: dict[int, int] = {}
            wave = [numbers.setdefault(id(p), len(numbers)) // batch_size for p in self.images]

        def place(one: _Pass) -> tuple[int, ...]:
            row = self.which[one.entry]
            return len(self.rows[row].ids), wave[one.entry], row, one.set, one.entry

        passes = [
            _Pass(entry, index)
            for entry, row in enumerate(self.which)
            for index in range(len(self.rows[row].sets.is_masked))
        ]
        found = []
        for _, group in itertools.groupby(sorted(passes, key=place), key=lambda one: place(one)[0]):
            same = list(group)
            found += [same[start : start + batch_size] for start in range(0, len(same), batch_size)]
        return found


@dataclass
class Scorer:
    """Scores the texts of one call."""

    transformer: DualDiT
    image_codec: ImageCodec
    text_codec: TextCodec
    settings: ModelSettings
    style: PromptStyle

    def score(
        self,
        texts: Sequence[str],
        questions: Sequence[str | None],
        images: Sequence[FittedImage | None],
        options: ScoreOptions,
        *,
        seed: int = 0,
        on_step: StepCallback | None = None,
    ) -> list[Score]:
        """The score of each text as an answer to its question (None: as a caption), given its image.

        images: all of them None, or none.
        seed: of the draw of masks, one draw for all texts of one length, so that they are compared under the same.
        on_step: called after every batch with a `batching.Step` whose state is None.

        Raises:
            ValueError: on a text or question that is empty, or a text that does not fit.
        """
        pairs = zip(texts, questions, strict=True)
        given = [self._given(text, question, options.length) for text, question in pairs]
        shown = [image for image in images if image is not None]
        assert len(shown) in (0, len(given))
        if not 0 <= seed < 2**62:
            raise ValueError(f"seed must be at least 0 and below 2**62, got {seed}")
        return self._score(given, shown or None, options, seed, on_step)

    def check(self, captions: Sequence[str]) -> None:
        """Raises ValueError for one that cannot be scored."""
        for caption in captions:
            self._given(caption, None, None)

    def _given(self, text: str, question: str | None, length: int | None) -> GivenText:
        settings = self.settings
        own_length = settings.caption_length if question is None else settings.answer_length
        return given_text(
            self.text_codec,
            text,
            question,
            settings.text_length,
            window=own_length if length is None else length,
            style=self.style,
        )

    @torch.inference_mode()
    def _score(
        self,
        texts: list[GivenText],
        images: Sequence[FittedImage] | None,
        options: ScoreOptions,
        seed: int,
        on_step: StepCallback | None,
    ) -> list[Score]:
        number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        rows, which = self._rows(list(number), options.num_samples, seed), [number[text] for text in texts]
        firsts = [which.index(row) for row in range(len(rows))]
        blind = _Work(rows, range(len(rows)), firsts, None)  # of a text without an image there is one score
        works = [blind] if images is None else [_Work(rows, which, range(len(which)), images)]
        if options.null_weight != 0 and images is not None:
            works.append(blind)
        todo = [(work, work.batches(options.batch_size)) for work in works]
        steps = itertools.count(1)
        total = sum(len(batches) for _, batches in todo)

        def advance(work: _Work, batch: Sequence[_Pass]) -> None:
            done, samples = next(steps), dict.fromkeys(work.samples[one.entry] for one in batch)
            if on_step is not None:
                on_step(Step(done, total, list(samples), None))

        values, *null_values = [
            self._values(work, batches, options.batch_size, advance) for work, batches in todo
        ]
        if images is None:
            values = [values[row] for row in which]
        scores = []
        for text, row, value in zip(texts, which, values, strict=True):
            if null_values:  # of the same sets, so that the error is that of the difference
                value = value - options.null_weight * null_values[0][row]
            scores.append(Score(*rows[row].sets.bound(value), num_tokens=len(text.text) + 1))
        return scores

    def _rows(self, texts: Sequence[GivenText], num_samples: int, seed: int) -> list[_Row]:
        """Each token of a text is a unit, and so is its end: the end-of-text token and all padding after it.

        What follows the end is no choice of the model's (`text_sampler.sample_text` fills it in), hence it costs
        nothing.
        """
        sets: dict[int, MaskSets] = {}
        rows = []
        for text in texts:
            count, begin = len(text.text) + 1, len(text.prompt)
            if count not in sets:
                generator = torch.Generator().manual_seed(seed)
                sets[count] = mask_sets(count, num_samples, generator, block_size=self._block_size)
            ids = torch.full((text.length,), self.text_codec.eos_token_id)
            ids[: begin + count - 1] = torch.tensor([*text.prompt, *text.text])
            positions = torch.arange(text.length)
            units = (positions - begin).clamp(-1, count - 1)
            rows.append(_Row(ids, units, positions < begin + count, sets[count]))
        return rows

    def _values(
        self,
        work: _Work,
        batches: Sequence[Sequence[_Pass]],
        batch_size: int,
        advance: Callable[[_Work, Sequence[_Pass]], None],
    ) -> list[Tensor]:
        """Of each entry, f of each of its sets (`likelihood.set_log_probs`), (S,) in float32."""
        values = [torch.zeros(len(work.rows[row].sets.is_masked)) for row in work.which]
        cache, place = None, 0
        if work.images is not None:
            images = [work.images[one.entry] for batch in batches for one in batch]
            cache = ImageCache(self.transformer, self.image_codec, images)
        with self.text_codec.on_device():  # once for all batches
            for batch in batches:
                if cache is None:
                    context = null_context(self.transformer, len(batch), self._null_kv)
                else:
                    context = cache.take(range(place, place + len(batch)), batch_size)
                place += len(batch)
                found = self._set_values(work, batch, context)
                for one, value in zip(batch, found.cpu(), strict=True):
                    values[one.entry][one.set] = value
                advance(work, batch)
        return values

    def _set_values(self, work: _Work, batch: Sequence[_Pass], context: ImageContext) -> Tensor:
        """f of each pass of a batch, (b,)."""
        device = self.transformer.null_image_embd.device
        rows = [work.rows[work.which[one.entry]] for one in batch]
        sets = [row.sets.is_masked[one.set] for one, row in zip(batch, rows, strict=True)]
        ids, units, is_scored = (
            torch.stack(parts).to(device) for parts in zip(*[row[:3] for row in rows], strict=True)
        )
        is_masked = torch.nn.utils.rnn.pad_sequence(sets, batch_first=True).to(device)
        states_fn, blocks = self._states, None
        if self._block_size:
            blocks = text_blocks(units >= 0, self._block_size)
            states_fn = TextStates(
                self.text_codec, blocks=blocks, text_input=self.transformer.config.text_input
            )
        return set_log_probs(
            logits_fn(self.transformer, states_fn, context, blocks=blocks),
            ids,
            units,
            is_scored,
            is_masked,
            mask_token_id=self.text_codec.mask_token_id,
        )

    def _states(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        """States of masked texts (b, L), each encoded once however many images it is about."""
        distinct, which = torch.unique(noisy_ids, dim=0, return_inverse=True)
        return self.text_codec.i2t_states(distinct, None, self.transformer.config.text_input)[which]

    @property
    def _block_size(self) -> int:
        return self.transformer.config.text_block_size

    @cached_property
    def _null_kv(self) -> ImageKV | None:
        return null_image_kv(self.transformer)
