"""Detailed descriptions of a scene: every object with all that can be said of it, the ground, and what is absent."""

import random
import re

from .facts import draw_absent
from .scenes import WideObject, WideScene
from .wordings import Part, fill, pick
from .words import (
    NUMBERS,
    PLACES,
    RELATION_WORDS,
    article,
    at,
    enumerate_words,
    find_relations,
    ground_words,
    noun,
    phrase,
    place_word,
    size_word,
)

FILE = "descriptions.txt"
MULTICOLORED = "multicolored"
"""Said of a sprite of no single colour."""
MIN_TOKENS, MAX_TOKENS = 40, 128
_BREVITIES = (1, 3, 3, 6, 6, 12, 12, 24, 24, 48)
"""Of so many wordings each sentence is the shortest, until the description is short enough."""
_NUM_ABSENT = (5, 4, 3, 2, 2, 2)
"""Absent classes that are named, in scenes of 1, 2, 3, ... objects, at most."""


def count_tokens(text: str) -> int:
    """Words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def make_description(scene: WideScene, rng: random.Random, *, part: Part = "seen") -> str:
    """A right and complete description of 40 to 128 words and marks, in a random order and wording.

    Every object has its class, colour, style, size and place and, if there is one, its relation to another; then the
    number of objects, the ground, and some classes that are absent. Raises ValueError for a scene that none of so many
    words can describe, which needs seven objects.
    """
    text = ""
    for brevity in _BREVITIES:
        text = _draw(scene, rng, part, brevity)
        if count_tokens(text) <= MAX_TOKENS:
            return text
    raise ValueError(f"a description of {count_tokens(text)} words: {text}")


def make_plain_description(scene: WideScene) -> str:
    """A right and complete description in one wording and order, so that everything in it follows from the image.

    Of at most 128 words and marks for six objects, which come by their places, row by row; each has its relation to the
    next one, or else to the first, that it has one to. No absent class is named: nothing else is in the image.
    """
    items = sorted(scene.objects, key=lambda item: (PLACES.index(place_word(scene, item)), item.x, item.y))
    count, ground = len(items), ground_words(scene.ground)
    text = f"There {'is one object' if count == 1 else f'are {NUMBERS[count]} objects'} on a {ground}."
    for index, item in enumerate(items):
        looks = phrase(item.class_name, size_word(scene, item), item.color or MULTICOLORED, item.style)
        text += f" {looks.capitalize()} is {at(place_word(scene, item))}"
        for other in items[index + 1 :] + items[:index]:
            found = sorted(find_relations(item, other))
            if found:
                text += f", {RELATION_WORDS[found[0]][0]} {refer(scene, item, other)}"
                break
        text += "."
    return f"{text} Nothing else is in the image."


def _draw(scene: WideScene, rng: random.Random, part: Part, brevity: int) -> str:
    opening = _opening(scene, rng, part)
    free: Part = "all" if part == "held_out" else part
    several = [
        min((_object(scene, item, rng, free) for _ in range(brevity)), key=count_tokens)
        for item in _order(scene, rng)
    ]
    absent = _absent(scene, rng, part, 1 if brevity > 1 else _NUM_ABSENT[len(scene.objects) - 1])
    blocks = [opening, *several, absent]
    chance = rng.random()
    if chance < 0.2:
        blocks = [*several, opening, absent]
    elif chance < 0.3:
        blocks = [opening, absent, *several]
    text = _sentences(blocks)
    while count_tokens(text) < MIN_TOKENS:
        blocks.append(_say("only", {}, rng, part))
        text = _sentences(blocks)
    return text


def _say(form: str, slots: dict[str, str], rng: random.Random, part: Part) -> str:
    return fill(pick(FILE, form, part, rng), slots, rng)


def _sentences(blocks: list[str]) -> str:
    """One text, every sentence with a capital."""
    text = " ".join(blocks)
    return re.sub(r"(^|[.] )([a-z])", lambda found: found[1] + found[2].upper(), text)


def _order(scene: WideScene, rng: random.Random) -> list[WideObject]:
    """From left to right, from top to bottom, the largest first, or any."""
    keys = (lambda o: o.x, lambda o: o.y, lambda o: -o.size, lambda o: rng.random())
    return sorted(scene.objects, key=rng.choice(keys))


def _opening(scene: WideScene, rng: random.Random, part: Part) -> str:
    count = len(scene.objects)
    ground = ground_words(scene.ground)
    slots = {
        "n": NUMBERS[count], "objects": "object" if count == 1 else "objects", "are": "is" if count == 1 else "are",
        "ground": ground, "ground_words": ground.removesuffix(" background"),
    }  # fmt: skip
    return _say("opening", slots, rng, part)


def _object(scene: WideScene, item: WideObject, rng: random.Random, part: Part) -> str:
    name, color, size = item.class_name, item.color or MULTICOLORED, size_word(scene, item)
    slots = {
        "style": item.style, "color": color, "size": size, "at": at(place_word(scene, item)),
        "a_color": phrase(name, color), "a_size": phrase(name, size), "a_size_color": phrase(name, size, color),
        "a_full": phrase(name, size, color, item.style),
    }  # fmt: skip
    text = _say("object", slots, rng, part)
    link = _relation_slots(scene, item, rng)
    if link is not None:
        text += _say("link", link, rng, part)
    return text + "."


def _relation_slots(scene: WideScene, item: WideObject, rng: random.Random) -> dict[str, str] | None:
    """A relation of the object to another one that can be named; None if it has none."""
    others = [o for o in scene.objects if o is not item]
    rng.shuffle(others)
    for other in others:
        found = sorted(find_relations(item, other))
        if found:
            relation = rng.choice(RELATION_WORDS[rng.choice(found)])
            return {"rel": relation, "other": refer(scene, item, other)}
    return None


def refer(scene: WideScene, item: WideObject, other: WideObject) -> str:
    """ "the cat", "the red cat" where there are cats of other colours, "another cat" where that is not enough."""
    same = [o for o in scene.objects if o.class_name == other.class_name]
    if len(same) == 1:
        return f"the {other.class_name}"
    color = other.color or MULTICOLORED
    if sum(o.color == other.color for o in same) == 1:
        return f"the {color} {other.class_name}"
    if (item.class_name, item.color) == (other.class_name, other.color):
        return f"another {other.class_name}"
    return article(f"{color} {other.class_name}")


def _absent(scene: WideScene, rng: random.Random, part: Part, most: int) -> str:
    names = sorted({draw_absent(scene, rng) for _ in range(most)})
    rng.shuffle(names)
    singular, plural, some = ([write(n) for n in names] for write in (noun, _plural, phrase))
    slots = {
        "x_or": enumerate_words(singular, "or"), "an_x_or": enumerate_words(some, "or"),
        "xs_and": enumerate_words(plural), "x_nor": enumerate_words(singular, "nor"),
    }  # fmt: skip
    return _say("absent", slots, rng, part)


def _plural(name: str) -> str:
    return noun(name, 2)
