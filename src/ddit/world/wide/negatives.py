"""What is no object of the wide world, though it has parts, colours or outlines of one: to train and test the detector.

A decoy is a sprite-like thing pasted on a ground; coloured noise fills the whole image.
"""

import random
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ..presets import COLORS, STYLES
from ..scenes import Box
from ..sprites import RAMPS
from .presets import GRID, WIDE_CLASSES, WideConfig
from .scenes import WideObject, draw_ground, make_scene, render, share_hidden
from .sprites import make_sprite

Negative = Literal["fragment", "chimera", "two_tone", "silhouette", "shape", "noise"]
NEGATIVES: tuple[Negative, ...] = ("fragment", "chimera", "two_tone", "silhouette", "shape", "noise")
_SHOWN = (0.2, 0.5)
"""The share of its width or height that a fragment shows."""


def make_negative(kind: Negative, index: int, *, seed: int = 0, size: int = GRID) -> np.ndarray:
    """An image that shows no object: noise, or one to three decoys of a kind on a ground; uint8 (size, size, 3)."""
    rng = random.Random(f"negative/{seed}/{kind}/{index}")
    if kind == "noise":
        return draw_noise(rng, size)
    scene = make_scene(WideConfig(size=size), "detector", rng.randrange(1 << 30), seed=seed)
    image = draw_ground(scene.ground, size)
    kinds: list[Negative] = [kind] * rng.choice((1, 1, 2, 3))
    return add_decoys(image, [], rng, kinds)


def add_decoys(
    image: np.ndarray, taken: Sequence[Box], rng: random.Random, kinds: Sequence[Negative]
) -> np.ndarray:
    """The image (uint8, size, size, 3) with decoys where there is room beside the boxes in pixels.

    A decoy is at least 20 of 64 pixels: smaller, an outline or a part looks like a true sprite of that size.
    """
    canvas, side = Image.fromarray(image), len(image)
    boxes = list(taken)
    for kind in kinds:
        for _ in range(30):
            size = round(rng.uniform(20, 30 if boxes else 52) * side / GRID)
            left, top = (rng.randrange(side - size + 1) for _ in range(2))
            box = (left, top, left + size, top + size)
            if all(share_hidden(box, other) <= 0.06 for other in boxes):
                decoy = make_decoy(kind, rng, size)
                canvas.paste(decoy, (left, top), decoy)
                boxes.append(box)
                break
    return np.asarray(canvas)


def make_decoy(kind: Negative, rng: random.Random, size: int) -> Image.Image:
    """A decoy of any kind but noise: RGBA of `size` pixels a side."""
    return _DECOYS[kind](rng, size)


def draw_noise(rng: random.Random, size: int) -> np.ndarray:
    """Coloured clouds of a random coarseness, or noise of single pixels: uint8 (size, size, 3)."""
    values = np.random.default_rng(rng.randrange(1 << 32))
    coarse = rng.choice((2, 3, 4, 6, 8, 12, 16, 24, 32, GRID))
    contrast, mean = rng.uniform(15, 90), [rng.uniform(30, 225) for _ in range(3)]
    cells = (values.normal(0, contrast, (coarse, coarse, 3)) + mean).clip(0, 255).astype(np.uint8)
    clouds = np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))
    if rng.random() < 0.4:
        grain = values.normal(0, rng.uniform(4, 40), (size, size, 3 if rng.random() < 0.5 else 1))
        clouds = (clouds + grain).clip(0, 255).astype(np.uint8)
    return clouds


def _color(rng: random.Random) -> tuple[int, int, int]:
    """One of the world's colours, or any colour."""
    if rng.random() < 0.3:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)
    low, middle, high = RAMPS[rng.choice(COLORS)]
    shade = rng.random()
    ends = (low, middle) if shade < 0.3 else (middle, high) if shade < 0.5 else (middle, middle)
    red, green, blue = (round(a + rng.random() * (b - a)) for a, b in zip(*ends, strict=True))
    return red, green, blue


def _sprite(rng: random.Random, size: int, name: str = "", color: str | None = "any") -> np.ndarray:
    name = name or rng.choice(WIDE_CLASSES)
    color = rng.choice((None, None, None, *COLORS)) if color == "any" else color
    return np.array(make_sprite(name, rng.choice(STYLES), color, size))


