"""Global batch k of a run as tensors: a pure function of (seed, k)."""

from __future__ import annotations

import numpy as np
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
from ddit.train.parallel import Ranks


class BatchMaker:
    """Draws the samples, their texts and their dropped captions; reads latents (and features) from the pool.

    Of the global batch, whose first `num_drawn` samples are drawn and the rest read, a rank makes its slice of each
    part.
    """

    def __init__(
        self, cfg: DualRun, pool: LatentPool, codec: TextCodec, style: PromptStyle, ranks: Ranks
    ) -> None:
        self.cfg, self.pool, self.codec, self.style = cfg, pool, codec, style
        self.source = SceneSource(cfg.world)
        self.num_read = round(cfg.global_batch_size * cfg.objective.read_fraction)
        self.num_drawn = cfg.global_batch_size - self.num_read
        positions = np.arange(cfg.global_batch_size)
        self.drawn = positions[: self.num_drawn][ranks.slice_of(self.num_drawn)]
        self.read = positions[self.num_drawn :][ranks.slice_of(self.num_read)]
        self.empty_prompt = prompts.empty_prompt(codec, 1, cfg.text_length, style=style)

    def __call__(self, step: int) -> Batch:
        cfg = self.cfg
        indices = batch_indices(len(self.pool), cfg.global_batch_size, seed=cfg.seed, step=step)
        captions, dropped = [], []
        for position in self.drawn:
            rng = sample_rng(cfg.seed, step, int(position))
            dropped.append(rng.random() < cfg.objective.caption_dropout)
            captions.append(self.source.caption(int(indices[position]), rng))
        readings = [
            self.source.reading(
                int(indices[position]),
                sample_rng(cfg.seed, step, int(position)),
                cfg.objective.question_fraction,
            )
            for position in self.read
        ]
        prompt_ids = torch.zeros(0, cfg.text_length, dtype=torch.long)
        if captions:
            prompt_ids = prompts.training_prompt(self.codec, captions, cfg.text_length, style=self.style)
            prompt_ids = torch.where(torch.tensor(dropped)[:, None], self.empty_prompt, prompt_ids)
        read_ids, answer_mask = tokenize_readings(self.codec, readings, cfg.text_length, self.style)
        aligned = cfg.objective.alignment_weight > 0 and self.num_drawn > 0
        features = self.pool.features(indices[self.drawn]) if aligned else None
        own = indices[np.concatenate([self.drawn, self.read])]
        return Batch(self.pool.latents(own), prompt_ids, read_ids, answer_mask, features)


def tokenize_readings(
    codec: TextCodec, readings: list[Reading], length: int, style: PromptStyle
) -> TokenizedPrompt:
    """Captions and questions in the formats in which the model is asked for them, in the given order."""
    rows: list[tuple[Tensor, Tensor]] = []
    for reading in readings:
        if reading.question is None:
            row = prompts.training_caption(codec, [reading.answer], length, style=style)
        else:
            row = prompts.training_question(codec, [reading.question], [reading.answer], length, style=style)
        rows.append((row.input_ids, row.answer_mask))
    if not rows:
        return TokenizedPrompt(
            torch.zeros(0, length, dtype=torch.long), torch.zeros(0, length, dtype=torch.bool)
        )
    return TokenizedPrompt(torch.cat([ids for ids, _ in rows]), torch.cat([mask for _, mask in rows]))
