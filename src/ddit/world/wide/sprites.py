"""The sprites of the wide world: one atlas of emoji, tinted and resized on demand."""

import json
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from ..sprites import tint, visible_share

_HALF = 64


@cache
def _atlas() -> tuple[np.ndarray, dict]:
    folder = files("ddit.world.wide")
    with folder.joinpath("atlas.webp").open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGBA"))
    return pixels, json.loads(folder.joinpath("atlas.json").read_text())


def find_tile(class_name: str, style: str) -> np.ndarray:
    """The sprite in its artist's colours: RGBA uint8 (128, 128, 4)."""
    pixels, index = _atlas()
    side, across = index["tile"], index["columns"]
    place = index["styles"].index(style) * len(index["classes"]) + index["classes"].index(class_name)
    row, column = divmod(place, across)
    return pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]


@cache
def natural_color(class_name: str, style: str) -> tuple[bool, str | None]:
    """Whether the sprite may be used in its artist's colours, and the colour that it then has, None for several."""
    own = _atlas()[1]["natural"][style]
    return class_name in own, own.get(class_name)


@cache
def measure_extent(class_name: str, style: str) -> tuple[float, float]:
    """Width and height of the visible part, as shares of the square tile in which it is centred."""
    return visible_share(find_tile(class_name, style))


@lru_cache(maxsize=16384)
def make_sprite(class_name: str, style: str, color: str | None, size: int) -> Image.Image:
    """A sprite at `size` pixels, RGBA, antialiased. A colour is a tint, unless the sprite has that colour by itself."""
    tile = (_halved if size <= _HALF else _colored)(class_name, style, color)
    return tile.resize((size, size), Image.Resampling.HAMMING)


@lru_cache(maxsize=512)
def _colored(class_name: str, style: str, color: str | None) -> Image.Image:
    pixels = find_tile(class_name, style)
    if color is not None and natural_color(class_name, style) != (True, color):
        pixels = tint(pixels, color)
    return Image.fromarray(pixels)


@lru_cache(maxsize=4096)
def _halved(class_name: str, style: str, color: str | None) -> Image.Image:
    tile = _colored(class_name, style, color)
    return tile.resize((_HALF, _HALF), Image.Resampling.BOX)
