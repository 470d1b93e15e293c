"""Texts about images: the engine under `Pipeline.caption`, `answer` and `infill`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddit.diffusion.blocks import sample_blocks
from ddit.diffusion.masked import LogitsFn, guided_logits
from ddit.diffusion.text_sampler import sample_text
from ddit.diffusion.unmasking import answer_blocks
from ddit.inference.batching import Seed, StepCallback, groups, sample_generators, sample_seeds
from ddit.inference.block_cache import BlockCache
from ddit.inference.callables import ImageContext, Refresh, TextStates, logits_fn, null_context, null_image_kv
from ddit.inference.image_cache import FittedImage, ImageCache
from ddit.model.dual_dit import DualDiT, ImageKV
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.prompts import TokenizedPrompt, set_window
from ddit.settings import TextOptions, TextSampling


@dataclass
class TextGenerator:
    """Samples the texts of one call."""

    transformer: DualDiT
    image_codec: ImageCodec
    text_codec: TextCodec

    @torch.inference_mode()
    def generate(
        self,
        prompt: TokenizedPrompt,
        images: Sequence[FittedImage] | None,
        options: TextOptions,
        *,
        seed: Seed = 0,
        banned_ids: Sequence[int] = (),
        on_step: StepCallback | None = None,
    ) -> TokenizedPrompt:
        """Fills a prompt's answer positions with tokens that are not banned: ids (B, L), and where the answers are.

        images: one a row; None: without images.
        """
        codec, device = self.text_codec, self.transformer.null_image_embd.device
        prompt, lengths = set_window(prompt, options.length, eos_token_id=codec.eos_token_id)
        shown = None if images is None else ImageCache(self.transformer, self.image_codec, images)
        # The head's rows without a token.
        beyond = range(codec.vocab_size, self.transformer.config.vocab_size)
        seeds = sample_seeds(seed, len(lengths))
        sizes, num_steps, block_size = lengths, options.num_steps, self.transformer.config.text_block_size
        if block_size:  # samples whose blocks begin together
            counts = prompt.answer_mask.sum(1).tolist()
            sizes, num_steps = (
                list(zip(lengths, counts, strict=True)),
                num_steps * -(-max(counts) // block_size),
            )
        filled = prompt.input_ids.clone()
        with codec.on_device():  # once for all steps
            for rows, step in groups(sizes, options.batch_size, num_steps, on_step):
                ids, answer_mask = (part[rows, : lengths[rows[0]]].to(device) for part in prompt)
                context = (
                    self._null_context(len(rows)) if shown is None else shown.take(rows, options.batch_size)
                )
                how = {
                    "num_steps": options.num_steps,
                    "mask_token_id": codec.mask_token_id,
                    "eos_token_id": codec.eos_token_id,
                    "banned_ids": [*banned_ids, *beyond],
                    "rule": options.sampling.rule,
                    "generators": sample_generators(seeds[row] for row in rows),
                    "on_step": step,
                }
                if block_size:
                    cache = BlockCache(self.transformer, codec, answer_mask)
                    predict = self._guided(cache.logits_fn, context, options.sampling)
                    sample = sample_blocks(predict, ids, cache.blocks, on_block=cache.begin, **how)
                else:
                    predict = self.logits_fn(context, answer_mask, options.sampling)
                    sample = sample_text(predict, ids, answer_mask, **how)
                filled[rows, : ids.shape[1]] = sample.ids.to(filled.device)
        return prompt._replace(input_ids=filled)

    def logits_fn(self, context: ImageContext, answer_mask: Tensor, sampling: TextSampling) -> LogitsFn:
        """Logits of texts (B, L) about their images, with guidance and with what is reused between steps."""
        blocks = answer_blocks(answer_mask, sampling.rule.block_size)

        def refresh(every: int) -> Refresh | None:
            return None if every == 1 else Refresh(every, blocks)

        text_input = self.transformer.config.text_input
        states_fn = TextStates(self.text_codec, refresh(sampling.text_refresh), text_input=text_input)

        def about(context: ImageContext) -> LogitsFn:
            return logits_fn(self.transformer, states_fn, context, refresh(sampling.image_refresh))

        return self._guided(about, context, sampling)

    def _guided(
        self, about: Callable[[ImageContext], LogitsFn], context: ImageContext, sampling: TextSampling
    ) -> LogitsFn:
        """Logits about images, with guidance away from the null image."""
        if sampling.text_guidance_scale == 1 or context.is_null:
            return about(context)
        null_context = self._null_context(len(context.index))
        return guided_logits(about(context), about(null_context), sampling.text_guidance_scale)

    @cached_property
    def _null_kv(self) -> ImageKV | None:
        return null_image_kv(self.transformer)

    def _null_context(self, count: int) -> ImageContext:
        return null_context(self.transformer, count, self._null_kv)
