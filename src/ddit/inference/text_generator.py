"""Writing texts about pictures: the settings of it, and the engine under `Pipeline.caption`, `answer` and `infill`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypedDict

import torch
from PIL import Image
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, guided_logits, sample_text
from ddit.diffusion.unmasking import Order, UnmaskingRule, answer_blocks
from ddit.inference.batching import StepCallback, groups, sample_generators, sample_seeds
from ddit.inference.callables import ApproximationError, ErrorMeter, Refresh, TextStates
from ddit.inference.image_cache import EncodedImage, ImageCache, ImageContext, null_context, null_image_kv
from ddit.model.dual_dit import DualDiT, ImageKV

if TYPE_CHECKING:  # transformers and diffusers take seconds to import
    from ddit.model.encoders import ImageCodec, TextCodec
    from ddit.prompts import TokenizedPrompt


@dataclass(frozen=True)
class TextSampling(UnmaskingRule):
    """How texts are written: the rule, guidance, and what is kept over passes. The defaults are the published ones.

    Attributes:
        text_guidance_scale: log p + (g - 1) (log p - log p under the null image); 1 is none, else a pass is two.
        image_refresh: where the image side sees the text, its keys and values are computed anew every so many passes
            of a sample and wherever a block begins; 0 only there. 1 is exact. A model with
            `image_attends_text=False` needs none of this: there they are computed once, exactly.
        text_refresh: the same for the text encoder's states; in between it runs at newly written positions alone.

    Raises:
        ValueError: on a value out of range or an unknown order.
    """

    text_guidance_scale: float = 1.0
    image_refresh: int = 1
    text_refresh: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.text_guidance_scale < math.inf:
            raise ValueError(
                f"text_guidance_scale must be at least 0 and finite, got {self.text_guidance_scale}"
            )
        for name in ("image_refresh", "text_refresh"):
            if getattr(self, name) < 0 or int(getattr(self, name)) != getattr(self, name):
                raise ValueError(f"{name} must be a whole number of at least 0, got {getattr(self, name)}")

    def changed(self, options: "WritingOptions") -> Self:
        """These settings with what is given (and not None) of other options."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


WRITING_FIELDS = tuple(f.name for f in fields(TextSampling))


class WritingOptions(TypedDict, total=False):
    """The fields of `TextSampling` as keywords; None, or none given, is the model's own setting."""

    order: Order | None
    temperature: float | None
    top_p: float | None
    threshold: float | None
    entropy_bound: float | None
    commit_above: float | None
    block_size: int | None
    text_guidance_scale: float | None
    image_refresh: int | None
    text_refresh: int | None


class ReadOptions(WritingOptions, total=False):
    """What `Pipeline.caption`, `answer` and `infill` can be told; None, or none given, is the model's own setting.

    seed: of the first sample (0); the next ones count on from it. Or one a sample.
    num_steps: the most passes a sample takes, see `masked.sample_text`.
    length: positions after what is given, to be written or, when filling in, of padding. The model's own is as in its
        training: all rows have `text_length` positions. A row is not padded beyond its own length.
    height, width: of the pictures as the model reads them.
    batch_size: texts written at a time (16), all of one length.
    on_step: called after every step.
    """

    seed: int | Sequence[int]
    num_steps: int | None
    length: int | None
    height: int | None
    width: int | None
    batch_size: int
    on_step: StepCallback | None


@dataclass(frozen=True, kw_only=True)
class ReadCall:
    """`ReadOptions`, resolved: what one call of a verb is to do."""

    writing: TextSampling
    num_steps: int
    length: int | None
    seed: int | Sequence[int] = 0
    height: int | None = None
    width: int | None = None
    batch_size: int = 16
    on_step: StepCallback | None = None

    @classmethod
    def of(cls, options: ReadOptions, writing: TextSampling, *, num_steps: int, length: int | None) -> Self:
        """The options given, over the model's own. Raises TypeError for an unknown one."""
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        changes: Any = {name: given.pop(name) for name in WRITING_FIELDS if name in given}
        own: dict[str, Any] = {"num_steps": num_steps, "length": length}
        return cls(writing=writing.changed(changes), **{**own, **given})


