"""The sprites: one atlas of emoji, tinted and resized on demand."""

import json
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from PIL import Image

RAMPS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((110, 0, 8), (218, 22, 28), (255, 110, 100)),
    "orange": ((190, 80, 0), (255, 136, 0), (255, 190, 95)),
    "yellow": ((175, 140, 0), (252, 222, 20), (255, 248, 150)),
    "green": ((0, 70, 20), (28, 152, 48), (130, 215, 125)),
    "blue": ((8, 25, 115), (28, 80, 225), (120, 170, 255)),
    "purple": ((55, 5, 90), (128, 40, 185), (190, 125, 235)),
    "pink": ((215, 50, 125), (255, 125, 190), (255, 195, 225)),
    "brown": ((55, 28, 8), (118, 68, 28), (175, 120, 75)),
    "black": ((5, 5, 8), (34, 34, 38), (98, 98, 105)),
    "white": ((158, 158, 166), (238, 238, 240), (255, 255, 255)),
}
"""Each colour from shadow over middle to light."""

_MIDDLE = 0.6  # the luminance that becomes the middle of the ramp
_FLOOR = 0.1  # keeps a flat sprite, all of it as dark as its darkest, out of the shadow


class Sprite(NamedTuple):
    """A square of (size, size): its colour times its coverage, and the share of the background that stays visible."""

    color: np.ndarray  # float32 (size, size, 3), 0..255
    ground: np.ndarray  # float32 (size, size, 1), 0..1


def tint(tile: np.ndarray, color: str) -> np.ndarray:
    """Recolour an RGBA tile (uint8, H, W, 4), keeping its light and shade.

    Luminance is stretched to the whole range, its mean brought to the middle of the colour's ramp.
    """
    alpha = tile[..., 3:].astype(np.float32) / 255
    luminance = tile[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    solid = luminance[alpha[..., 0] > 0.5]
    low, high = np.quantile(solid, [0.03, 0.97])
    light = np.clip((luminance - low) / max(float(high - low), 0.15), 0, 1)
    light = _FLOOR + (1 - _FLOOR) * light
    mean = float(min(light[alpha[..., 0] > 0.5].mean(), 0.95))
    light = light ** (np.log(_MIDDLE) / np.log(mean))
    ramp = np.array(RAMPS[color], dtype=np.float32)
    tinted = np.stack([np.interp(light, [0, _MIDDLE, 1], ramp[:, c]) for c in range(3)], axis=-1)
    return np.concatenate([tinted, alpha * 255], axis=-1).round().astype(np.uint8)


@cache
def _atlas() -> tuple[np.ndarray, dict]:
    folder = files("ddit.world")
    with folder.joinpath("atlas.png").open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGBA"))
    return pixels, json.loads(folder.joinpath("atlas.json").read_text())


def find_tile(class_name: str, style: str) -> np.ndarray:
    """The sprite in its artist's colours: RGBA uint8 (64, 64, 4)."""
    pixels, index = _atlas()
    size = index["tile"]
    row, column = index["styles"].index(style), index["classes"].index(class_name)
    return pixels[row * size : (row + 1) * size, column * size : (column + 1) * size]


def has_natural_color(class_name: str, style: str) -> bool:
    """Whether the sprite may be used untinted, as an object of no single colour."""
    return _atlas()[1]["natural"][style].get(class_name, "") is None


@cache
def measure_extent(class_name: str, style: str) -> tuple[float, float]:
    """Width and height of the visible part, as shares of the square tile in which it is centred."""
    return visible_share(find_tile(class_name, style))


def visible_share(tile: np.ndarray) -> tuple[float, float]:
    """Width and height of what is visible of a tile, RGBA uint8 (S, S, 4), as shares of S."""
    alpha = tile[..., 3] > 24
    across, down = (np.flatnonzero(alpha.any(axis=axis)) for axis in (0, 1))
    return float(np.ptp(across) + 1) / len(alpha), float(np.ptp(down) + 1) / len(alpha)


@lru_cache(maxsize=8192)
def make_sprite(class_name: str, style: str, color: str | None, size: int) -> Sprite:
    """A sprite at `size` pixels, antialiased. A colour is a tint, unless the sprite has that colour by itself."""
    pixels = _colored(class_name, style, color)
    values = pixels.astype(np.float32)
    alpha = values[..., 3:] / 255
    premultiplied = np.concatenate([values[..., :3] * alpha, alpha], axis=-1)
    planes = [
        np.asarray(Image.fromarray(premultiplied[..., c]).resize((size, size), Image.Resampling.HAMMING))
        for c in range(4)
    ]
    resized = np.stack(planes, axis=-1)
    return Sprite(resized[..., :3].astype(np.float32), (1 - resized[..., 3:]).astype(np.float32))


@lru_cache(maxsize=1024)
def _colored(class_name: str, style: str, color: str | None) -> np.ndarray:
    pixels = find_tile(class_name, style)
    own = _atlas()[1]["natural"][style].get(class_name)
    return pixels if color is None or color == own else tint(pixels, color)
