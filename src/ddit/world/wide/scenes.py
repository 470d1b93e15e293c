"""Scenes of the wide world: what is where, on what ground. A pure function of (config, seed, split, index)."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..presets import SPLITS
from ..scenes import Box, Group, SceneObject, fixed_centers, group_alike
from .presets import (
    GRID,
    TONES,
    WIDE_HELD_OUT_CLASSES,
    WIDE_HELD_OUT_COLORS,
    GroundKind,
    WideConfig,
    is_held_out,
)
from .sprites import make_sprite, measure_extent, natural_color

NUM_TEXTURES = 24
_HIDDEN = (0.35, 0.55)
_LEAST_HIDDEN = 22
"""In 64ths of the side: half of a smaller sprite is too little to tell what it is."""
_ATTEMPTS = 150
_JITTER = 2
"""In 64ths of the side: how far an object in a fixed place is from the middle of its field, along each axis."""

RGB = tuple[int, int, int]


class WideObject(SceneObject):
    """One sprite of the wide atlas: its square tile has its upper left corner at (left, top); pixels."""

    @property
    def box(self) -> Box:
        """The box of the sprite, whether or not another covers a part of it."""
        width, height = measure_extent(self.class_name, self.style)
        half_width, half_height = width * self.size / 2, height * self.size / 2
        return self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height


@dataclass(frozen=True)
class Ground:
    """The background: its kind, the name of its colour, and its colours at the top and at the bottom (RGB).

    `texture` numbers the pattern of a textured one, which makes it lighter and darker by `strength`.
    """

    kind: GroundKind
    tone: str
    top: RGB
    bottom: RGB
    texture: int = 0
    strength: float = 0.0


@dataclass(frozen=True)
class WideScene:
    """What one image shows, in full. Of objects that overlap the later one is in front."""

    config: WideConfig
    split: str
    seed: int
    index: int
    objects: tuple[WideObject, ...]
    ground: Ground

    @property
    def groups(self) -> tuple[Group, ...]:
        """The objects by class and colour, in order of first appearance."""
        return group_alike((item.class_name, item.color) for item in self.objects)

    def to_json(self) -> dict[str, Any]:
        """The ground truth as plain data."""
        objects = [
            {"class": o.class_name, "color": o.color, "style": o.style, "box": [round(v, 2) for v in o.box],
             "tile": [o.left, o.top, o.size]}
            for o in self.objects
        ]  # fmt: skip
        ground = {"kind": self.ground.kind, "color": self.ground.tone}
        return {
            "split": self.split, "seed": self.seed, "index": self.index, "size": self.config.size,
            "objects": objects, "ground": ground,
        }  # fmt: skip


def make_scene(config: WideConfig, split: str, index: int, *, seed: int = 0) -> WideScene:
    """Scene `index` of a split. No two splits share a scene: the sum of all objects' left, top and size, in 64ths of
    the side, modulo the number of splits, is the split's place in `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    digest = hashlib.blake2b(f"wide/{seed}/{split}/{index}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    ground = _ground(config, rng)
    count = rng.choices(range(1, len(config.counts) + 1), config.counts)[0]
    looks = _cast(config, count, split, ground, rng)
    hides = count > 1 and rng.random() < config.half_hidden
    while True:
        places = _place(config, looks, SPLITS.index(split), hides, rng)
        if places:
            objects = tuple(_scaled(config, o) for o in places)
            return WideScene(config, split, seed, index, objects, ground)


def render(scene: WideScene) -> np.ndarray:
    """The image: uint8 (size, size, 3)."""
    canvas = Image.fromarray(draw_ground(scene.ground, scene.config.size))
    for item in scene.objects:
        sprite = make_sprite(item.class_name, item.style, item.color, item.size)
        canvas.paste(sprite, (item.left, item.top), sprite)
    return np.asarray(canvas)


def render_transparent(scene: WideScene) -> np.ndarray:
    """The image without its ground, RGBA: uint8 (size, size, 4)."""
    canvas = Image.new("RGBA", (scene.config.size, scene.config.size))
    for item in scene.objects:
        sprite = make_sprite(item.class_name, item.style, item.color, item.size)
        canvas.alpha_composite(sprite, (item.left, item.top))
    return np.asarray(canvas)


