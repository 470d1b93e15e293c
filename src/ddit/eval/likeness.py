"""How near an image of one object comes to a true one: PSNR and a perceptual distance to the nearest true image.

The true images of a prompt are all that its world could show for it: the sprite of the class in each style, in the
colour that is asked for or else in every colour that it may have, 14 to 64 pixels large, at every place, on a ground.
The nearest one has the least squared error over the whole image, with the ground that fits best: a colour for each
channel, a slope from top to bottom, and one of the wide world's textures or none.

PSNR is that of the box of the nearest sprite, so that an empty ground counts for nothing: 10 log10(255^2 / MSE) dB, at
most 60. The perceptual distance is LPIPS's (Zhang et al. 2018) in the features of the world's detector, without learned
weights: the mean over the box, and over four depths, of the squared distance of features of unit length; from 0 to 4.

Shapes: T templates, S side of a sprite; images have 64 pixels a side, in the search for a place 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddit.eval.items import Figure
from ddit.images import fit_image
from ddit.world import COLORS, Prompt
from ddit.world.detector import DetectorNet, load_detector, to_tensor
from ddit.world.presets import CLASSES, STYLES
from ddit.world.sprites import has_natural_color, make_sprite, measure_extent
from ddit.world.wide.presets import GRID, WIDE_CLASSES
from ddit.world.wide.scenes import NUM_TEXTURES, texture
from ddit.world.wide.sprites import make_sprite as make_wide_sprite
from ddit.world.wide.sprites import measure_extent as measure_wide_extent
from ddit.world.wide.sprites import natural_color

MAX_PSNR = 60.0
SIZES = range(14, GRID + 1)
_COARSE = tuple(sorted({min(round(14 * 1.07**k), GRID) for k in range(24)}))
"""Sizes that are tried everywhere; those between are tried around the best."""
_HALF = GRID // 2
_REFINED = 3
"""Looks (style and colour) whose best place is refined."""


class Likeness(NamedTuple):
    """The nearest true image, and how near it is."""

    psnr: float
    distance: float
    style: str
    color: str | None
    left: int
    top: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """The fields of a line of predictions.jsonl."""
        nearest = {"style": self.style, "color": self.color, "tile": [self.left, self.top, self.size]}
        return {"psnr": round(self.psnr, 3), "distance": round(self.distance, 4), "nearest": nearest}


class _Look(NamedTuple):
    style: str
    color: str | None


class SpriteWorld(NamedTuple):
    """The sprites of a world: whether one may have its artist's colours, its pixels, and its visible part."""

    classes: tuple[str, ...]
    may_be_natural: Callable[[str, str], bool]
    draw: Callable[[str, str, str | None, int], np.ndarray]
    """Colour times coverage, and coverage, from 0 to 1: float32 (S, S, 4)."""
    extent: Callable[[str, str], tuple[float, float]]

    def looks(self, class_name: str, color: str | None) -> list[_Look]:
        """The styles and colours of the sprites that show the class, in that colour if one is given."""
        return [
            _Look(style, each)
            for style in STYLES
            for each in ((color,) if color else (None, *COLORS))
            if each or self.may_be_natural(class_name, style)
        ]


def _draw_small(class_name: str, style: str, color: str | None, size: int) -> np.ndarray:
    sprite = make_sprite(class_name, style, color, size)
    return np.concatenate([sprite.color / 255, 1 - sprite.ground], axis=-1)


def _draw_wide(class_name: str, style: str, color: str | None, size: int) -> np.ndarray:
    pixels = np.asarray(make_wide_sprite(class_name, style, color, size), np.float32) / 255
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)


SMALL = SpriteWorld(CLASSES, has_natural_color, _draw_small, measure_extent)
WIDE = SpriteWorld(
    WIDE_CLASSES, lambda *look: natural_color(*look) == (True, None), _draw_wide, measure_wide_extent
)


def asks_for_one(prompt: Prompt) -> bool:
    """Whether a prompt asks for a single object and no more."""
    return len(prompt.include) == 1 and prompt.include[0]["count"] == 1 and not prompt.exclude


def measure_likeness(
    prompts: Sequence[Prompt], images: Sequence[Image.Image], world: SpriteWorld
) -> list[Likeness | None]:
    """Each image's likeness; None for prompts that do not ask for one object. Images are resized to 64 pixels."""
    return [
        find_nearest(fit_image(image, GRID, GRID), p.include[0]["class"], p.include[0].get("color"), world)
        if asks_for_one(p)
        else None
        for p, image in zip(prompts, images, strict=True)
    ]


