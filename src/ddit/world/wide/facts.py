"""What texts about a scene of the wide world start from: counts, colours, sides, and what is absent."""

import random

from ..presets import COLORS
from .presets import is_held_out
from .scenes import WideObject, WideScene
from .words import noun, phrase

_MIDDLE = 0.08
"""Objects whose centre is closer to the image's middle, as a share of its side, are on neither side."""


def count_classes(scene: WideScene) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in scene.objects:
        counts[item.class_name] = counts.get(item.class_name, 0) + 1
    return counts


def find_colors(scene: WideScene) -> dict[str, str]:
    """The classes all of whose objects have one colour, with it."""
    colors: dict[str, set[str | None]] = {}
    for item in scene.objects:
        colors.setdefault(item.class_name, set()).add(item.color)
    only = {name: next(iter(found)) for name, found in colors.items() if len(found) == 1}
    return {name: color for name, color in only.items() if color}


def find_singles(scene: WideScene) -> list[WideObject]:
    """The objects that are alone of their class."""
    counts = count_classes(scene)
    return [item for item in scene.objects if counts[item.class_name] == 1]


def draw_absent(scene: WideScene, rng: random.Random, color: str | None = None) -> str:
    """A class that the scene does not show; none that makes a held-out pair with the colour, unless the scene may."""
    present = {item.class_name for item in scene.objects}
    while True:
        name = rng.choice(scene.config.classes)
        if name not in present and (scene.split == "heldout" or not is_held_out(name, color)):
            return name


def may_say(scene: WideScene, name: str, color: str) -> bool:
    return scene.split == "heldout" or not is_held_out(name, color)


def wrong_color(scene: WideScene, rng: random.Random, name: str, color: str) -> str:
    """Another colour: most often that of another object."""
    others = [o.color for o in scene.objects if o.color and o.color != color]
    while True:
        found = rng.choice(others) if others and rng.random() < 0.6 else rng.choice(COLORS)
        if found != color and may_say(scene, name, found):
            return found
        others = []


def reference(name: str, count: int = 1) -> dict[str, str]:
    plural = count > 1
    return {
        "x": noun(name), "xs": noun(name, 2), "an_x": phrase(name),
        "the_x": phrase(name, count=1 + plural, definite=True),
        "is": "are" if plural else "is", "does": "do" if plural else "does",
    }  # fmt: skip


def second(name: str) -> dict[str, str]:
    return {"y": noun(name), "ys": noun(name, 2), "an_y": phrase(name)}


def sides_of(scene: WideScene, item: WideObject) -> list[str]:
    """Which of the four `SIDES` the object is on."""
    x, y = (v / scene.config.size - 0.5 for v in (item.x, item.y))
    found = {"left": x < -_MIDDLE, "right": x > _MIDDLE, "top": y < -_MIDDLE, "bottom": y > _MIDDLE}
    return [side for side, holds in found.items() if holds]