def draw_ground(ground: Ground, size: int) -> np.ndarray:
    """The background alone: uint8 (size, size, 3)."""
    canvas = np.empty((size, size, 3), np.uint8)
    if ground.kind == "textured":
        shade = np.float32(ground.strength) * texture(ground.texture, size)
        canvas[:] = (np.array(ground.top, np.float32) + shade + 0.5).clip(0, 255)
    elif ground.kind == "gradient":
        canvas[:] = (np.linspace(ground.top, ground.bottom, size, dtype=np.float32) + 0.5)[:, None]
    else:
        canvas[:] = np.array(ground.top, np.uint8)
    return canvas


@cache
def texture(number: int, size: int) -> np.ndarray:
    """Pattern `number` in [-1, 1], float32 (size, size, 1): stripes, checks, dots, or smooth noise."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    period = (4, 6, 9)[number % 3]
    family = number // 3
    if family < 3:
        phase = (x, y, (x + y) / 1.414)[family] * period
        values = np.sin(2 * np.pi * phase) * 1.5
    elif family == 3:
        values = np.where((np.floor(x * period) + np.floor(y * period)) % 2, 1.0, -1.0)
    elif family == 4:
        dots = np.hypot(x * period % 1 - 0.5, y * period % 1 - 0.5)
        values = np.clip((0.3 - dots) * 12, -1, 1)
    else:
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.normal(0, 1, (2 * period, 2 * period)).astype(np.float32))
        values = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(values, -1, 1).astype(np.float32)[..., None]


def is_allowed(split: str, groups: Sequence[tuple[str, str | None]]) -> bool:
    """Whether a split may show these classes with their colours: see `ddit.world.presets.SPLITS`."""
    if split == "detector":
        return True
    holds_one = any(is_held_out(*g) for g in groups) or any(
        is_held_out(a[0], b[0]) for i, a in enumerate(groups) for b in groups[:i]
    )
    return holds_one == (split == "heldout")


def share_hidden(a: Box, b: Box) -> float:
    """The share of the smaller box that both cover."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def _ground(config: WideConfig, rng: random.Random) -> Ground:
    kind = rng.choices(list(config.grounds), list(config.grounds.values()))[0]
    if kind in ("white", "black"):
        off = 0 if rng.random() < 0.7 else rng.randint(0, 6)
        value = 255 - off if kind == "white" else off
        return Ground(kind, kind, (value, value, value), (value, value, value))
    tone = rng.choice(list(TONES))
    value, depth = rng.uniform(158, 205), rng.uniform(0.8, 1.2)
    jitter = [rng.uniform(-4, 4) for _ in range(3)]
    slope = rng.choice((-1, 1)) * rng.uniform(10, 24) if kind == "gradient" else 0.0

    def shade(offset: float) -> RGB:
        red, green, blue = (
            min(max(round(value + offset + depth * c + j), 0), 255)
            for c, j in zip(TONES[tone], jitter, strict=True)
        )
        return red, green, blue

    top, bottom = shade(slope), shade(-slope)
    if kind != "textured":
        return Ground(kind, tone, top, bottom)
    return Ground(kind, tone, top, bottom, rng.randrange(NUM_TEXTURES), round(rng.uniform(8, 22), 1))


_Look = tuple[str, str | None, str]


def _cast(config: WideConfig, count: int, split: str, ground: Ground, rng: random.Random) -> list[_Look]:
    """Class, colour and style of every object, in random order."""
    most = min(config.max_kinds, count)
    while True:
        num_kinds = 1 if most == 1 or rng.random() < 0.25 else rng.randint(2, most)
        names = rng.sample(config.classes, num_kinds)
        if num_kinds > 1 and rng.random() < config.twins:
            names[1] = names[0]
        looks = [_dress(config, name, ground, rng) for name in names]
        if split == "heldout":
            looks = _hold_out(config, looks, ground, rng)
        kinds = [(name, color) for name, color, _ in looks]
        twins_differ = all(
            a[0] != b[0] or (a[1] != b[1] and a[1] and b[1]) for i, a in enumerate(kinds) for b in kinds[:i]
        )
        if twins_differ and is_allowed(split, kinds):
            break
    objects = looks + [rng.choice(looks) for _ in range(count - num_kinds)]
    rng.shuffle(objects)
    return objects


