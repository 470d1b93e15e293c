"""A source of samples held in memory, for the tests of what mixes and batches them."""

import random

import numpy as np
from PIL import Image

from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, Sample, Turn


class ListSource:
    """Plain images whose colour tells the index; those in `corrupt` are unusable, those in `without` have none.

    `sizes` are width and height of the images, all alike if there is but one.
    """

    def __init__(
        self,
        num: int,
        *,
        sizes: list[tuple[int, int]] | tuple[int, int] = (32, 32),
        corrupt: frozenset[int] = frozenset(),
        without: frozenset[int] = frozenset(),
        tag: str = "red",
    ) -> None:
        self.num, self.corrupt, self.without, self.tag = num, corrupt, without, tag
        self.all_sizes = sizes if isinstance(sizes, list) else [sizes] * num
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.num

    def name(self, index: int) -> str:
        return f"list[{index}]"

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        self.asked.append(index)
        if index in self.corrupt:
            raise CorruptSample("not an image", self.name(index))
        image = None
        if with_image and index not in self.without:
            image = Image.new("RGB", self.all_sizes[index], (index % 256, index // 256, 7))
        word = rng.choice(["dog", "cat", "car"])
        if i2t:
            return Sample(image, None, (Turn("is there a dog", self.tag), Turn("what", word)))
        return Sample(image, f"a {self.tag} {word}", ())

    def sizes(self) -> np.ndarray:
        sizes = [(0, 0) if i in self.without else size for i, size in enumerate(self.all_sizes)]
        return np.array(sizes, dtype=np.int32)

    def digests(self) -> np.ndarray:
        return digest_all(lambda index: self.name(index).encode(), self.name, range(self.num))
