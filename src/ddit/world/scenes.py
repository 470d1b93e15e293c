"""Scenes: what is where. A scene is a pure function of (config, seed, split, index); so is its image."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .presets import HELD_OUT_CLASSES, HELD_OUT_COLORS, SPLITS, Kind, WorldConfig, is_held_out
from .sprites import has_natural_color, make_sprite, measure_extent

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_MAX_OVERLAP = 0.06
_POSITION_THRESHOLD = 0.1


@dataclass(frozen=True)
class SceneObject:
    """One sprite: its square tile of `size` pixels has its upper left corner at (left, top)."""

    class_name: str
    color: str | None
    style: str
    left: int
    top: int
    size: int

    @property
    def x(self) -> float:
        return self.left + self.size / 2

    @property
    def y(self) -> float:
        return self.top + self.size / 2

    @property
    def box(self) -> Box:
        """The box of what is visible of the sprite."""
        width, height = measure_extent(self.class_name, self.style)
        half_width, half_height = width * self.size / 2, height * self.size / 2
        return self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height


@dataclass(frozen=True)
class Group:
    """`count` objects of one class and one colour."""

    class_name: str
    color: str | None
    count: int


def group_alike(objects: Iterable[tuple[str, str | None]]) -> tuple[Group, ...]:
    """Objects, each a class and a colour, as groups in order of first appearance."""
    return tuple(Group(name, color, count) for (name, color), count in Counter(objects).items())


@dataclass(frozen=True)
class Scene:
    """What one image shows, in full. `background` is the colour at the top and at the bottom (RGB)."""

    config: WorldConfig
    split: str
    seed: int
    index: int
    kind: Kind
    objects: tuple[SceneObject, ...]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The objects by class and colour, in order of first appearance."""
        return group_alike((item.class_name, item.color) for item in self.objects)

    def to_json(self) -> dict[str, Any]:
        """The ground truth as plain data."""
        objects = [
            {"class": o.class_name, "color": o.color, "style": o.style, "box": [round(v, 2) for v in o.box]}
            for o in self.objects
        ]
        return {
            "split": self.split, "seed": self.seed, "index": self.index, "kind": self.kind,
            "size": self.config.size, "objects": objects, "background": [list(c) for c in self.background],
        }  # fmt: skip


def relative_position(a: Box, b: Box) -> set[str]:
    """Where `a` is, seen from `b`: GenEval's rule (Ghosh et al. 2023, evaluation/evaluate_images.py).

    The offset of the centres, less a tenth of both boxes' sizes along each axis, counts along an axis that
    holds more than half of the whole offset.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    slack = [_POSITION_THRESHOLD * (abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i])) for i in (0, 1)]
    revised = [max(abs(o) - s, 0.0) * (1 if o > 0 else -1) for o, s in zip(offset, slack, strict=True)]
    if max(map(abs, revised)) < 1e-3:
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    dx, dy = revised[0] / length, revised[1] / length
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def fixed_centers(count: int, side: int, rng: random.Random) -> list[tuple[int, int]]:
    """The middle of the image, two of its halves, quadrants, or for 5 and 6 the fields of two rows and three columns;
    in random order."""
    middle, quarter = side // 2, side // 4
    if count == 1:
        return [(middle, middle)]
    if count == 2:
        ends = [(quarter, middle), (3 * quarter, middle)]
        centers = ends if rng.random() < 0.5 else [(y, x) for x, y in ends]
        rng.shuffle(centers)
        return centers
    columns = (quarter, 3 * quarter) if count <= 4 else (side // 6, middle, side - side // 6)
    return rng.sample([(x, y) for x in columns for y in (quarter, 3 * quarter)], count)


def make_scene(config: WorldConfig, split: str, index: int, *, seed: int = 0) -> Scene:
    """Scene `index` of a split. No two splits share a scene: the blue of the lower background, modulo the
    number of splits, is the split's place in `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    digest = hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    background = _background(rng, SPLITS.index(split))
    weights = config.kind_weights()
    kind = rng.choices(list(weights), list(weights.values()))[0]
    while True:
        objects = _place(config, kind, _cast(config, kind, split, rng), rng)
        if objects:
            return Scene(config, split, seed, index, kind, objects, background)


def render(scene: Scene) -> np.ndarray:
    """The image: uint8 (size, size, 3)."""
    size = scene.config.size
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = np.linspace(*scene.background, size, dtype=np.float32)[:, None] + 0.5
    for item in scene.objects:
        sprite = make_sprite(item.class_name, item.style, item.color, item.size)
        patch = canvas[item.top : item.top + item.size, item.left : item.left + item.size]
        patch *= sprite.ground
        patch += sprite.color
    return canvas.astype(np.uint8)


def is_allowed(split: str, groups: tuple[Group, ...]) -> bool:
    """Whether a split may show these groups: see `presets.SPLITS`."""
    if split == "detector":
        return True
    names = [g.class_name for g in groups]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    holds_one = any(is_held_out(g.class_name, g.color) for g in groups) or any(is_held_out(*p) for p in pairs)
    return holds_one == (split == "heldout")


