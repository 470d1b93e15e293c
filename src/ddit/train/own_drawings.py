"""What runs that learn from drawings of their own have in common: a model that draws for them, and their prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ddit.config.runs import DistillationConfig, DualRun, RewardConfig
from ddit.devices import compute_dtype
from ddit.diffusion.flow import VelocityFn
from ddit.inference.callables import velocity_fn
from ddit.model import DualDiT
from ddit.model.encoders import TextCodec
from ddit.prompts import training_prompt
from ddit.train.batch import STYLES
from ddit.world import PRESETS, Prompt
from ddit.world import make_prompts as make_small_prompts
from ddit.world.wide import WIDE_PRESETS, make_prompts

FIRST = 1 << 20
"""Positions of generators from here on are no batch's (`ddit.data.sampler`)."""


class Policy:
    """The model that draws: a copy of all weights on every rank, in the type of computation and without gradients."""

    def __init__(self, cfg: DualRun, codec: TextCodec, device: torch.device) -> None:
        self.codec, self.device = codec, device
        self.style, self.length = STYLES[cfg.prompts], cfg.data.t2i_length
        self.model = DualDiT(cfg.model).to(device, compute_dtype(cfg.compute_dtype, device))
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, transformer: nn.Module, keep: float = 0.0) -> None:
        """Moves to these weights, `keep` of its own left; all ranks together."""
        for name, old in [*self.model.named_parameters(), *self.model.named_buffers()]:
            new = (
                transformer.get_parameter(name)
                if isinstance(old, nn.Parameter)
                else transformer.get_buffer(name)
            )
            whole = new.full_tensor() if isinstance(new, DTensor) else new
            if old.is_floating_point():
                old.lerp_(whole.to(old), 1 - keep)

    def states(self, texts: Sequence[str]) -> Tensor:
        """The text encoder's states (n, L, D) of prompts, as training shows them."""
        ids = training_prompt(self.codec, texts, self.length, style=self.style)
        distinct, which = torch.unique(ids, dim=0, return_inverse=True)
        return self.codec.states(distinct.to(self.device))[which.to(self.device)]

    def velocity(self, states: Tensor) -> VelocityFn:
        return velocity_fn(self.model, states)


def draw_prompts(cfg: RewardConfig | DistillationConfig, rng: random.Random) -> list[Prompt]:
    """`cfg.num_prompts` prompts of the worlds' training split, none with a held-out pair.

    Of all categories alike, but for those that a distillation emphasises.
    """
    names, weights = zip(*cfg.presets.items(), strict=True)
    emphasis = cfg.emphasis if isinstance(cfg, DistillationConfig) else {}
    found: list[Prompt] = []
    while len(found) < cfg.num_prompts:
        name, seed = rng.choices(names, weights)[0], rng.randrange(1 << 40)
        if name in WIDE_PRESETS:
            part = "paraphrased" if rng.random() < cfg.paraphrased_share else "seen"
            offered = make_prompts(WIDE_PRESETS[name], 1, split="train", part=part, seed=seed)
        else:
            offered = make_small_prompts(PRESETS[name], 1, split="train", seed=seed)
        if emphasis:
            found += rng.choices(offered, [emphasis.get(prompt.tag, 1.0) for prompt in offered])
        else:
            found += rng.sample(offered, 2)
    return found[: cfg.num_prompts]
