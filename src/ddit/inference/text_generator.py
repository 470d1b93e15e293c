"""Texts about images: the engine under `Pipeline.caption`, `answer` and `infill`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, guided_logits, sample_text
from ddit.diffusion.unmasking import answer_blocks
from ddit.inference.batching import Seed, StepCallback, groups, sample_generators, sample_seeds
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
        cache = None if images is None else ImageCache(self.transformer, self.image_codec, images)
        # The head's rows without a token.
        beyond = range(codec.vocab_size, self.transformer.config.vocab_size)
        seeds = sample_seeds(seed, len(lengths))
        filled = prompt.input_ids.clone()
        with codec.on_device():  # once for all steps
            for rows, step in groups(lengths, options.batch_size, options.num_steps, on_step):
                ids, answer_mask = (part[rows, : lengths[rows[0]]].to(device) for part in prompt)
                context = (
                    self._null_context(len(rows)) if cache is None else cache.take(rows, options.batch_size)
                )
                sample = sample_text(
                    self.logits_fn(context, answer_mask, options.sampling),
                    ids,
                    answer_mask,
                    num_steps=options.num_steps,
                    mask_token_id=codec.mask_token_id,
                    eos_token_id=codec.eos_token_id,
                    banned_ids=[*banned_ids, *beyond],
                    rule=options.sampling.rule,
                    generators=sample_generators(seeds[row] for row in rows),
                    on_step=step,
                )
                filled[rows, : ids.shape[1]] = sample.ids.to(filled.device)
        return prompt._replace(input_ids=filled)

    def logits_fn(self, context: ImageContext, answer_mask: Tensor, sampling: TextSampling) -> LogitsFn:
        """Logits of texts (B, L) about their images, with guidance and with what is reused between steps."""
        blocks = answer_blocks(answer_mask, sampling.rule.block_size)

        def refresh(every: int) -> Refresh | None:
            return None if every == 1 else Refresh(every, blocks)

        states_fn = TextStates(self.text_codec, refresh(sampling.text_refresh))

        def about(context: ImageContext) -> LogitsFn:
            return logits_fn(self.transformer, states_fn, context, refresh(sampling.image_refresh))

        if sampling.text_guidance_scale == 1 or context.is_null:
            return about(context)
        return guided_logits(
            about(context), about(self._null_context(len(blocks))), sampling.text_guidance_scale
        )

    @cached_property
    def _null_kv(self) -> ImageKV | None:
        return null_image_kv(self.transformer)

    def _null_context(self, count: int) -> ImageContext:
        return null_context(self.transformer, count, self._null_kv)
