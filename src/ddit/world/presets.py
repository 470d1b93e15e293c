"""What a small world contains and how hard it is: classes, colours, styles, layouts, presets."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from ddit.schema import strict

Kind = Literal["single", "two", "count", "mixed"]
KINDS: tuple[Kind, ...] = ("single", "two", "count", "mixed")

SPLITS = ("train", "val", "test", "heldout", "detector")
"""`train`, `val` and `test` never hold a held-out pair, every scene of `heldout` does, and `detector` (to train the
detector) has both kinds. A split's place in this tuple marks its scenes (`scenes.make_scene`)."""

CLASSES = (
    "airplane", "apple", "banana", "bicycle", "bird", "boat", "book", "bus", "cake", "car", "carrot", "cat",
    "chair", "clock", "cup", "dog", "donut", "elephant", "giraffe", "horse", "pizza", "sheep", "train",
    "umbrella",
)  # fmt: skip
"""The COCO class names (as GenEval uses them) that have a clear emoji."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's colours."""

STYLES = ("noto", "twemoji", "fluent")

HELD_OUT_COLORS = (
    ("dog", "blue"), ("cat", "green"), ("car", "pink"), ("apple", "purple"), ("banana", "red"),
    ("bus", "white"), ("bird", "black"), ("umbrella", "brown"), ("chair", "yellow"), ("boat", "orange"),
    ("cup", "green"), ("elephant", "pink"), ("clock", "blue"), ("train", "red"),
)  # fmt: skip
"""(class, colour) pairs that never occur in training."""

HELD_OUT_CLASSES = (
    ("cat", "dog"), ("car", "horse"), ("apple", "clock"), ("banana", "chair"), ("boat", "elephant"),
    ("bicycle", "cake"), ("bird", "bus"), ("book", "umbrella"), ("cup", "train"), ("airplane", "giraffe"),
    ("carrot", "sheep"), ("donut", "pizza"),
)  # fmt: skip
"""(class, class) pairs, in alphabetical order, that never share an image in training."""

_HELD_OUT = frozenset(HELD_OUT_COLORS) | frozenset(HELD_OUT_CLASSES)


def is_held_out(class_name: str, other: str | None) -> bool:
    """Whether (class, colour) or (class, class), in any order, is kept out of training."""
    return (class_name, other) in _HELD_OUT or (other, class_name) in _HELD_OUT


@strict
class WorldConfig:
    """One difficulty of the world. All lengths are pixels.

    `fixed`: one object in the middle, two side by side or one above the other, three or four in quadrants,
    each shifted by up to `jitter`; sizes are those of one object, of two, and of more.
    `grid`: corners on a grid of 4 px, sizes a multiple of 4. `free`: anywhere. In both, sizes run from
    `min_size` to those of `sizes`.
    """

    classes: tuple[str, ...] = CLASSES
    styles: tuple[str, ...] = STYLES[:2]
    colors: tuple[str, ...] = COLORS
    layout: Literal["fixed", "grid", "free"] = "fixed"
    max_objects: Annotated[int, Field(ge=1, le=4)] = 4
    sizes: tuple[int, int, int] = (43, 30, 28)
    min_size: int = 20
    jitter: int = 2
    natural: float = 0.5
    """Share of objects without a colour, among the sprites that allow it."""
    weights: Mapping[Kind, NonNegativeFloat] = field(
        default_factory=lambda: {"single": 0.35, "two": 0.35, "count": 0.2, "mixed": 0.1}, hash=False
    )
    """Relative frequency of each kind of scene."""
    size: int = 64

    def __post_init__(self) -> None:
        for name, known in (("classes", CLASSES), ("styles", STYLES), ("colors", COLORS), ("weights", KINDS)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown or not getattr(self, name):
                raise ValueError(
                    f"{name}: unknown or missing entries {unknown}; known are {', '.join(known)}"
                )
        if not self.kind_weights():
            raise ValueError(
                f"weights must be positive for a kind that max_objects allows, got {dict(self.weights)}"
            )
        if not 8 <= self.min_size <= min(self.sizes) <= max(self.sizes) <= self.size:
            raise ValueError(
                f"need 8 <= min_size <= sizes <= size, got {self.min_size}, {self.sizes}, {self.size}"
            )
        if (
            self.layout == "fixed"
            and max(self.sizes[1:]) + 2 * self.jitter > self.size // 2 + self.size // 32
        ):
            raise ValueError(f"sizes {self.sizes} with jitter {self.jitter} would overlap")

    def kind_weights(self) -> dict[Kind, float]:
        """The kinds of scene that `max_objects` allows, with their weights."""
        least = {"single": 1, "two": 2, "count": 2, "mixed": 3}
        return {k: w for k, w in self.weights.items() if w > 0 and least[k] <= self.max_objects}

    def mixed_counts(self) -> tuple[tuple[int, int], ...]:
        """How many of each of its two classes a mixed scene may hold."""
        return tuple(c for c in ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2)) if sum(c) <= self.max_objects)


def enlarge(world: WorldConfig, factor: int) -> WorldConfig:
    """The same world in images of `factor` times the side."""
    a, b, c = world.sizes
    return replace(
        world,
        size=factor * world.size,
        sizes=(factor * a, factor * b, factor * c),
        min_size=factor * world.min_size,
        jitter=factor * world.jitter,
    )


PRESETS: dict[str, WorldConfig] = {
    "fixed-1": WorldConfig(styles=("noto",)),
    "fixed": WorldConfig(),
    "fixed-3": WorldConfig(styles=STYLES),
    "grid": WorldConfig(styles=STYLES, layout="grid", sizes=(44, 32, 28)),
    "free": WorldConfig(styles=STYLES, layout="free", sizes=(46, 36, 30)),
}
"""From easy to hard."""
