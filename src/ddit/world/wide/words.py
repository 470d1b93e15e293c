"""The words of the wide world: nouns, sizes, places, relations, and which of them hold of a scene."""

from ..scenes import relative_position
from .presets import GRID
from .scenes import Ground, WideObject, WideScene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SIDES = ("left", "right", "top", "bottom")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The image's nine fields, row by row."""
SIZES = {"small": 0, "medium": 23, "large": 36, "huge": 50}
"""Each size from so many 64ths of the image's side up."""

PLACE_TOLERANCE = 0.03
"""Of the image's side: so far beyond its field's border an object may be said to be in it."""
SIZE_TOLERANCE = 1
"""In 64ths of the image's side."""

_IRREGULAR = {
    "bus": "buses", "sheep": "sheep", "couch": "couches", "person": "people", "scissors": "pairs of scissors",
    "wine glass": "wine glasses",
}  # fmt: skip
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}


def noun(class_name: str, count: int = 1) -> str:
    """ "dog", "dogs", "people"; "pair of scissors"."""
    if count == 1:
        return "pair of scissors" if class_name == "scissors" else class_name
    return _IRREGULAR.get(class_name, class_name + "s")


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(class_name: str, *adjectives: str | None, count: int = 1, definite: bool = False) -> str:
    """ "a small red dog", "three blue buses", "the tv"."""
    words = " ".join([*(a for a in adjectives if a), noun(class_name, count)])
    if definite:
        return f"the {words}"
    return article(words) if count == 1 else f"{NUMBERS[count]} {words}"


def enumerate_words(items: list[str], link: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    return f" {link} ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def size_word(scene: WideScene, item: WideObject) -> str:
    """How large the sprite is: one of `SIZES`."""
    size = item.size * GRID / scene.config.size
    return [word for word, least in SIZES.items() if size >= least][-1]


def size_is_right(scene: WideScene, item: WideObject, word: str) -> bool:
    """Whether the word may be said of the sprite: its own size, or one whose border is a pixel of 64 away."""
    size, words = item.size * GRID / scene.config.size, list(SIZES)
    place = words.index(word)
    least = SIZES[word] - SIZE_TOLERANCE
    most = SIZES[words[place + 1]] - 1 + SIZE_TOLERANCE if place + 1 < len(words) else GRID
    return least <= size <= most


def place_word(scene: WideScene, item: WideObject) -> str:
    """In which of the nine `PLACES` the sprite's centre is."""
    column, row = (min(int(3 * v / scene.config.size), 2) for v in (item.x, item.y))
    return PLACES[3 * row + column]


def place_is_right(scene: WideScene, item: WideObject, word: str) -> bool:
    """Whether the centre is in the field of that name, or within `PLACE_TOLERANCE` of it."""
    row, column = divmod(PLACES.index(word), 3)
    return all(
        cell / 3 - PLACE_TOLERANCE <= v / scene.config.size <= (cell + 1) / 3 + PLACE_TOLERANCE
        for v, cell in ((item.x, column), (item.y, row))
    )


def place_is_clear(scene: WideScene, item: WideObject) -> bool:
    """Whether one place alone may be said of the sprite."""
    return sum(place_is_right(scene, item, word) for word in PLACES) == 1


def at(place: str) -> str:
    """ "on the left", "at the top", "in the middle", "at the top left"."""
    if place == "middle":
        return "in the middle"
    return f"{'on' if place in ('left', 'right') else 'at'} the {place}"


def find_relations(a: WideObject, b: WideObject) -> set[str]:
    """Where `a` is, seen from `b`: none, one or two of `RELATIONS` (GenEval's rule)."""
    return relative_position(a.box, b.box)


def ground_words(ground: Ground) -> str:
    """ "white background", "plain blue background", "textured green background"."""
    if ground.kind in ("white", "black"):
        return f"{ground.kind} background"
    return f"{ground.kind} {ground.tone} background"