def tally_likeness(found: Sequence[Likeness]) -> list[Figure]:
    """The means of PSNR and distance, with 95 % intervals (normal approximation); no figure for no image."""
    figures = []
    for name, values in (
        ("single objects: PSNR, dB", [each.psnr for each in found]),
        ("single objects: perceptual distance", [each.distance for each in found]),
    ):
        if values:
            middle, half = float(np.mean(values)), 1.96 * float(np.std(values)) / len(values) ** 0.5
            limits = (middle - half, middle + half)
            figures.append(Figure(name, middle, len(values), is_share=False, limits=limits))
    return figures


class _Template(NamedTuple):
    look: _Look
    left: int
    top: int
    size: int


@torch.no_grad()
def find_nearest(image: Image.Image, class_name: str, color: str | None, world: SpriteWorld) -> Likeness:
    """The nearest true image of a class, in a colour or in any."""
    pixels = np.array(image.convert("RGB"))
    values = torch.from_numpy(pixels.astype(np.float32) / 255)  # (64, 64, 3)

    def fit(template: _Template, texture: int | None = None) -> _Fit:
        tile = torch.from_numpy(world.draw(class_name, *template.look, template.size))
        return _fit_ground(values, tile, template, texture)

    starts = _search(values, class_name, color, world)[:_REFINED]
    best = min((_refine(start, fit) for start in starts), key=lambda found: found.error)
    textured = (fit(best.template, number) for number in range(NUM_TEXTURES))
    best = min([best, *textured], key=lambda found: found.error)
    template, shown = best.template, best.image
    box = _box(world.extent(class_name, template.look.style), template)
    rows, columns = box
    error = float((shown - values)[rows, columns].square().mean())
    psnr = min(-10 * np.log10(max(error, 1e-9)), MAX_PSNR)
    true = (shown.clamp(0, 1) * 255 + 0.5).byte().numpy()
    net = load_detector(classes=world.classes)
    return Likeness(float(psnr), perceptual_distance(net, pixels, true, box), *template.look, *template[1:])


def _box(extent: tuple[float, float], template: _Template) -> tuple[slice, slice]:
    """Rows and columns of what is visible of a sprite."""
    found = []
    for share, start in zip(extent[::-1], (template.top, template.left), strict=True):
        middle, half = start + template.size / 2, share * template.size / 2
        found.append(slice(max(int(middle - half), 0), min(int(np.ceil(middle + half)), GRID)))
    return found[0], found[1]


def perceptual_distance(
    net: DetectorNet, image: np.ndarray, other: np.ndarray, box: tuple[slice, slice]
) -> float:
    """The distance of two images, uint8 (64, 64, 3), in a box: see the module."""
    layers = net.layers(to_tensor(np.stack([image, other])))
    distances = []
    for layer in layers:
        a, b = F.normalize(layer.float(), dim=1)
        apart = F.interpolate((a - b).square().sum(0)[None, None], (GRID, GRID))[0, 0]
        distances.append(float(apart[box].mean()))
    return float(np.mean(distances))


# --- all places at once ---


class _Bank(NamedTuple):
    """The templates of a class and colour, at the upper left corner: their spectra, and sums over their pixels."""

    looks: list[tuple[_Look, int]]
    colors: Tensor  # (T, 3, 32, 17), complex, conjugate
    covers: Tensor  # (styles and sizes, 32, 17), complex, conjugate
    cover_of: Tensor  # (T,): the row of covers
    squares: Tensor  # (T,), of colour
    clear: Tensor  # (T, 3): of what the ground adds to colour: sum of (1 - cover) * colour
    ground: Tensor  # (T,): sum of (1 - cover)^2 over the image


@lru_cache(maxsize=4)
def _bank(class_name: str, color: str | None, world: SpriteWorld) -> _Bank:
    looks = [(look, size) for look in world.looks(class_name, color) for size in _COARSE]
    tiles = torch.zeros(len(looks), 4, GRID, GRID)
    for number, (look, size) in enumerate(looks):
        tile = torch.from_numpy(world.draw(class_name, *look, size))
        tiles[number, :, :size, :size] = tile.permute(2, 0, 1)
    tiles = F.avg_pool2d(tiles, 2)
    colors, covers = tiles[:, :3], tiles[:, 3]
    clear = ((1 - covers)[:, None] * colors).sum((2, 3))
    ground = (1 - covers).square().sum((1, 2))
    shapes = {(look.style, size): number for number, (look, size) in enumerate(looks)}
    rows = {shape: row for row, shape in enumerate(shapes)}
    cover_of = torch.tensor([rows[look.style, size] for look, size in looks])
    spectra, cover_spectra = (torch.fft.rfft2(part).conj() for part in (colors, covers[[*shapes.values()]]))
    return _Bank(looks, spectra, cover_spectra, cover_of, colors.square().sum((1, 2, 3)), clear, ground)


