"""What can be asked about a scene of the wide world, and the answer, before it is put into words.

A finder returns the slots of its form's wordings, the answer, and the facts (what is asked for, without words), from
which tests find the answer anew; None if the scene does not fit.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from ..captions import OPPOSITE, RELATIONS
from ..presets import COLORS
from ..questions import UNANSWERABLE
from .facts import (
    count_classes,
    draw_absent,
    find_colors,
    find_singles,
    may_say,
    reference,
    second,
    sides_of,
    wrong_color,
)
from .presets import is_held_out
from .scenes import WideScene
from .speech import say_at, say_relation
from .words import (
    NUMBERS,
    SIDES,
    SIZES,
    article,
    find_relations,
    noun,
    phrase,
    place_is_clear,
    place_word,
    size_is_right,
    size_word,
)

_RATIO = 1.25
"""Of two sizes, from which one is said to be larger."""


class Found(NamedTuple):
    slots: dict[str, str]
    answer: str
    facts: dict[str, Any]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def exists(scene: WideScene, rng: random.Random, name: str = "") -> Found:
    present = list(count_classes(scene))
    name = name or (rng.choice(present) if rng.random() < 0.5 else draw_absent(scene, rng))
    return Found(reference(name), _yes(name in present), {"class": name})


def _absent(scene: WideScene, rng: random.Random) -> Found:
    found = exists(scene, rng)
    return found._replace(answer=_yes(found.answer == "no"))


def _exists_color(scene: WideScene, rng: random.Random) -> Found | None:
    colored = [o for o in scene.objects if o.color]
    if not colored:
        return None
    item = rng.choice(colored)
    assert item.color is not None
    name, color = item.class_name, item.color
    if rng.random() < 0.5:
        if rng.random() < 0.6:
            color = wrong_color(scene, rng, name, color)
        else:
            name = draw_absent(scene, rng, color)
    holds = any((o.class_name, o.color) == (name, color) for o in scene.objects)
    slots = {**reference(name), "x": f"{color} {noun(name)}", "an_x": phrase(name, color)}
    return Found(slots, _yes(holds), {"class": name, "color": color})


def _exists_count(scene: WideScene, rng: random.Random) -> Found | None:
    name, real = rng.choice(list(count_classes(scene).items()))
    if real == 1 and rng.random() < 0.7:
        return None
    count = real
    if real == 1 or rng.random() < 0.5:
        count = rng.choice([n for n in range(2, 7) if n != real])
    slots = {**reference(name), "n_xs": phrase(name, count=count), "n": NUMBERS[count]}
    return Found(slots, _yes(count == real), {"class": name, "count": count})


def count(scene: WideScene, rng: random.Random, name: str = "") -> Found | None:
    counts = count_classes(scene)
    if not name:
        name = rng.choice(list(counts)) if rng.random() < 0.93 else draw_absent(scene, rng)
        if counts.get(name) == 1 and rng.random() < 0.75:
            return None
    return Found(reference(name), NUMBERS[counts.get(name, 0)], {"class": name})


def _count_all(scene: WideScene, rng: random.Random) -> Found:
    return Found({}, NUMBERS[len(scene.objects)], {})


def _count_color(scene: WideScene, rng: random.Random) -> Found | None:
    colors = [o.color for o in scene.objects if o.color]
    if not colors:
        return None
    color = rng.choice(colors) if rng.random() < 0.9 else rng.choice(COLORS)
    if colors.count(color) == 1 and rng.random() < 0.5:
        return None
    return Found({"color": color}, NUMBERS[colors.count(color)], {"color": color})


def color(scene: WideScene, rng: random.Random, name: str = "") -> Found | None:
    colors = find_colors(scene)
    if not colors or (name and name not in colors):
        return None
    name = name or rng.choice(list(colors))
    return Found(reference(name, count_classes(scene)[name]), colors[name], {"class": name})


def _two_colors(scene: WideScene, rng: random.Random) -> tuple[Found, str, str] | None:
    """A class with its colour, and another colour."""
    found = color(scene, rng)
    if found is None:
        return None
    return found, found.answer, wrong_color(scene, rng, found.facts["class"], found.answer)


def _color_check(scene: WideScene, rng: random.Random) -> Found | None:
    found = _two_colors(scene, rng)
    if found is None:
        return None
    chosen = rng.choice(found[1:])
    answer = _yes(chosen == found[1])
    return Found({**found[0].slots, "color": chosen}, answer, {**found[0].facts, "color": chosen})


def _color_choice(scene: WideScene, rng: random.Random) -> Found | None:
    found = _two_colors(scene, rng)
    if found is None:
        return None
    first, second = rng.sample(found[1:], 2)
    slots = {**found[0].slots, "color": first, "other": second}
    return Found(slots, found[1], found[0].facts)


def _which_color(scene: WideScene, rng: random.Random) -> Found | None:
    owners: dict[str, set[str]] = {}
    for item in scene.objects:
        if item.color:
            owners.setdefault(item.color, set()).add(item.class_name)
    unique = [(c, names) for c, names in owners.items() if len(names) == 1]
    if not unique:
        return None
    chosen, (name,) = rng.choice(unique)
    return Found({"color": chosen}, name, {"color": chosen})


def _binding(scene: WideScene, rng: random.Random) -> Found | None:
    singles = [o for o in find_singles(scene) if o.color]
    if len(singles) < 2:
        return None
    (a, first), (b, second) = ((o.class_name, o.color or "") for o in rng.sample(singles, 2))
    real = (first, second)
    chance = rng.random()
    if chance < 0.3 and may_say(scene, a, second) and may_say(scene, b, first):
        first, second = second, first
    elif chance < 0.5:
        second = wrong_color(scene, rng, b, second)
    slots = {"x": noun(a), "y": noun(b), "color": first, "other": second}
    slots |= {"a_color": article(first), "a_other": article(second)}
    facts = {"classes": [a, b], "colors": [first, second]}
    return Found(slots, _yes((first, second) == real), facts)


def _what(scene: WideScene, rng: random.Random) -> Found | None:
    if len(scene.objects) != 1:
        return None
    return Found({}, scene.objects[0].class_name, {})


def _list(scene: WideScene, rng: random.Random) -> Found:
    """The classes in alphabetical order."""
    return Found({}, ", ".join(sorted(count_classes(scene))), {})


def _where(scene: WideScene, rng: random.Random) -> Found | None:
    singles = find_singles(scene)
    if not singles or len(scene.objects) < 2:
        return None
    item, relation = rng.choice(singles), rng.choice(RELATIONS)
    there = {o.class_name for o in scene.objects if o is not item and relation in find_relations(o, item)}
    if len(there) != 1:
        return None
    slots = {"x": noun(item.class_name), "rel": say_relation(relation, rng)}
    return Found(slots, there.pop(), {"class": item.class_name, "relation": relation})


def _relation(scene: WideScene, rng: random.Random) -> Found | None:
    singles = find_singles(scene)
    if len(singles) < 2:
        return None
    a, b = rng.sample(singles, 2)
    real = find_relations(a, b)
    if len(real) != 1:
        return None
    (relation,) = real
    if rng.random() < 0.5:
        relation = rng.choice([OPPOSITE[relation], *(r for r in RELATIONS if r != relation)])
    slots = {**reference(a.class_name), **second(b.class_name)}
    slots["rel"] = say_relation(relation, rng)
    facts = {"classes": [a.class_name, b.class_name], "relation": relation}
    return Found(slots, _yes(relation in real), facts)


def place(scene: WideScene, rng: random.Random, name: str = "") -> Found | None:
    clear = [o for o in find_singles(scene) if place_is_clear(scene, o) and name in ("", o.class_name)]
    if not clear:
        return None
    item = rng.choice(clear)
    return Found(reference(item.class_name), place_word(scene, item), {"class": item.class_name})


def _side(scene: WideScene, rng: random.Random) -> Found | None:
    singles = find_singles(scene)
    if not singles:
        return None
    item = rng.choice(singles)
    sides = [s for s in sides_of(scene, item) if s in ("left", "right")]
    return Found(reference(item.class_name), sides[0], {"class": item.class_name}) if sides else None


def _side_check(scene: WideScene, rng: random.Random) -> Found | None:
    singles = find_singles(scene)
    if not singles:
        return None
    item = rng.choice(singles)
    sides = sides_of(scene, item)
    if not sides:
        return None
    side = rng.choice(sides)
    if rng.random() < 0.5:
        side = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
    slots = {**reference(item.class_name), "at": say_at(side, rng)}
    return Found(slots, _yes(side in sides), {"class": item.class_name, "side": side})


def _at_side(scene: WideScene, rng: random.Random) -> Found | None:
    """Only where every object is clearly on one side or the other, and one class alone on that side."""
    side = rng.choice(SIDES)
    axis = ("left", "right") if side in ("left", "right") else ("top", "bottom")
    sides = [[s for s in sides_of(scene, o) if s in axis] for o in scene.objects]
    there = {o.class_name for o, own in zip(scene.objects, sides, strict=True) if side in own}
    if len(scene.objects) < 2 or not all(sides) or len(there) != 1:
        return None
    return Found({"at": say_at(side, rng)}, there.pop(), {"side": side})


def size(scene: WideScene, rng: random.Random, name: str = "") -> Found | None:
    clear = [
        o for o in find_singles(scene)
        if name in ("", o.class_name) and sum(size_is_right(scene, o, word) for word in SIZES) == 1
    ]  # fmt: skip
    if not clear:
        return None
    item = rng.choice(clear)
    return Found(reference(item.class_name), size_word(scene, item), {"class": item.class_name})


def _bigger(scene: WideScene, rng: random.Random) -> Found | None:
    singles = find_singles(scene)
    if len(singles) < 2:
        return None
    a, b = rng.sample(singles, 2)
    if max(a.size, b.size) < _RATIO * min(a.size, b.size):
        return None
    word, wanted = rng.choice((("bigger", max), ("larger", max), ("smaller", min)))
    answer = wanted(a, b, key=lambda o: o.size).class_name
    slots = {"x": noun(a.class_name), "y": noun(b.class_name), "bigger": word}
    return Found(slots, answer, {"classes": [a.class_name, b.class_name], "smaller": word == "smaller"})


def style(scene: WideScene, rng: random.Random, name: str = "") -> Found | None:
    styles: dict[str, set[str]] = {}
    for item in scene.objects:
        styles.setdefault(item.class_name, set()).add(item.style)
    known = [n for n, found in styles.items() if len(found) == 1 and name in ("", n)]
    if not known:
        return None
    name = rng.choice(known)
    return Found(reference(name, count_classes(scene)[name]), styles[name].pop(), {"class": name})


def _ground_color(scene: WideScene, rng: random.Random) -> Found:
    return Found({}, scene.ground.tone, {})


def _ground_kind(scene: WideScene, rng: random.Random) -> Found:
    return Found({}, scene.ground.kind, {})


def _two_classes(scene: WideScene, rng: random.Random, absent: tuple[int, ...]) -> Found | None:
    """Two classes, of which 0, 1 or 2 are absent."""
    present = list(count_classes(scene))
    num_absent = rng.choice(absent)
    if len(present) < 2 - num_absent:
        return None
    names = rng.sample(present, 2 - num_absent)
    while len(names) < 2:
        name = draw_absent(scene, rng)
        if name not in names and not any(is_held_out(name, n) for n in names):
            names.append(name)
    rng.shuffle(names)
    answer = str(2 - num_absent)
    return Found({**reference(names[0]), **second(names[1])}, answer, {"classes": names})


def _both(scene: WideScene, rng: random.Random) -> Found | None:
    found = _two_classes(scene, rng, (0, 0, 0, 1, 1, 2))
    return found and found._replace(answer=_yes(found.answer == "2"))


def _either(scene: WideScene, rng: random.Random) -> Found | None:
    found = _two_classes(scene, rng, (0, 1, 2, 2))
    return found and found._replace(answer=_yes(found.answer != "0"))


def _same_color(scene: WideScene, rng: random.Random) -> Found | None:
    singles = [o for o in find_singles(scene) if o.color]
    if len(singles) < 2:
        return None
    a, b = rng.sample(singles, 2)
    if a.color != b.color and rng.random() < 0.9:
        return None
    slots = {**reference(a.class_name), **second(b.class_name)}
    return Found(slots, _yes(a.color == b.color), {"classes": [a.class_name, b.class_name]})


def _unanswerable(scene: WideScene, rng: random.Random) -> Found:
    name = draw_absent(scene, rng)
    return Found(reference(name), UNANSWERABLE, {"class": name})


_Finder = Callable[[WideScene, random.Random], Found | None]
FINDERS: dict[str, tuple[_Finder, float]] = {
    "exists": (exists, 1.5), "absent": (_absent, 0.5), "exists_color": (_exists_color, 0.8),
    "exists_count": (_exists_count, 1.0), "count": (count, 1.5), "count_all": (_count_all, 0.4),
    "count_color": (_count_color, 0.5), "color": (color, 1.2), "color_check": (_color_check, 0.6),
    "color_choice": (_color_choice, 0.4), "which_color": (_which_color, 0.5), "binding": (_binding, 1.0),
    "what": (_what, 1.0), "list": (_list, 0.8), "where": (_where, 1.2), "relation": (_relation, 1.5),
    "place": (place, 0.8), "side": (_side, 0.5), "side_check": (_side_check, 0.6), "at_side": (_at_side, 0.8),
    "size": (size, 0.5), "bigger": (_bigger, 0.6), "style": (style, 0.4), "ground_color": (_ground_color, 0.3),
    "ground_kind": (_ground_kind, 0.3), "both": (_both, 0.6), "either": (_either, 0.5),
    "same_color": (_same_color, 0.8), UNANSWERABLE: (_unanswerable, 0.25),
}  # fmt: skip
"""By kind of question: its finder, and how often it is asked."""
