"""The wide world as a source: scenes rendered on the fly, and other texts each time."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image
from torch import Tensor

from ddit.config.data import WideData
from ddit.data.digests import digest
from ddit.data.samples import Sample, Turn
from ddit.world.detector import to_tensor
from ddit.world.wide import (
    WideScene,
    make_caption,
    make_description,
    make_dialogue,
    make_prompt,
    make_question,
    make_request,
    make_scene,
    make_small_talk,
    render,
)


class WideSource:
    """Scenes of one split of a wide world, by index."""

    def __init__(self, cfg: WideData) -> None:
        self.cfg = cfg

    def __len__(self) -> int:
        return self.cfg.num_scenes

    def name(self, index: int) -> str:
        return f"wide/{self.cfg.split}[{index}]"

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        scene = self.scene(index)
        image = Image.fromarray(render(scene)) if with_image else None
        if i2t:
            return Sample(image, None, self.turns(scene, rng))
        return Sample(image, self.prompt(scene, rng), ())

    def sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self.cfg.world.size, np.int32)

    def digests(self) -> np.ndarray:
        names = (f"{self.name(index)}/{self.cfg.seed}" for index in range(len(self)))
        return np.fromiter((digest(name.encode()) for name in names), np.uint64, len(self))

    def scene(self, index: int) -> WideScene:
        return make_scene(self.cfg.world, self.cfg.split, int(index), seed=self.cfg.seed)

    def prompt(self, scene: WideScene, rng: random.Random) -> str:
        """A prompt in one of many wordings, or a detailed description."""
        if rng.random() < self.cfg.detailed_prompt_fraction:
            return make_description(scene, rng, part=self.cfg.wordings)
        return make_prompt(scene, rng, part=self.cfg.wordings).text

    def turns(self, scene: WideScene, rng: random.Random) -> tuple[Turn, ...]:
        """The texts of an i2t sample. Of captions six in ten have no question, the others answer a request for one."""
        cfg, part, chance = self.cfg, self.cfg.wordings, rng.random()
        if chance < cfg.small_talk_fraction:
            talk = make_small_talk(rng, part=part)
            return (Turn(talk.text, talk.reply),)
        chance -= cfg.small_talk_fraction
        if chance < cfg.question_fraction:
            asked = make_question(scene, rng, part=part, emphasis=cfg.question_emphasis)
            assert asked is not None, "without a kind there is always a question"
            return (Turn(asked.text, asked.answer),)
        chance -= cfg.question_fraction
        if chance < cfg.conversation_fraction:
            return tuple(Turn(turn.text, turn.reply) for turn in make_dialogue(scene, rng, part=part))
        is_detailed = chance - cfg.conversation_fraction < cfg.detailed_fraction
        if not is_detailed and rng.random() < 0.6:
            return (Turn(None, make_caption(scene, rng, part=part)),)
        request = make_request(scene, rng, detailed=is_detailed, part=part, plain=cfg.plain_descriptions)
        return (Turn(request.text, request.reply),)

    def pixels(self, first: int, end: int) -> Tensor:
        """Images (end - first, 3, H, W) in [-1, 1], float32."""
        return to_tensor(np.stack([render(self.scene(index)) for index in range(first, end)]))
