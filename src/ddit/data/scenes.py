"""The small world as a source of training samples: pictures as pixels, and texts drawn per (seed, step, position)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddit.world import Scene, WorldConfig, caption, make_scene, question, render


class Reading(NamedTuple):
    """A text to be read off a picture: a caption (no question), or a question with its answer."""

    question: str | None
    answer: str


@dataclass(frozen=True)
class SceneSource:
    """Scenes of one split of a world, by index; everything is a pure function of its arguments."""

    world: WorldConfig
    split: str = "train"

    def scene(self, index: int) -> Scene:
        return make_scene(self.world, self.split, int(index))

    def pixels(self, first: int, end: int) -> Tensor:
        """Pictures (end - first, 3, H, W) in [-1, 1], float32."""
        return to_pixels(np.stack([render(self.scene(index)) for index in range(first, end)]))

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption to draw from; as GenEval's prompts do, some leave out colours or places."""
        return caption(self.scene(index), rng, complete=False)

    def reading(self, index: int, rng: random.Random, question_fraction: float) -> Reading:
        """A question with probability `question_fraction`, else a caption."""
        if rng.random() >= question_fraction:
            return Reading(None, caption(self.scene(index), rng))
        asked = question(self.scene(index), rng)
        assert asked is not None, "without a kind there is always a question"
        return Reading(asked.text, asked.answer)


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 pictures (B, H, W, 3) to pixels (B, 3, H, W) in [-1, 1], float32."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