def _dress(
    config: WideConfig, name: str, ground: Ground, rng: random.Random, color: str | None = None
) -> _Look:
    """A colour and a style for a class: never white on white or black on black."""
    while True:
        style = rng.choice(config.styles)
        may, own = natural_color(name, style)
        if color is None and may and rng.random() < config.natural:
            found = own if own in config.colors else None
        else:
            found = color or rng.choice(config.colors)
        if found != ground.kind and (found is not None or own is None):
            return name, found, style
        if color is not None and color == ground.kind:
            return name, rng.choice([c for c in config.colors if c != color] or [color]), style


def _hold_out(config: WideConfig, looks: list[_Look], ground: Ground, rng: random.Random) -> list[_Look]:
    """With a held-out pair put in: two classes (half of the time, if there are two) or a class and its colour."""
    if len(looks) > 1 and rng.random() < 0.5:
        pair = list(rng.choice(WIDE_HELD_OUT_CLASSES))
        rng.shuffle(pair)
        if set(pair) <= set(config.classes):
            return [*(_dress(config, name, ground, rng) for name in pair), *looks[2:]]
    name, color = rng.choice(WIDE_HELD_OUT_COLORS)
    if name not in config.classes or color not in config.colors:
        return looks
    return [_dress(config, name, ground, rng, color), *looks[1:]]


def _place(
    config: WideConfig, looks: list[_Look], mark: int, hides: bool, rng: random.Random
) -> list[WideObject]:
    """A size and a place for every object, in units of the grid; empty if no good places were found."""
    largest = config.max_sizes[len(looks) - 1]
    objects: list[WideObject] = []
    boxes: list[Box] = []
    total = 0
    centers = fixed_centers(len(looks), GRID, rng) if config.layout == "fixed" else []
    for look in looks:
        is_last = len(objects) == len(looks) - 1
        hidden = 0 if is_last and hides else -1
        least = (
            max(config.min_size, min(_LEAST_HIDDEN, largest)) if hides and not objects else config.min_size
        )
        for _ in range(_ATTEMPTS):
            if centers:
                size = largest
                left, top = _near(centers[len(objects)], size, rng)
            else:
                size = _draw_size(least, largest, rng)
                left, top = int(rng.random() * (GRID - size + 1)), int(rng.random() * (GRID - size + 1))
            if is_last and (total + left + top + size) % len(SPLITS) != mark:
                continue
            item = WideObject(*look, left, top, size)
            box = item.box
            if _fits(config, box, boxes, hidden):
                objects.append(item)
                boxes.append(box)
                total += left + top + size
                break
        else:
            return []
    return objects


def _near(center: tuple[int, int], size: int, rng: random.Random) -> tuple[int, int]:
    """The upper left corner of a square inside of the image, about the centre."""
    x, y = (min(max(c - size // 2 + rng.randint(-_JITTER, _JITTER), 0), GRID - size) for c in center)
    return x, y


def _draw_size(least: int, most: int, rng: random.Random) -> int:
    """Small sizes are a little more frequent than large ones."""
    return least + int((most - least + 1) * rng.random() ** 1.3)


def _fits(config: WideConfig, box: Box, others: list[Box], hidden: int) -> bool:
    """Whether the box covers little of the others, and its share of the one to be half hidden, if there is one."""
    for number, other in enumerate(others):
        share = share_hidden(box, other)
        if number == hidden:
            area, back = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
            if not _HIDDEN[0] <= share * min(area, back) / back <= _HIDDEN[1]:
                return False
        elif share > config.max_overlap:
            return False
    return True


def _scaled(config: WideConfig, item: WideObject) -> WideObject:
    if config.size == GRID:
        return item
    left, top, size = (round(v * config.size / GRID) for v in (item.left, item.top, item.size))
    return WideObject(item.class_name, item.color, item.style, left, top, max(size, 1))
