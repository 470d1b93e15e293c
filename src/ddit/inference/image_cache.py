"""The pictures of a call that reads them: each encoded once and, where that is exact, read once for all its texts."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ddit.diffusion.masked import LogitsFn
from ddit.images import ImageSource, to_tensor
from ddit.inference.callables import JointLogits, Refresh, StatesFn, isolated_logits
from ddit.model.dual_dit import BlockKV, DualDiT, ImageKV

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ddit.model.encoders import ImageCodec


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """A picture that a model has looked at (`Pipeline.look`), for any number of calls about it.

    image: at the size that the model reads. latents: (1, C, h, w). cache: what texts need of it, where that is exact.
    """

    image: Image.Image
    latents: Tensor
    cache: ImageKV | None


ImageInput = ImageSource | EncodedImage


@dataclass(frozen=True)
class ImageContext:
    """What a batch of texts is about: latents of P pictures, their cache where it is exact, and each text's picture."""

    latents: Tensor | None
    cache: ImageKV | None
    index: Tensor
    is_null: bool = False

    def logits_fn(self, model: DualDiT, states_fn: StatesFn, refresh: Refresh | None = None) -> LogitsFn:
        """The batch's logits; `refresh` is for models whose image side sees the text."""
        if self.cache is not None:
            return isolated_logits(model, states_fn, self.cache, self.index)
        return JointLogits(model, states_fn, self.latents, self.index, refresh)


def null_context(model: DualDiT, count: int, cache: ImageKV | None) -> ImageContext:
    """So many texts about the null image; `cache` is what `null_image_kv` gave."""
    index = torch.zeros(count, dtype=torch.long, device=model.null_image_embd.device)
    return ImageContext(None, cache, index, is_null=True)


def null_image_kv(model: DualDiT) -> ImageKV | None:
    """The null image, read, where that is exact."""
    return None if model.config.image_attends_text else model.read_image(None)


@dataclass
class ImageCache:
    """The pictures of a call, one a text; those that were looked at before are not encoded again.

    One that later texts need stays, but of those not at work at most a batch.
    """

    transformer: DualDiT
    image_codec: "ImageCodec"
    pictures: Sequence[Image.Image | EncodedImage]
    _held: list[int] = field(default_factory=list)
    _latents: Tensor | None = None
    _cache: ImageKV | None = None

    def __post_init__(self) -> None:
        numbers: dict[bytes, int] = {}
        objects = {id(picture): picture for picture in self.pictures}
        digests = {key: _digest(picture) for key, picture in objects.items()}
        self._number = [
            numbers.setdefault(digests[id(picture)], row) for row, picture in enumerate(self.pictures)
        ]
        self._left = Counter(self._number)  # texts about each that are still to come

    def take(self, rows: Sequence[int], most_spare: int) -> ImageContext:
        """The pictures of these texts, made ready."""
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
        return ImageContext(self._latents, self._cache, index.to(self._latents.device))

    def _load(self, stay: list[int], new: list[int]) -> None:
        encoded = []
        if stay and self._latents is not None:
            kept = torch.tensor([self._held.index(number) for number in stay], device=self._latents.device)
            cache = self._cache and [BlockKV(b.k[kept], b.v[kept], b.text_mod) for b in self._cache]
            encoded.append((self._latents[kept], cache))
        seen = {
            number: picture for number in new if isinstance(picture := self.pictures[number], EncodedImage)
        }
        unseen = {
            number: picture
            for number in new
            if not isinstance(picture := self.pictures[number], EncodedImage)
        }
        if unseen:
            encoded.append(encode_images(self.transformer, self.image_codec, list(unseen.values())))
        encoded += [(picture.latents, picture.cache) for picture in seen.values()]
        self._held = [*stay, *unseen, *seen]
        self._latents, self._cache = encoded[0] if len(encoded) == 1 else _join(encoded)


def _digest(picture: Image.Image | EncodedImage) -> bytes:
    image = picture.image if isinstance(picture, EncodedImage) else picture
    return hashlib.sha256(image.tobytes()).digest()


def encode_images(
    transformer: DualDiT, image_codec: "ImageCodec", images: list[Image.Image]
) -> tuple[Tensor, ImageKV | None]:
    """Latents of pictures of one size and, where that is exact, what the text needs of them."""
    latents = image_codec.encode(to_tensor(images))
    return latents, None if transformer.config.image_attends_text else transformer.read_image(latents)


def _join(encoded: list[tuple[Tensor, ImageKV | None]]) -> tuple[Tensor, ImageKV | None]:
    """Several batches of encoded pictures as one."""
    latents = torch.cat([part for part, _ in encoded])
    caches = [cache for _, cache in encoded if cache is not None]
    if not caches:
        return latents, None
    assert len(caches) == len(encoded)
    return latents, [
        BlockKV(torch.cat([b.k for b in blocks]), torch.cat([b.v for b in blocks]), blocks[0].text_mod)
        for blocks in zip(*caches, strict=True)
    ]
