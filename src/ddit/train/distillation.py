"""Distillation across wordings: the model where the run began teaches itself to draw a prompt alike in all its words.

A model draws best what is asked for in the plainest words, GenEval's own. The teacher draws such prompts; at every
state that its sampling visits, the student learns to have, under other words, the velocity that the teacher has there
under the plain ones. No image of a scene takes part, and the target has no noise: it is a velocity, not one of the
images that this averages over. Some prompts stay plain, and some are dropped as for guidance: these stay as they are.
"""

from __future__ import annotations

import random

import torch

from ddit.config.runs import DualRun
from ddit.data.sampler import noise_rng, sample_rng
from ddit.devices import Ranks
from ddit.diffusion import flow
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.train.batch import sample_noise
from ddit.train.objective import Distilled
from ddit.train.own_drawings import FIRST, Policy, draw_prompts
from ddit.world import Prompt
from ddit.world.wide import say_plainly


class Distillation:
    """What a run's steps learn: a function of the run's seed, the teacher and the step; a rank draws its own part.

    Raises:
        ValueError: in one line, for prompts that ranks and micro-batches cannot share.
    """

    def __init__(
        self, cfg: DualRun, images: ImageCodec, codec: TextCodec, ranks: Ranks, num_micro_batches: int = 1
    ) -> None:
        assert cfg.distillation is not None
        self.distillation, self.seed, self.ranks = cfg.distillation, cfg.seed, ranks
        num_prompts, num_states = self.distillation.num_prompts, self.distillation.sampling.num_steps
        own, rest = divmod(num_prompts, ranks.size)
        if rest or own * num_states % num_micro_batches:
            raise ValueError(
                f"distillation: {num_prompts} prompts of {num_states} states cannot be shared by {ranks.size} ranks of "
                f"{num_micro_batches} micro-batches"
            )
        self.teacher = Policy(cfg, codec, ranks.device)
        side = cfg.data.image_size // images.downsample
        self._shape = (images.channels, side, side)

    @torch.no_grad()
    def of_step(self, step: int) -> Distilled:
        """This rank's states of a step, and the velocities that the teacher has there."""
        cfg, rng = self.distillation, sample_rng(self.seed, step, FIRST)
        asked = [self._ask(prompt, rng) for prompt in draw_prompts(cfg, rng)]
        own = self.ranks.part(len(asked))
        noise = sample_noise([noise_rng(self.seed, step, FIRST + i) for i in own], self._shape)
        drawn, target, learnt = (self.teacher.states([asked[i][k] for i in own]) for k in range(3))
        empty = self.teacher.states([self.teacher.style.empty_prompt] * len(own))
        visited = [noise.to(drawn.device)]
        flow.sample_latents(
            self.teacher.velocity(torch.cat([empty, drawn])),
            visited[0],
            cfg=cfg.sampling,
            on_step=lambda _, __, state: visited.append(state.latents),
        )
        latents, count = torch.cat(visited[:-1]), cfg.sampling.num_steps
        t = flow.sampling_times(cfg.sampling)[:-1].to(latents.device).repeat_interleave(len(own))
        velocity = self.teacher.velocity(target.repeat(count, 1, 1))(latents, t).float()
        return Distilled(latents, t, learnt.repeat(count, 1, 1), velocity)

    def _ask(self, prompt: Prompt, rng: random.Random) -> tuple[str, str, str]:
        """What is drawn, what the target velocity is under, and what the model learns it under."""
        cfg, chance = self.distillation, rng.random()
        plain, empty = say_plainly(prompt), self.teacher.style.empty_prompt
        if chance < cfg.empty_share:
            return plain, empty, empty
        return plain, plain, plain if chance < cfg.empty_share + cfg.plain_share else prompt.text
