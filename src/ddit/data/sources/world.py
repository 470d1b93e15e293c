"""The small world as a source: scenes rendered on the fly, and other texts each time."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image
from torch import Tensor

from ddit.config.data import WorldData
from ddit.data.digests import digest
from ddit.data.samples import Sample, Turn
from ddit.world import Scene, make_caption, make_question, make_scene, render
from ddit.world.detector import to_tensor


class WorldSource:
    """Scenes of one split of a world, by index."""

    def __init__(self, cfg: WorldData) -> None:
        self.cfg = cfg

    def __len__(self) -> int:
        return self.cfg.num_scenes

    def name(self, index: int) -> str:
        return f"world/{self.cfg.split}[{index}]"

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        image = Image.fromarray(render(self.scene(index))) if with_image else None
        if i2t:
            return Sample(image, None, (self.turn(index, rng, self.cfg.question_fraction),))
        return Sample(image, self.caption(index, rng), ())

    def sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self.cfg.world.size, np.int32)

    def digests(self) -> np.ndarray:
        names = (f"{self.name(index)}/{self.cfg.seed}" for index in range(len(self)))
        return np.fromiter((digest(name.encode()) for name in names), np.uint64, len(self))

    def scene(self, index: int) -> Scene:
        return make_scene(self.cfg.world, self.cfg.split, int(index), seed=self.cfg.seed)

    def caption(self, index: int, rng: random.Random) -> str:
        """A prompt; as of GenEval's, some leave out colours or places."""
        return make_caption(self.scene(index), rng, complete=False)

    def turn(self, index: int, rng: random.Random, question_fraction: float) -> Turn:
        """A question with probability `question_fraction`, else a complete caption."""
        if rng.random() >= question_fraction:
            return Turn(None, make_caption(self.scene(index), rng))
        asked = make_question(self.scene(index), rng)
        assert asked is not None, "without a kind there is always a question"
        return Turn(asked.text, asked.answer)

    def pixels(self, first: int, end: int) -> Tensor:
        """Images (end - first, 3, H, W) in [-1, 1], float32."""
        return to_tensor(np.stack([render(self.scene(index)) for index in range(first, end)]))
