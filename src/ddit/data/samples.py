"""One training sample, and what every source of samples offers."""

from __future__ import annotations

import random
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor


class Turn(NamedTuple):
    """A text to be read off a picture: a caption (no question), or a question with its answer."""

    question: str | None
    answer: str


class Latents(NamedTuple):
    """Cached work on one picture: mean and std (C, h, w) of its latents, and a teacher's features (F, h', w')."""

    mean: Tensor
    std: Tensor | None
    features: Tensor | None


class Sample(NamedTuple):
    """One picture with its texts.

    Attributes:
        picture: RGB, or its cached latents, or None where a conversation has no picture (the null image).
        caption: to draw from; None where the source has none.
        turns: to be read off, in order; a caption is a single turn without a question.
        short_answers: whether the questions are of a short-answer benchmark, and
        unanswerable: whether they may have no answer: the prompt's wording depends on both.
    """

    picture: Image.Image | Latents | None
    caption: str | None
    turns: tuple[Turn, ...]
    short_answers: bool = False
    unanswerable: bool = False


class CorruptSample(Exception):
    """A sample that cannot be used; `cause` is a short, countable reason such as "not a picture"."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


class Source(Protocol):
    """Samples by index; the same index with an equally seeded `rng` gives the same sample, in every process."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: random.Random, *, reading: bool, with_picture: bool = True) -> Sample:
        """Sample `index`, with its turns if `reading`, else with its caption; `CorruptSample` if it is unusable.

        Without `with_picture` the picture is neither opened nor decoded, and is None; the texts are the same.
        """
        ...

    def sizes(self) -> np.ndarray:
        """Width and height of every picture, (len, 2) int32, upright, from metadata or file headers.

        (0, 0): there is no picture, or its header cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Where sample `index` comes from, for messages: file and entry."""
        ...
