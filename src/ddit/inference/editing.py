"""Images to be changed, and which parts of them are kept, on the model's grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddit.images import ImageSource, fit_image, image_sources, read_image, read_mask
from ddit.inference.batching import matched

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Originals:
    """The images that a call changes, one a sample.

    Attributes:
        images: at the model's size; one that belongs to several samples is one object.
        masks: cells of the latents to be generated, (rows, columns) each; None: all of them.
        strength: see `flow.Known`.
    """

    images: list[Image.Image]
    masks: list[Tensor] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def keep(self, part: slice) -> Tensor | None:
        """Where latents are kept, (b, 1, rows, columns), of some of the samples."""
        return None if self.masks is None else ~torch.stack(self.masks[part])[:, None]


@dataclass(frozen=True)
class Grid:
    """An image's cells: rows and columns of the latents, each of `cell` x `cell` pixels."""

    rows: int
    columns: int
    cell: int

    def read(
        self,
        prompts: Sequence[str],
        images: ImageSource | Sequence[ImageSource],
        masks: ImageSource | Sequence[ImageSource] | None = None,
        *,
        strength: float = 1.0,
    ) -> tuple[list[str], Originals]:
        """Prompts, images and masks (if there are any) of equal number; a single one goes with all of the others.

        Raises:
            ValueError: on what cannot be read, numbers or sizes that do not match, or a mask without white.
        """
        originals = _apply(read_image, image_sources(images))
        shapes = None if masks is None else _apply(read_mask, image_sources(masks, "masks"))
        numbers = {"prompts": len(prompts), "images": len(originals), "masks": len(shapes or ())}
        most = max(numbers, key=lambda what: numbers[what])
        count = numbers[most]
        texts = matched(list(prompts), count, "prompts", most)
        originals = matched(originals, count, "images", most)
        if shapes is None:
            return texts, Originals(_apply(self.fit, originals), None, strength)
        shapes = matched(shapes, count, "masks", most)
        for image, mask in zip(originals, shapes, strict=True):
            check_mask(mask, image.size)
        return texts, Originals(_apply(self.fit, originals), _apply(self.touched, shapes), strength)

    def fit(self, image: Image.Image) -> Image.Image:
        """The image resized and centre-cropped to the grid."""
        return fit_image(image, self.rows * self.cell, self.columns * self.cell)

    def touched(self, mask: Image.Image) -> Tensor:
        """The cells that white of a mask falls on, however little, (rows, columns); the mask is fitted as its image.

        Raises:
            ValueError: if there is none, since what is white is outside of the crop.
        """
        size = self.columns * self.cell, self.rows * self.cell
        # Floats, since a pixel's share of a large mask's cell may be less than an 8-bit level; a mean over boxes, so
        # that no pixel counts outside of its place.
        share = np.asarray(ImageOps.fit(mask.convert("F"), size, Image.Resampling.BOX))
        touched = (share > 1e-3).reshape(self.rows, self.cell, self.columns, self.cell).any((1, 3))
        if not touched.any():
            raise ValueError(
                f"the mask is white only outside of the middle {size[0]}:{size[1]} that is generated"
            )
        return torch.from_numpy(touched)


def _apply(function: Callable[[Given], Made], items: Sequence[Given]) -> list[Made]:
    """The function of each item, called once for an object that is there several times."""
    objects = {id(item): item for item in items}
    made = {key: function(item) for key, item in objects.items()}
    return [made[id(item)] for item in items]


def check_mask(mask: Image.Image, size: tuple[int, int]) -> None:
    """Raises ValueError if a mask is not of its image's width and height, or has no white."""
    if mask.size != size:
        width, height = size
        raise ValueError(f"a mask of {mask.width}x{mask.height} does not fit an image of {width}x{height}")
    if mask.getbbox() is None:
        raise ValueError("the mask is empty: white is generated again, black is kept")


def check_strength(strength: float) -> None:
    """Raises ValueError if a strength is out of range."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask, white in a box: left, top, right and bottom in pixels, the last two excluded.

    Raises ValueError for a box that is empty or not within width and height.
    """
    (width, height), (left, top, right, bottom) = size, box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        edges = f"{left} {top} {right} {bottom}"
        raise ValueError(
            f"the box {edges} (left, top, right, bottom) is not within an image of {width}x{height}"
        )
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask
