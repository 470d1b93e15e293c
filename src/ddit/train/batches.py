"""Global batch k of a run as tensors: a pure function of (seed, k)."""

from __future__ import annotations

import torch
from torch import Tensor

from ddit import prompts
from ddit.config import DualRun
from ddit.data.pool import LatentPool
from ddit.data.sampler import batch_indices, sample_rng
from ddit.data.scenes import Reading, SceneSource
from ddit.encoders import TextCodec
from ddit.prompts import PromptStyle, TokenizedPrompt
from ddit.train.objective import Batch


class BatchMaker:
    """Draws the samples, their texts and their dropped captions; reads latents (and features) from the pool."""

    def __init__(self, cfg: DualRun, pool: LatentPool, codec: TextCodec, style: PromptStyle) -> None:
        self.cfg, self.pool, self.codec, self.style = cfg, pool, codec, style
        self.source = SceneSource(cfg.world)
        self.num_read = round(cfg.global_batch_size * cfg.objective.read_fraction)
        self.num_drawn = cfg.global_batch_size - self.num_read
        self.empty_prompt = prompts.empty_prompt(codec, 1, cfg.text_length, style=style)

    def __call__(self, step: int) -> Batch:
        cfg = self.cfg
        indices = batch_indices(len(self.pool), cfg.global_batch_size, seed=cfg.seed, step=step)
        rngs = [sample_rng(cfg.seed, step, position) for position in range(cfg.global_batch_size)]
        drawn = list(zip(indices, rngs, strict=True))[: self.num_drawn]
        dropped = torch.tensor([rng.random() < cfg.objective.caption_dropout for _, rng in drawn], dtype=torch.bool)
        captions = [self.source.caption(index, rng) for index, rng in drawn]
        readings = [
            self.source.reading(index, rng, cfg.objective.question_fraction)
            for index, rng in zip(indices[self.num_drawn :], rngs[self.num_drawn :], strict=True)
        ]
        prompt_ids = torch.zeros(0, cfg.text_length, dtype=torch.long)
        if captions:
            prompt_ids = prompts.training_prompt(self.codec, captions, cfg.text_length, style=self.style)
            prompt_ids = torch.where(dropped[:, None], self.empty_prompt, prompt_ids)
        read_ids, answer_mask = tokenize_readings(self.codec, readings, cfg.text_length, self.style)
        aligned = cfg.objective.alignment_weight > 0 and self.num_drawn > 0
        features = self.pool.features(indices[: self.num_drawn]) if aligned else None
        return Batch(self.pool.latents(indices), prompt_ids, read_ids, answer_mask, features)


def tokenize_readings(codec: TextCodec, readings: list[Reading], length: int, style: PromptStyle) -> TokenizedPrompt:
    """Captions and questions in the formats in which the model is asked for them, in the given order."""
    rows: list[tuple[Tensor, Tensor]] = []
    for reading in readings:
        if reading.question is None:
            row = prompts.training_caption(codec, [reading.answer], length, style=style)
        else:
            row = prompts.training_question(codec, [reading.question], [reading.answer], length, style=style)
        rows.append((row.input_ids, row.answer_mask))
    if not rows:
        return TokenizedPrompt(torch.zeros(0, length, dtype=torch.long), torch.zeros(0, length, dtype=torch.bool))
    return TokenizedPrompt(torch.cat([ids for ids, _ in rows]), torch.cat([mask for _, mask in rows]))
