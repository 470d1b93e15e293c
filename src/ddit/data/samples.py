"""One training sample, and what every source of samples offers."""

from __future__ import annotations

import random
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor


class Turn(NamedTuple):
    """A text about an image: a caption (no question), or a question with its answer."""

    question: str | None
    answer: str


class Latents(NamedTuple):
    """Cached work on one image: mean and std (C, h, w) of its latents, and a teacher's features (F, h', w')."""

    mean: Tensor
    std: Tensor | None
    features: Tensor | None


class Sample(NamedTuple):
    """One image with its texts.

    Attributes:
        image: RGB, or its cached latents, or None where a conversation has no image (the null image).
        caption: the prompt of a t2i sample; None where the source has none.
        turns: the texts of an i2t sample, in order; a caption is a single turn without a question.
        short_answers: whether the questions are of a short-answer benchmark, and
        unanswerable: whether they may have no answer: the prompt's wording depends on both.
    """

    image: Image.Image | Latents | None
    caption: str | None
    turns: tuple[Turn, ...]
    short_answers: bool = False
    unanswerable: bool = False


class CorruptSample(Exception):
    """A sample that cannot be used; `cause` is a short, countable reason such as "not an image"."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


class SourceError(ValueError):
    """A fault of a whole source, which no other sample makes up for."""


class LeftOut(NamedTuple):
    """What a source holds and does not use, of one cause: how many files or members, and the first few names."""

    num: int
    first: tuple[str, ...]


class Source(Protocol):
    """Training samples by index; one index with an equally seeded `rng` gives one sample, in every process."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        """Sample `index`, for i2t with its turns, else (for t2i) with its caption.

        Without `with_image` the image is neither opened nor decoded, and is None; the texts are the same.

        Raises:
            CorruptSample: if it cannot be used.
        """
        ...

    def sizes(self) -> np.ndarray:
        """Width and height of every image, (len, 2) int32, upright, from metadata or file headers.

        (0, 0): there is no image, or its header cannot be read.
        """
        ...

    def digests(self) -> np.ndarray:
        """A hash of every image's bytes, (len,) uint64: equal for equal images, wherever they are.

        Of a sample without an image it is that of its text, of one that cannot be read and of an image behind a URL,
        that of its name.
        """
        ...

    def name(self, index: int) -> str:
        """Where sample `index` comes from, for messages: file and entry."""
        ...


def read_sample(
    source: Source, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True
) -> Sample:
    """`source.sample(...)`, where whatever is raised is that one sample's fault, and ends no run.

    Raises:
        CorruptSample: if it cannot be used; the cause of an unforeseen fault is the type of the error.
        SourceError, MemoryError: as they come.
    """
    try:
        return source.sample(index, rng, i2t=i2t, with_image=with_image)
    except (CorruptSample, SourceError, MemoryError):
        raise
    except Exception as error:
        raise CorruptSample(
            f"unreadable ({type(error).__name__})", f"{source.name(index)}: {error}"
        ) from error