def _background(rng: random.Random, place: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two muted shades of one hue: darker than white, lighter and greyer than every colour."""
    value, tone = rng.uniform(172, 205), [rng.uniform(-1, 1) for _ in range(3)]
    mean = sum(tone) / 3
    slope = rng.uniform(-12, 12)
    top, bottom = ([round(value + side * slope + 16 * (t - mean)) for t in tone] for side in (1, -1))
    bottom[2] += (place - bottom[2]) % len(SPLITS)
    return (top[0], top[1], top[2]), (bottom[0], bottom[1], bottom[2])


def _cast(config: WorldConfig, kind: Kind, split: str, rng: random.Random) -> list[tuple[Group, str]]:
    """Random groups for an image, each with its style."""
    if kind == "single":
        counts = (1,)
    elif kind == "count":
        counts = (rng.randint(2, config.max_objects),)
    elif kind == "two":
        counts = (1, 1)
    else:
        counts = rng.choice(config.mixed_counts())
    while True:
        names = rng.sample(config.classes, len(counts))
        styles = [rng.choice(config.styles) for _ in counts]
        colors = [
            None if rng.random() < config.natural and has_natural_color(*look) else rng.choice(config.colors)
            for look in zip(names, styles, strict=True)
        ]
        if split == "heldout":
            names, colors = _hold_out(config, names, colors, rng)
        groups = tuple(Group(n, c, k) for n, c, k in zip(names, colors, counts, strict=True))
        looks_exist = all(
            g.color or has_natural_color(g.class_name, s) for g, s in zip(groups, styles, strict=True)
        )
        if looks_exist and is_allowed(split, groups):
            return list(zip(groups, styles, strict=True))


def _hold_out(
    config: WorldConfig, names: list[str], colors: list[str | None], rng: random.Random
) -> tuple[list[str], list[str | None]]:
    """With a held-out pair put in: two classes (half of the time, if there are two) or a class and its colour."""
    if len(names) == 2 and rng.random() < 0.5:
        pair = list(rng.choice(HELD_OUT_CLASSES))
        rng.shuffle(pair)
        if set(pair) <= set(config.classes):
            return pair, colors
    name, color = rng.choice(HELD_OUT_COLORS)
    if name not in config.classes or color not in config.colors or name in names:
        return names, colors
    return [name, *names[1:]], [color, *colors[1:]]


def _place(
    config: WorldConfig, kind: Kind, cast: list[tuple[Group, str]], rng: random.Random
) -> tuple[SceneObject, ...]:
    """A size and a place for every object; empty if no good places were found."""
    looks = [(group.class_name, group.color, style) for group, style in cast for _ in range(group.count)]
    for _ in range(60):
        if config.layout == "fixed":
            places = _fixed_places(config, len(looks), rng)
            objects = [SceneObject(*look, *place) for look, place in zip(looks, places, strict=True)]
        else:
            objects = _scatter(config, looks, rng)
        if len(objects) == len(looks) and _is_clear(objects, kind):
            return tuple(objects)
    return ()


def _fixed_places(config: WorldConfig, count: int, rng: random.Random) -> list[tuple[int, int, int]]:
    size = config.sizes[min(count, 3) - 1]
    jitter = config.jitter + (count == 1)
    return [
        (
            min(max(x - size // 2 + rng.randint(-jitter, jitter), 0), config.size - size),
            min(max(y - size // 2 + rng.randint(-jitter, jitter), 0), config.size - size),
            size,
        )
        for x, y in fixed_centers(count, config.size, rng)
    ]


def _scatter(
    config: WorldConfig, looks: list[tuple[str, str | None, str]], rng: random.Random
) -> list[SceneObject]:
    """One object after the other, where there is room; fewer than asked for if there is none."""
    step = 4 if config.layout == "grid" else 1
    largest = config.sizes[min(len(looks), 3) - 1]
    smallest = -(-config.min_size // step) * step
    objects: list[SceneObject] = []
    for look in looks:
        for _ in range(30):
            size = rng.randrange(smallest, largest + 1, max(step, 2))
            left, top = (rng.randrange(0, config.size - size + 1, step) for _ in range(2))
            item = SceneObject(*look, left, top, size)
            if all(_overlap(item.box, other.box) <= _MAX_OVERLAP for other in objects):
                objects.append(item)
                break
    return objects


def _is_clear(objects: Sequence[SceneObject], kind: Kind) -> bool:
    """Hardly any overlap, and one relation exactly between two single objects."""
    for i, a in enumerate(objects):
        for b in objects[:i]:
            if _overlap(a.box, b.box) > _MAX_OVERLAP:
                return False
    return kind != "two" or len(relative_position(objects[0].box, objects[1].box)) == 1


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller box."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return max(width, 0.0) * max(height, 0.0) / min(areas)
