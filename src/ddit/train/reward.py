"""Tuning by reward: the model draws, a detector tells which drawings are right, and the model moves towards those.

DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117). A round has `num_prompts` prompts of `group_size` drawings each,
without guidance, by an average of earlier weights (the old policy). Each drawing is then learnt at a few noise levels,
as far as it is better than the others of its prompt, and unlearnt as far as it is worse. The prompts are of the worlds,
so that what they ask for is known; how good a drawing is, `ddit.train.judge` says.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddit.config.runs import DualRun
from ddit.data.sampler import noise_rng, sample_rng
from ddit.devices import Ranks
from ddit.diffusion import flow
from ddit.images import to_images
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.train.batch import sample_noise
from ddit.train.judge import Judge
from ddit.train.objective import Drawn
from ddit.train.own_drawings import FIRST, Policy, draw_prompts
from ddit.world import Prompt

_AT_ONCE = 128


class Rollouts:
    """The drawings of a run, round by round: a function of the run's seed, the old policy and the round.

    A rank makes the drawings that it learns from, with a copy of all weights in the type of computation. How good they
    are is measured against the whole round's, so that a step is the same for any number of ranks.

    Raises:
        ValueError: in one line, for a detector that is missing or does not know the prompts' classes, or for drawings
            that steps, ranks and micro-batches cannot share.
    """

    def __init__(
        self, cfg: DualRun, images: ImageCodec, codec: TextCodec, ranks: Ranks, num_micro_batches: int = 1
    ) -> None:
        assert cfg.reward is not None
        self.cfg, self.reward = cfg, cfg.reward
        self.images, self.ranks = images, ranks
        rows = self.reward.num_prompts * self.reward.group_size
        if rows % (self.reward.num_steps * ranks.size):
            raise ValueError(
                f"reward: {rows} drawings a round cannot be shared by {self.reward.num_steps} steps of {ranks.size} "
                "ranks"
            )
        learnt = rows // (self.reward.num_steps * ranks.size) * self.reward.num_times
        if learnt % num_micro_batches:
            raise ValueError(
                f"reward: the {learnt} noisy drawings of a rank's step cannot be shared by {num_micro_batches} "
                "micro-batches"
            )
        self.judge = Judge(self.reward, ranks.device)
        self.policy = Policy(cfg, codec, ranks.device)
        side = cfg.data.image_size // images.downsample
        self._shape = (images.channels, side, side)
        self._round: int | None = None
        self._steps: list[_Learnt] = []
        self.right = 0.0
        """Share of the newest round's drawings that are right."""

    def state(self) -> dict[str, Tensor]:
        """The old policy's weights: the very tensors, for checkpoints."""
        return dict(self.policy.model.named_parameters())

    def of_step(self, step: int, transformer: nn.Module) -> Drawn:
        """This rank's drawings to be learnt from in a step, each at `num_times` noise levels."""
        number, place = divmod(step, self.reward.num_steps)
        if self._round != number:
            if place == 0 and step > 0:
                self.policy.follow(transformer, self.reward.keep)
            self._draw(number)
        learnt = self._steps[place]
        copies = range(1, self.reward.num_times + 1)
        rngs = [noise_rng(self.cfg.seed, step, FIRST * copy + row) for copy in copies for row in learnt.rows]
        noise = sample_noise(rngs, self._shape).to(learnt.latents)
        normal = torch.tensor([rng.standard_normal() for rng in rngs], dtype=torch.float32)
        t = flow.time_of_normal(normal, self.cfg.objective.flow).to(noise.device)
        latents, states, quality = (
            value.repeat(self.reward.num_times, *[1] * (value.dim() - 1))
            for value in (learnt.latents, learnt.states, learnt.quality)
        )
        with torch.no_grad():
            old = self.policy.velocity(states)(flow.add_noise(latents, noise, t), t).float()
        return Drawn(latents, states, quality, t, noise, old)

    @torch.no_grad()
    def _draw(self, number: int) -> None:
        """Makes a round: its steps' drawings of this rank, and how good they are among all ranks'."""
        cfg = self.reward
        count = cfg.num_prompts * cfg.group_size
        rng = sample_rng(self.cfg.seed, number, FIRST)
        prompts = draw_prompts(cfg, rng)
        order = rng.sample(range(count), count)
        share = count // cfg.num_steps
        mine = [[order[share * k + i] for i in self.ranks.part(share)] for k in range(cfg.num_steps)]
        rows = [row for step in mine for row in step]
        drawn = [prompts[row // cfg.group_size] for row in rows]
        latents, states = self._sample(drawn, [noise_rng(self.cfg.seed, number, FIRST + row) for row in rows])
        pictures = np.stack([np.asarray(image) for image in to_images(self.images.decode(latents))])
        own = list(zip(rows, self.judge.rewards(drawn, pictures), strict=True))
        rewards = torch.tensor([value for _, value in sorted(self.ranks.gather(own))])
        self.right = (rewards > 0).float().mean().item()
        quality = quality_of(rewards.view(-1, cfg.group_size), cfg.max_advantage).flatten()
        parts = torch.arange(len(rows)).view(cfg.num_steps, -1)
        self._steps = [
            _Learnt(step, latents[part], states[part], quality[step].to(latents))
            for step, part in zip(mine, parts, strict=True)
        ]
        self._round = number

    def _sample(
        self, prompts: Sequence[Prompt], rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Latents (n, C, h, w) that the old policy draws, in float32, and the prompts' states (n, L, D)."""
        states = self.policy.states([prompt.text for prompt in prompts])
        noise = sample_noise(rngs, self._shape).to(states.device)
        drawn = [
            flow.sample_latents(self.policy.velocity(s), n, cfg=self.reward.sampling)
            for s, n in zip(states.split(_AT_ONCE), noise.split(_AT_ONCE), strict=True)
        ]
        return torch.cat(drawn), states


class _Learnt(NamedTuple):
    """A step's drawings of this rank: which of the round's, latents, states and quality."""

    rows: list[int]
    latents: Tensor
    states: Tensor
    quality: Tensor


def quality_of(rewards: Tensor, max_advantage: float) -> Tensor:
    """Rewards (prompts, group) as the weights in [0, 1] of `objective.reward_loss`: 1/2 is as good as the group.

    The advantage over the group, in standard deviations of the whole round, counts up to `max_advantage`.
    """
    advantage = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-4)
    return (advantage / (2 * max_advantage) + 0.5).clamp(0, 1)
