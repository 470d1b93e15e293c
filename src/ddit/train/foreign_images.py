"""Images of no world at all, which stand for photographs where training images are told from others.

They are dead leaves: shapes of all sizes that hide one another, some textured, with statistics near those of
photographs (Lee, Mumford and Huang 2001; Baradad et al. 2021 learn to see from them). Learning from such images what
is foreign is outlier exposure (Hendrycks et al. 2019).
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_NUM_TEXTURES = 32
_OVERSAMPLING = 2
_LEAVES = (3, 8, 20, 60, 150)
"""So many shapes an image has."""
_MUTED = (60, 200)
"""Textured surfaces are seldom as vivid as paint."""


def make_foreign_images(num: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Images (num, size, size, 3), uint8, of at least one; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    side = size * _OVERSAMPLING
    textures = [_texture(rng, side) for _ in range(_NUM_TEXTURES)]
    images = [_leaves(rng, side, textures) for _ in range(num)]
    return np.stack([np.asarray(image.resize((size, size), Image.Resampling.BOX)) for image in images])


def _leaves(rng: np.random.Generator, side: int, textures: list[np.ndarray]) -> Image.Image:
    image = _textured(rng, _color(rng, *_MUTED), textures, (side, side))
    palette = [_color(rng) for _ in range(rng.integers(3, 10))]
    for _ in range(rng.choice(_LEAVES)):
        mask = Image.new("L", image.size, 0)
        radius = min(side * 0.04 * rng.pareto(1.2) + 2, side * 0.6)
        _draw_shape(rng, ImageDraw.Draw(mask), tuple(rng.uniform(-0.1, 1.1, 2) * side), radius, 255)
        color = (palette[rng.integers(len(palette))] + rng.normal(0, 15, 3)).clip(0, 255).astype(int)
        box = mask.getbbox()
        if box is None:  # beside the image
            continue
        if rng.random() < 0.5:
            color = (color + _color(rng, *_MUTED)) // 2
            fill = _textured(rng, color, textures, (box[2] - box[0], box[3] - box[1]))
        else:
            fill = tuple(color.tolist())
        image.paste(fill, box, mask.crop(box))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2))) if rng.random() < 0.6 else image


def _draw_shape(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, center: tuple[float, ...], radius: float, fill: int
) -> None:
    """An ellipse, a rectangle or a polygon of three to eight corners."""
    (x, y), (width, height) = center, radius * rng.uniform(0.4, 1, 2)
    kind = rng.integers(3)
    if kind == 2:
        corners = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        reach = radius * rng.uniform(0.5, 1.3, len(corners))
        draw.polygon([*zip(x + reach * np.cos(corners), y + reach * np.sin(corners), strict=True)], fill=fill)
    else:
        shape = draw.ellipse if kind else draw.rectangle
        shape([x - width, y - height, x + width, y + height], fill=fill)


def _textured(
    rng: np.random.Generator, color: np.ndarray, textures: list[np.ndarray], size: tuple[int, int]
) -> Image.Image:
    """A part of a texture, which repeats itself, around a colour; `size` is its width and height."""
    texture = textures[rng.integers(len(textures))]
    rows, columns = (
        np.arange(start, start + extent) % len(texture)
        for start, extent in zip(rng.integers(0, len(texture), 2), reversed(size), strict=True)
    )
    part = texture[np.ix_(rows, columns)]
    return Image.fromarray((color + rng.uniform(15, 65) * part).clip(0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3): noise whose amplitude falls with a power of the frequency, its channels correlated."""
    frequencies = np.fft.fftfreq(side)
    radius = np.hypot(frequencies[:, None], frequencies)
    radius[0, 0] = 1 / side
    mixed = np.tensordot(rng.normal(0.6, 0.4, (3, 3)), rng.normal(size=(3, side, side)), 1)
    found = np.fft.ifft2(np.fft.fft2(mixed) / radius ** rng.uniform(0.8, 2)).real
    return ((found - found.mean((1, 2), keepdims=True)) / found.std()).transpose(1, 2, 0)


def _color(rng: np.random.Generator, least: int = 0, most: int = 255) -> np.ndarray:
    return rng.integers(least, most + 1, 3)
