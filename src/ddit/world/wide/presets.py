"""What the wide world contains: classes, colours, styles, grounds, and what is held out of training."""

from collections.abc import Mapping
from dataclasses import field
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from ddit.schema import strict

from ..presets import CLASSES, COLORS, HELD_OUT_CLASSES, HELD_OUT_COLORS, STYLES

WIDE_CLASSES = (
    "airplane", "apple", "backpack", "banana", "bear", "bed", "bicycle", "bird", "boat", "book", "broccoli", "bus",
    "cake", "car", "carrot", "cat", "cell phone", "chair", "clock", "couch", "cow", "cup", "dog", "donut",
    "elephant", "giraffe", "handbag", "horse", "kite", "laptop", "motorcycle", "person", "pizza", "potted plant",
    "scissors", "sheep", "skateboard", "sports ball", "stop sign", "suitcase", "teddy bear", "traffic light", "train",
    "truck", "tv", "umbrella", "vase", "wine glass",
)  # fmt: skip
"""Those of COCO's 80 class names that have a clear emoji."""

GroundKind = Literal["plain", "gradient", "textured", "white", "black"]
GROUNDS: tuple[GroundKind, ...] = ("plain", "gradient", "textured", "white", "black")

TONES: dict[str, tuple[int, int, int]] = {
    "gray": (0, 0, 0), "blue": (-32, -4, 36), "green": (-28, 26, -28), "pink": (34, -24, 2), "beige": (30, 6, -40),
}  # fmt: skip
"""Of plain, gradient and textured grounds: what is added to a gray, in RGB."""

WIDE_HELD_OUT_COLORS = (
    *HELD_OUT_COLORS,
    ("backpack", "yellow"), ("bear", "pink"), ("bed", "orange"), ("broccoli", "purple"), ("cell phone", "green"),
    ("couch", "black"), ("cow", "red"), ("kite", "brown"), ("laptop", "pink"), ("motorcycle", "purple"),
    ("scissors", "yellow"), ("stop sign", "blue"), ("suitcase", "white"), ("teddy bear", "green"),
)  # fmt: skip
"""(class, colour) pairs that never occur in training, in images or texts."""

WIDE_HELD_OUT_CLASSES = (
    *HELD_OUT_CLASSES,
    ("backpack", "truck"), ("bear", "tv"), ("bed", "cow"), ("broccoli", "vase"), ("cell phone", "suitcase"),
    ("couch", "kite"), ("handbag", "motorcycle"), ("laptop", "scissors"), ("person", "stop sign"),
    ("potted plant", "skateboard"), ("sports ball", "teddy bear"), ("traffic light", "wine glass"),
)  # fmt: skip
"""(class, class) pairs that never share an image in training."""

_HELD_OUT = frozenset(WIDE_HELD_OUT_COLORS) | frozenset(WIDE_HELD_OUT_CLASSES)

GRID = 64
"""Scenes are laid out on so many units a side, whatever the size of the image."""


def is_held_out(class_name: str, other: str | None) -> bool:
    """Whether (class, colour) or (class, class), in any order, is kept out of training."""
    return (class_name, other) in _HELD_OUT or (other, class_name) in _HELD_OUT


@strict
class WideConfig:
    """One difficulty of the wide world: sprites on grounds of five kinds.

    `free`: anywhere, in sizes from `min_size` to those of `max_sizes`. `fixed`: one object in the middle, two side by
    side or one above the other, three or four in quadrants, more in two rows of three, each shifted by up to 2 units;
    in the sizes of `max_sizes`. All lengths are in 64ths of the image's side, so that a scene is the same at every
    `size`.
    """

    layout: Literal["free", "fixed"] = "free"
    classes: tuple[str, ...] = WIDE_CLASSES
    styles: tuple[str, ...] = STYLES
    colors: tuple[str, ...] = COLORS
    grounds: Mapping[GroundKind, NonNegativeFloat] = field(
        default_factory=lambda: {
            "plain": 0.25,
            "gradient": 0.25,
            "textured": 0.2,
            "white": 0.15,
            "black": 0.15,
        },
        hash=False,
    )
    """Relative frequency of each kind of ground."""
    counts: tuple[NonNegativeFloat, ...] = (0.3, 0.25, 0.15, 0.12, 0.1, 0.08)
    """Relative frequency of 1, 2, 3, ... objects, at most 6."""
    max_kinds: Annotated[int, Field(ge=1, le=4)] = 4
    """Most kinds (class and colour) a scene has."""
    min_size: Annotated[int, Field(ge=8, le=GRID)] = 14
    max_sizes: tuple[int, ...] = (64, 44, 36, 32, 28, 28)
    """The largest sprite in a scene of 1, 2, 3, ... objects."""
    max_overlap: Annotated[float, Field(ge=0, lt=0.5)] = 0.06
    """Largest share of the smaller of two boxes that both cover."""
    half_hidden: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of scenes of two or more objects in which one covers .35 to .55 of another's box, of at least 22 pixels."""
    natural: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of sprites in their artist's colours, among those that allow it."""
    twins: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of scenes of several kinds in which two are of one class and of different colours."""
    size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Side of the image in pixels."""

    def __post_init__(self) -> None:
        for name, known in (
            ("classes", WIDE_CLASSES), ("styles", STYLES), ("colors", COLORS), ("grounds", GROUNDS),
        ):  # fmt: skip
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown or not getattr(self, name):
                raise ValueError(
                    f"{name}: unknown or missing entries {unknown}; known are {', '.join(known)}"
                )
        if len(self.classes) < self.max_kinds:
            raise ValueError(f"max_kinds is {self.max_kinds} and classes has {len(self.classes)}")
        if not 1 <= len(self.counts) <= 6 or not sum(self.counts) or not sum(self.grounds.values()):
            raise ValueError("counts and grounds need a positive weight, and counts at most 6")
        if self.layout == "fixed" and self.half_hidden:
            raise ValueError("half_hidden needs the free layout")
        largest = self.max_sizes
        if len(largest) < len(self.counts) or min(largest) < self.min_size or max(largest) > GRID:
            raise ValueError(
                f"max_sizes needs a size from min_size to {GRID} for each of counts, got {largest}"
            )
        if any(a < b for a, b in pairwise(largest)):
            raise ValueError(f"max_sizes must not grow with the number of objects, got {largest}")


WIDE_PRESETS: dict[str, WideConfig] = {
    "wide-easy": WideConfig(
        classes=CLASSES,
        styles=STYLES[:2],
        grounds={"plain": 0.5, "gradient": 0.5},
        layout="fixed",
        counts=(0.25, 0.45, 0.18, 0.12),
        max_kinds=2,
        max_sizes=(43, 30, 28, 28, 20, 20),
    ),
    "wide-1": WideConfig(counts=(1.0,), max_sizes=(64,)),
    "wide": WideConfig(),
    "wide-half-hidden": WideConfig(half_hidden=0.5),
    "wide-fixed": WideConfig(layout="fixed", max_sizes=(43, 30, 28, 28, 20, 20)),
    "wide-128": WideConfig(size=128),
}
"""Scenes like the small world's; single objects; the default; with half-hidden objects; in fixed places; the default
in images of twice the side."""
