"""How much a detected object looks like the sprite that it should be: a PSNR, without a net that could be deceived.

The part of the image around a detection is compared with the sprites of its class and colour, in the three styles, a
few sizes and places about the detected ones, on a ground of the one colour that fits best. It is what
`ddit.eval.likeness` measures of a whole image, quick enough for every drawing of a training run.

Shapes: N detections, T templates (styles times sizes), P places; a template has 32 pixels a side, a view 38.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geneval import Detection
from ..presets import STYLES
from .sprites import make_sprite, measure_extent

_SIDE, _SHIFT = 32, 3
_SPRITE = 26
"""Side of the detected sprite in a template."""
_SIZES = range(21, 32)
_EDGE = 5
"""Side of the square by which a sprite is widened: so much of the ground is compared with it."""
_AT_ONCE = 48


@torch.no_grad()
def match_sprites(images: np.ndarray, found: Sequence[Sequence[Detection]]) -> list[list[float]]:
    """PSNR in dB, at most 60, of each detection in images (B, H, W, 3) uint8: over the nearest sprite and its edge."""
    rows = [(image, one) for image, shown in zip(images, found, strict=True) for one in shown]
    values = [
        value
        for start in range(0, len(rows), _AT_ONCE)
        for value in _match(rows[start : start + _AT_ONCE]).tolist()
    ]
    place = iter(values)
    return [[next(place) for _ in shown] for shown in found]


def _match(rows: Sequence[tuple[np.ndarray, Detection]]) -> Tensor:
    """PSNR (N,) of detections in their images."""
    views = torch.cat([_view(*row) for row in rows])
    templates = [_templates(one.class_name, one.color) for _, one in rows]
    sprite, weight, ground = (torch.stack(parts) for parts in zip(*templates, strict=True))
    shown = F.unfold(views, _SIDE).unflatten(1, (3, -1))  # (N, 3, 32 * 32, P)
    squares = torch.einsum("nti,nip->ntp", weight, shown.square().sum(1))
    products = torch.einsum("ntci,ncip->ntp", weight[:, :, None] * sprite, shown)
    own = torch.einsum("nti,ntci->nt", weight, sprite.square())
    # what the ground must explain, weighted by how much of it shows
    seen = weight * ground
    rest = (
        torch.einsum("nti,ncip->ntcp", seen, shown) - torch.einsum("nti,ntci->ntc", seen, sprite)[..., None]
    )
    explained = rest.square().sum(2) / (seen * ground).sum(2)[..., None].clamp(min=1e-3)
    error = squares - 2 * products + own[..., None] - explained
    mean = error / (3 * weight.sum(2)[..., None])
    return -10 * mean.flatten(1).min(1).values.clamp(min=1e-6).log10()


def _view(image: np.ndarray, found: Detection) -> Tensor:
    """The image around a detection, its sprite `_SPRITE` pixels large: (1, 3, 38, 38), from 0 to 1."""
    left, top, right, bottom = found.box
    across, down = measure_extent(found.class_name, STYLES[0])
    size = max((right - left) / across, (bottom - top) / down, 6.0)
    count = _SIDE + 2 * _SHIFT
    steps = ((torch.arange(count) + 0.5) / count - 0.5) * size * count / _SPRITE
    height, width = image.shape[:2]
    x, y = ((left + right) / 2 + steps) / width * 2 - 1, ((top + bottom) / 2 + steps) / height * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


class _Templates(NamedTuple):
    """Of a class and colour: colour times cover (T, 3, 32 * 32), weight and share of the ground (T, 32 * 32)."""

    sprite: Tensor
    weight: Tensor
    ground: Tensor


@lru_cache(maxsize=256)  # of 0.7 MB each
def _templates(class_name: str, color: str | None) -> _Templates:
    tiles = torch.zeros(len(STYLES), len(_SIZES), 4, _SIDE, _SIDE)
    for style, of_style in zip(STYLES, tiles, strict=True):
        for size, tile in zip(_SIZES, of_style, strict=True):
            edge = (_SIDE - size) // 2
            pixels = np.asarray(make_sprite(class_name, style, color, size), np.float32) / 255
            tile[:, edge : edge + size, edge : edge + size] = torch.from_numpy(pixels).permute(2, 0, 1)
    tiles = tiles.flatten(0, 1)
    cover = tiles[:, 3:]
    weight = F.max_pool2d(cover, _EDGE, stride=1, padding=_EDGE // 2)
    return _Templates((tiles[:, :3] * cover).flatten(2), weight.flatten(1), 1 - cover.flatten(1))
