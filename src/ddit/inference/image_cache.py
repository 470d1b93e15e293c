"""The images of a call: each encoded once and, where that is exact, its keys and values kept for all texts about it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ddit.images import ImageSource, to_tensor
from ddit.inference.callables import ImageContext
from ddit.model.block import BlockKV, ImageKV
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image that a model has encoded (`Pipeline.encode_image`), for any number of calls about it.

    image: at the size that the model reads. latents: (1, C, h, w). kv: its keys and values, where they are exact.
    """

    image: Image.Image
    latents: Tensor
    kv: ImageKV | None

    def __repr__(self) -> str:
        kept = "latents" if self.kv is None else "latents, keys and values"
        width, height = self.image.size
        dtype = str(self.latents.dtype).removeprefix("torch.")
        return f"<EncodedImage of {width}x{height} pixels: {kept}, {dtype} on {self.latents.device}>"


ImageInput = ImageSource | EncodedImage
FittedImage = Image.Image | EncodedImage
"""An image at the size that the model reads."""


@dataclass
class ImageCache:
    """The images of a call, one a text; those that were encoded before are not encoded again.

    One that later texts need stays, but of those not in use at most a batch.
    """

    transformer: DualDiT
    image_codec: ImageCodec
    images: Sequence[FittedImage]
    _held: list[int] = field(default_factory=list)
    _latents: Tensor | None = None
    _kv: ImageKV | None = None

    def __post_init__(self) -> None:
        numbers: dict[bytes, int] = {}
        objects = {id(image): image for image in self.images}
        digests = {key: _digest(image) for key, image in objects.items()}
        self._number = [numbers.setdefault(digests[id(image)], row) for row, image in enumerate(self.images)]
        self._left = Counter(self._number)  # texts about each that are still to come

    def take(self, rows: Sequence[int], most_spare: int) -> ImageContext:
        """The images of these texts, encoded."""
        wanted = dict.fromkeys(self._number[row] for row in rows)
        self._left.subtract(self._number[row] for row in rows)
        spare = [number for number in self._held if number not in wanted and self._left[number]]
        stay = [number for number in self._held if number in wanted or number in spare[:most_spare]]
        new = [number for number in wanted if number not in self._held]
        if new or not self._held:
            self._load(stay, new)
        place = {number: index for index, number in enumerate(self._held)}
        index = torch.tensor([place[self._number[row]] for row in rows])
        assert self._latents is not None
        return ImageContext(self._latents, self._kv, index.to(self._latents.device))

    def _load(self, stay: list[int], new: list[int]) -> None:
        encoded = []
        if stay and self._latents is not None:
            kept = torch.tensor([self._held.index(number) for number in stay], device=self._latents.device)
            kv = self._kv and [BlockKV(b.k[kept], b.v[kept], b.text_mod) for b in self._kv]
            encoded.append((self._latents[kept], kv))
        given = {number: image for number in new if isinstance(image := self.images[number], EncodedImage)}
        fresh = {
            number: image for number in new if not isinstance(image := self.images[number], EncodedImage)
        }
        if fresh:
            encoded.append(encode_images(self.transformer, self.image_codec, list(fresh.values())))
        encoded += [(image.latents, image.kv) for image in given.values()]
        self._held = [*stay, *fresh, *given]
        self._latents, self._kv = encoded[0] if len(encoded) == 1 else _join(encoded)


def _digest(image: FittedImage) -> bytes:
    pixels = image.image if isinstance(image, EncodedImage) else image
    return hashlib.sha256(pixels.tobytes()).digest()


def encode_images(
    transformer: DualDiT, image_codec: ImageCodec, images: list[Image.Image]
) -> tuple[Tensor, ImageKV | None]:
    """Latents of images of one size and, where they are exact, their keys and values."""
    latents = image_codec.encode(to_tensor(images))
    return latents, None if transformer.config.image_attends_text else transformer.image_kv(latents)


def _join(encoded: list[tuple[Tensor, ImageKV | None]]) -> tuple[Tensor, ImageKV | None]:
    """Several batches of encoded images as one."""
    latents = torch.cat([part for part, _ in encoded])
    caches = [kv for _, kv in encoded if kv is not None]
    if not caches:
        return latents, None
    assert len(caches) == len(encoded)
    return latents, [
        BlockKV(torch.cat([b.k for b in blocks]), torch.cat([b.v for b in blocks]), blocks[0].text_mod)
        for blocks in zip(*caches, strict=True)
    ]