def _search(values: Tensor, class_name: str, color: str | None, world: SpriteWorld) -> list[_Template]:
    """The best place and size of each look on a ground of one colour, the best look first.

    The squared error of colour p and cover a on a ground g is that of x - p - (1 - a) g; g is least squares. All sums
    that depend on the place are correlations.
    """
    bank = _bank(class_name, color, world)
    x = F.avg_pool2d(values.permute(2, 0, 1), 2)
    spectrum = torch.fft.rfft2(x)
    matches = torch.fft.irfft2((spectrum * bank.colors).sum(1), (_HALF, _HALF))  # (T, 32, 32)
    covered = torch.fft.irfft2(spectrum * bank.covers[:, None], (_HALF, _HALF))[
        bank.cover_of
    ]  # (T, 3, 32, 32)
    ground = x.sum((1, 2))[:, None, None] - covered - bank.clear[:, :, None, None]
    fitted = ground.square().sum(1) / bank.ground[:, None, None].clamp(min=1)
    errors = x.square().sum() - 2 * matches + bank.squares[:, None, None] - fitted
    best: dict[_Look, tuple[float, _Template]] = {}
    for number, (look, size) in enumerate(bank.looks):
        room = (GRID - size) // 2 + 1
        least, place = errors[number, :room, :room].reshape(-1).min(0)
        top, left = divmod(int(place), room)
        if look not in best or float(least) < best[look][0]:
            best[look] = (float(least), _Template(look, 2 * left, 2 * top, size))
    return [template for _, template in sorted(best.values(), key=lambda found: found[0])]


# --- one place exactly ---


class _Fit(NamedTuple):
    error: float
    template: _Template
    image: Tensor  # (64, 64, 3), 0 to 1


def _fit_ground(values: Tensor, tile: Tensor, template: _Template, number: int | None) -> _Fit:
    """The image of a sprite on the ground that fits best: one colour and a slope, with a texture if it is named."""
    shown = torch.zeros(GRID, GRID, 4)
    rows, columns = (slice(v, v + template.size) for v in (template.top, template.left))
    shown[rows, columns] = tile
    clear = 1 - shown[..., 3]
    planes = [torch.ones(GRID, GRID), torch.linspace(-1, 1, GRID)[:, None].expand(GRID, GRID)]
    if number is not None:
        planes.append(torch.from_numpy(texture(number, GRID)[..., 0].copy()))
    basis = (torch.stack(planes, -1) * clear[..., None]).reshape(GRID * GRID, -1)
    rest = (values - shown[..., :3]).reshape(GRID * GRID, 3)
    gram = basis.T @ basis + 1e-3 * torch.eye(basis.shape[1])
    ground = torch.linalg.solve(gram, basis.T @ rest)
    image = shown[..., :3] + (basis @ ground).reshape(GRID, GRID, 3)
    return _Fit(float((image - values).square().sum()), template, image)


def _refine(start: _Template, fit: Callable[[_Template], _Fit]) -> _Fit:
    """The best place and size near a template, step by step."""
    best = fit(start)
    seen = {start}
    while True:
        near = [each for each in _neighbours(best.template) if each not in seen]
        seen.update(near)
        found = min(map(fit, near), key=lambda each: each.error, default=best)
        if found.error >= best.error:
            return best
        best = found


def _neighbours(template: _Template) -> Iterator[_Template]:
    """One pixel away, or one or two pixels larger or smaller about nearly the same centre."""
    look, left, top, size = template
    for grow in (-2, -1, 0, 1, 2):
        shift = -(grow // 2)
        for x in (left + shift - 1, left + shift, left + shift + 1):
            for y in (top + shift - 1, top + shift, top + shift + 1):
                if size + grow in SIZES and min(x, y) >= 0 and max(x, y) + size + grow <= GRID:
                    yield _Template(look, x, y, size + grow)