def _split(rng: random.Random, size: int, share: float) -> np.ndarray:
    """A mask (size, size) of one side of a straight line, which holds about `share` of the square."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    along = (x, y, (x + y) / 2, (x - y + 1) / 2)[rng.randrange(4)]
    along = 1 - along if rng.random() < 0.5 else along
    return along < np.quantile(along, share)


def _fragment(rng: random.Random, size: int) -> Image.Image:
    pixels = _sprite(rng, size)
    pixels[~_split(rng, size, rng.uniform(*_SHOWN)), 3] = 0
    if rng.random() < 0.3:
        pixels[~_split(rng, size, 0.5), 3] = 0
    return Image.fromarray(pixels)


def _chimera(rng: random.Random, size: int) -> Image.Image:
    color = rng.choice((None, *COLORS)) if rng.random() < 0.5 else "any"
    first, second = (_sprite(rng, size, name, color) for name in rng.sample(WIDE_CLASSES, 2))
    return Image.fromarray(np.where(_split(rng, size, rng.uniform(0.4, 0.6))[..., None], first, second))


def _two_tone(rng: random.Random, size: int) -> Image.Image:
    name, style = rng.choice(WIDE_CLASSES), rng.choice(STYLES)
    first, second = (np.array(make_sprite(name, style, c, size)) for c in rng.sample(COLORS, 2))
    return Image.fromarray(np.where(_split(rng, size, rng.uniform(0.4, 0.6))[..., None], first, second))


def _silhouette(rng: random.Random, size: int) -> Image.Image:
    pixels = _sprite(rng, size)
    pixels[..., :3] = _color(rng)
    return Image.fromarray(pixels)


def _shape(rng: random.Random, size: int) -> Image.Image:
    big = 4 * size
    image = Image.new("RGBA", (big, big))
    pen = ImageDraw.Draw(image)
    color = (*_color(rng), 255)
    line = (*_color(rng), 255) if rng.random() < 0.4 else None
    width = rng.randint(2, 8) * big // 64
    low, high = rng.uniform(0, 0.3) * big, rng.uniform(0.7, 1) * big
    box = (low, rng.uniform(0, 0.3) * big, high, rng.uniform(0.7, 1) * big)
    chosen = rng.randrange(7)
    if chosen == 0:
        pen.ellipse(box, color, line, width)
    elif chosen == 1:
        pen.rectangle(box, color, line, width)
    elif chosen == 2:
        pen.rounded_rectangle(box, big / 6, color, line, width)
    elif chosen == 3:
        pen.ellipse(box, None, color, 2 * width)
    elif chosen == 4:
        pen.regular_polygon(
            (big / 2, big / 2, big * 0.48), rng.choice((3, 4, 5, 6)), rng.uniform(0, 360), color
        )
    elif chosen == 5:
        points = [(rng.random() * big, rng.random() * big) for _ in range(rng.randint(3, 7))]
        pen.polygon(points, color, line)
    else:
        points = [(rng.random() * big, rng.random() * big) for _ in range(rng.randint(2, 5))]
        pen.line(points, color, 2 * width, "curve")
    return image.resize((size, size), Image.Resampling.BOX)


_DECOYS: dict[str, Callable[[random.Random, int], Image.Image]] = {
    "fragment": _fragment,
    "chimera": _chimera,
    "two_tone": _two_tone,
    "silhouette": _silhouette,
    "shape": _shape,
}

_SHARES = (0.62, 0.84, 0.93)
"""Of training images: true scenes up to the first, scenes with decoys up to the second, decoys alone up to the third;
the rest is noise, with and without objects."""


def training_image(
    configs: Sequence[WideConfig], index: int, *, seed: int
) -> tuple[np.ndarray, Sequence[WideObject]]:
    """Image `index` of the detector's training, and the objects in it."""
    rng = random.Random(f"detector/{seed}/{index}")
    chosen = rng.random()
    scene = make_scene(configs[index % len(configs)], "detector", index, seed=seed)
    kinds: list[Negative] = [rng.choice(NEGATIVES[:-1]) for _ in range(rng.choice((1, 1, 2, 3)))]
    if chosen < _SHARES[0]:
        return render(scene), scene.objects
    if chosen < _SHARES[1]:
        return add_decoys(render(scene), [o.box for o in scene.objects], rng, kinds), scene.objects
    if chosen < _SHARES[2]:
        return add_decoys(draw_ground(scene.ground, scene.config.size), [], rng, kinds), ()
    image = draw_noise(rng, scene.config.size)
    if rng.random() < 0.7:
        return image, ()
    canvas = Image.fromarray(image)
    for item in scene.objects:
        sprite = make_sprite(item.class_name, item.style, item.color, item.size)
        canvas.paste(sprite, (item.left, item.top), sprite)
    return np.asarray(canvas), scene.objects