@dataclass
class TextGenerator:
    """Writes the texts of one call."""

    transformer: DualDiT
    image_codec: "ImageCodec"
    text_codec: "TextCodec"

    @torch.inference_mode()
    def write(
        self,
        prompt: "TokenizedPrompt",
        pictures: Sequence[Image.Image | EncodedImage] | None,
        call: ReadCall,
        banned_ids: Sequence[int] = (),
    ) -> "TokenizedPrompt":
        """Fills a prompt's answer positions with tokens that are not banned: ids (B, L), and where the answers are.

        pictures: one a row, at the size that the model reads.
        """
        return self._write(prompt, pictures, call, banned_ids, meters=None)

    @torch.inference_mode()
    def measure(
        self, prompt: "TokenizedPrompt", pictures: Sequence[Image.Image | EncodedImage] | None, call: ReadCall
    ) -> ApproximationError:
        """How far the call's `image_refresh` and `text_refresh` are from exact logits, while it is written exactly."""
        meters: list[ErrorMeter] = []
        self._write(prompt, pictures, call, (), meters=meters)
        counts = [meter.error.num_positions for meter in meters]
        kl, agreement = (
            sum(error * count for error, count in zip(errors, counts, strict=True)) / sum(counts)
            for errors in ([m.error.kl for m in meters], [m.error.agreement for m in meters])
        )
        return ApproximationError(kl, agreement, sum(counts))

    def _write(
        self,
        prompt: "TokenizedPrompt",
        pictures: Sequence[Image.Image | EncodedImage] | None,
        call: ReadCall,
        banned_ids: Sequence[int],
        meters: list[ErrorMeter] | None,
    ) -> "TokenizedPrompt":
        from ddit.prompts import set_window

        codec, device = self.text_codec, self.transformer.null_image_embd.device
        prompt, lengths = set_window(prompt, call.length, eos_token_id=codec.eos_token_id)
        gallery = None if pictures is None else ImageCache(self.transformer, self.image_codec, pictures)
        beyond = range(
            codec.vocab_size, self.transformer.config.vocab_size
        )  # the head's rows without a token
        seeds = sample_seeds(call.seed, len(lengths))
        exact = replace(call.writing, image_refresh=1, text_refresh=1)
        written = prompt.input_ids.clone()
        with codec.on_device():  # once for all passes
            for rows, step in groups(lengths, call.batch_size, call.num_steps, call.on_step):
                ids, answer_mask = (part[rows, : lengths[rows[0]]].to(device) for part in prompt)
                source = (
                    self._null_source(len(rows)) if gallery is None else gallery.take(rows, call.batch_size)
                )
                blocks = answer_blocks(answer_mask, call.writing.block_size)
                logits_fn = self._logits_fn(source, blocks, call.writing)
                if meters is not None:
                    logits_fn = ErrorMeter(
                        self._logits_fn(source, blocks, exact), logits_fn, codec.mask_token_id
                    )
                    meters.append(logits_fn)
                sample = sample_text(
                    logits_fn,
                    ids,
                    answer_mask,
                    num_steps=call.num_steps,
                    mask_token_id=codec.mask_token_id,
                    eos_token_id=codec.eos_token_id,
                    banned_ids=[*banned_ids, *beyond],
                    rule=call.writing,
                    generators=sample_generators(seeds[row] for row in rows),
                    on_step=step,
                )
                written[rows, : ids.shape[1]] = sample.ids.to(written.device)
        return prompt._replace(input_ids=written)

    def _logits_fn(self, source: ImageContext, blocks: Tensor, writing: TextSampling) -> LogitsFn:
        def refresh(every: int) -> Refresh | None:
            return None if every == 1 else Refresh(every, blocks)

        states_fn = TextStates(self.text_codec, refresh(writing.text_refresh))

        def about(source: ImageContext) -> LogitsFn:
            return source.logits_fn(self.transformer, states_fn, refresh(writing.image_refresh))

        logits_fn = about(source)
        if writing.text_guidance_scale == 1 or source.is_null:
            return logits_fn
        return guided_logits(logits_fn, about(self._null_source(len(blocks))), writing.text_guidance_scale)

    @cached_property
    def _null_cache(self) -> ImageKV | None:
        return null_image_kv(self.transformer)

    def _null_source(self, count: int) -> ImageContext:
        return null_context(self.transformer, count, self._null_cache)
