"""Images that are there more than once: the same pixels, or so nearly the same that they look alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddit.data.digests import digest

SIDE = 8
MAX_DIFFERENCE = 3.0
"""Root mean square of the difference of two thumbnails, of 255: another JPEG quality or size stays below it."""
MAX_COMPARED = 20_000
"""Images; comparing so many with each other takes some seconds."""
_BLOCK = 512


class Look(NamedTuple):
    """A hash of an image's pixels, and its thumbnail: SIDE x SIDE x 3 bytes."""

    digest: int
    thumbnail: bytes


def look_at(image: Image.Image) -> Look:
    """Of an RGB image."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return Look(digest(f"{image.size}".encode() + image.tobytes()), small.tobytes())


class Near(NamedTuple):
    """Of each image the first one before it that looks alike, or -1, and whether one of the other part does."""

    before: np.ndarray
    is_across: np.ndarray


def find_near(thumbnails: Sequence[bytes], held_out: np.ndarray) -> Near:
    """Compares all images with all: n thumbnails, and which are held out, (n,) bool."""
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1)
    pixels = pixels.astype(np.float32) - 128
    squares = np.square(pixels).sum(1)
    most = MAX_DIFFERENCE**2 * pixels.shape[1]
    before = np.full(len(pixels), -1)
    is_across = np.zeros(len(pixels), bool)
    for start in range(0, len(pixels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        distances = squares[rows, None] + squares - 2 * (pixels[rows] @ pixels.T)
        alike = distances <= most  # (block, n), with itself
        first = alike.argmax(1)
        numbers = np.arange(start, start + len(first))
        before[rows] = np.where(first < numbers, first, -1)
        is_across[rows] = (alike & (held_out != held_out[rows, None])).any(1)
    return Near(before, is_across)
