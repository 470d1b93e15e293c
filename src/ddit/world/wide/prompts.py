"""Prompts and captions of the wide world: one grammar, filled from a scene (training) or at random (evaluation)."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..scenes import Group
from .facts import count_classes, draw_absent, find_singles
from .presets import is_held_out
from .scenes import WideObject, WideScene
from .speech import say_at, say_relation, write_prompt
from .wordings import Part, Wording, fill, pick
from .words import (
    NUMBERS,
    at,
    enumerate_words,
    find_relations,
    ground_words,
    noun,
    phrase,
    place_is_clear,
    place_word,
    size_word,
)

FILE = "prompts.txt"
OPPOSITE_SIDE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SIDE_OF_RELATION = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}


class Written(NamedTuple):
    """A text, and the wording that it came from."""

    text: str
    wording: Wording


def say(
    form: str,
    slots: dict[str, str],
    rng: random.Random,
    *,
    part: Part = "seen",
    official: bool = False,
    plain: bool = False,
) -> Written:
    """Slots in a random wording of a form of prompts.txt; `plain`: without other marks and capitals."""
    wording = pick(FILE, form, part, rng, official=official)
    text = fill(wording, slots, rng)
    return Written(text if plain else write_prompt(text, rng), wording)


def make_prompt(scene: WideScene, rng: random.Random, *, part: Part = "seen", plain: bool = False) -> Written:
    """A prompt that the scene's image fits, in a form that fits the scene. Four in ten name no colours."""
    forms = [(form, find) for form, (find, _) in _FORMS.items()]
    weights = [weight for _, weight in _FORMS.values()]
    with_colors = rng.random() < 0.6
    while True:
        form, find = rng.choices(forms, weights)[0]
        slots = find(scene, rng, with_colors)
        if slots is not None:
            return say(form, slots, rng, part=part, plain=plain)


def make_caption(scene: WideScene, rng: random.Random, *, part: Part = "seen") -> str:
    """A complete caption: every class, colour and count, and the relation of two single objects if they have one."""
    text = enumerate_words(_group_phrases(scene.groups))
    if len(scene.objects) == 2 and len(scene.groups) == 2:
        a, b = rng.sample(scene.objects, 2)
        found = find_relations(a, b)
        if len(found) == 1:
            text = f"{phrase(a.class_name, a.color)} {found.pop()} {phrase(b.class_name, b.color)}"
    wording = pick(FILE, "caption", part, rng)
    return fill(wording, {"list": text, "is": "are" if scene.groups[0].count > 1 else "is"}, rng)


# --- slots ---


def bare(group: Group) -> str:
    """ "dog", "red dog"; "three red dogs"."""
    words = (
        f"{group.color} {noun(group.class_name, group.count)}"
        if group.color
        else noun(group.class_name, group.count)
    )
    return words if group.count == 1 else f"{NUMBERS[group.count]} {words}"


def list_slots(groups: Sequence[Group], rng: random.Random) -> dict[str, str]:
    """Slots of the forms that name groups in a row, in random order."""
    groups = rng.sample(groups, len(groups))
    phrases = _group_phrases(groups, rng)
    names = enumerate_words([bare(g) for g in groups])
    return {"list": enumerate_words(phrases), "bare_list": names, "a": phrases[0], "bare": bare(groups[0])}


def pair_slots(a: Group, b: Group) -> dict[str, str]:
    """Slots of the forms that name two single objects."""
    slots = {"a": phrase(a.class_name, a.color), "b": phrase(b.class_name, b.color)}
    slots |= {
        "x": noun(a.class_name),
        "y": noun(b.class_name),
        "an_x": phrase(a.class_name),
        "an_y": phrase(b.class_name),
    }
    return slots | {"color": a.color or "", "other": b.color or ""}


def _group_phrases(groups: Sequence[Group], rng: random.Random | None = None) -> list[str]:
    """With `rng`, digits now and then."""
    phrases = [phrase(g.class_name, g.color, count=g.count) for g in groups]
    if rng is not None and rng.random() < 0.15:
        digits = {word: str(number) for number, word in enumerate(NUMBERS) if number > 1}
        phrases = [" ".join(digits.get(w, w) for w in p.split()) for p in phrases]
    return phrases


def named_groups(scene: WideScene, with_colors: bool) -> tuple[Group, ...]:
    """The scene's groups, or without colours its classes with their counts."""
    if with_colors:
        return scene.groups
    return tuple(Group(name, None, count) for name, count in count_classes(scene).items())


# --- forms: slots from a scene, or None if it does not fit ---

_Slots = dict[str, str] | None


def _single(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    groups = named_groups(scene, with_colors)
    return list_slots(groups, rng) if len(scene.objects) == 1 else None


def _count(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    groups = named_groups(scene, with_colors)
    return list_slots(groups, rng) if len(groups) == 1 and groups[0].count > 1 else None


def _several(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    groups = named_groups(scene, with_colors)
    return list_slots(groups, rng) if len(groups) > 1 else None


def _pair(scene: WideScene, rng: random.Random) -> list[WideObject] | None:
    singles = find_singles(scene)
    return rng.sample(singles, 2) if len(scene.objects) == len(singles) == 2 else None


def _groups(items: Sequence[WideObject], with_colors: bool) -> list[Group]:
    return [Group(o.class_name, o.color if with_colors else None, 1) for o in items]


def _relation(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    pair = _pair(scene, rng)
    found = find_relations(*pair) if pair else set()
    if pair is None or len(found) != 1:
        return None
    return {**pair_slots(*_groups(pair, with_colors)), "rel": say_relation(found.pop(), rng)}


def _sides(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    pair = _pair(scene, rng)
    found = find_relations(*pair) if pair else set()
    if pair is None or len(found) != 1:
        return None
    side = SIDE_OF_RELATION[found.pop()]
    slots = {"at": say_at(side, rng), "opposite": say_at(OPPOSITE_SIDE[side], rng)}
    return {**pair_slots(*_groups(pair, with_colors)), **slots}


def side_slots(side: str) -> dict[str, str]:
    return {"at": at(side), "opposite": at(OPPOSITE_SIDE[side])}


def _binding(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    pair = _pair(scene, rng)
    if pair is None or not all(o.color for o in pair):
        return None
    return pair_slots(*_groups(pair, True))


def _place(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    slots = _single(scene, rng, with_colors)
    if slots is None or not place_is_clear(scene, scene.objects[0]):
        return None
    return {**slots, "at": say_at(place_word(scene, scene.objects[0]), rng)}


def _negation(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    present = list(count_classes(scene))
    while True:
        name = draw_absent(scene, rng)
        if not any(is_held_out(name, other) for other in present):
            break
    slots = list_slots(named_groups(scene, with_colors), rng)
    return {**slots, "y": noun(name), "ys": noun(name, 2), "an_y": phrase(name)}


def _ground(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    slots = list_slots(named_groups(scene, with_colors), rng)
    ground = ground_words(scene.ground)
    if rng.random() < 0.4:
        ground = f"{scene.ground.tone} background"
    return {**slots, "ground": ground}


def _style(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    styles = {o.style for o in scene.objects}
    if len(styles) != 1:
        return None
    return {**list_slots(named_groups(scene, with_colors), rng), "style": styles.pop()}


def _size(scene: WideScene, rng: random.Random, with_colors: bool) -> _Slots:
    slots = _single(scene, rng, with_colors)
    if slots is None:
        return None
    (item,) = scene.objects
    size = size_word(scene, item)
    return {
        **slots,
        "size": size,
        "sized": phrase(item.class_name, size, item.color if with_colors else None),
    }


_FORMS: dict[str, tuple[Callable[[WideScene, random.Random, bool], _Slots], float]] = {
    "single": (_single, 2.0),
    "bare": (_single, 1.2),
    "count": (_count, 2.0),
    "several": (_several, 1.5),
    "relation": (_relation, 2.0),
    "binding": (_binding, 1.5),
    "sides": (_sides, 1.2),
    "place": (_place, 0.7),
    "negation": (_negation, 0.4),
    "ground": (_ground, 0.6),
    "style": (_style, 0.3),
    "size": (_size, 0.5),
}
"""How a scene fills each form's slots, and how often the form is chosen among those that fit."""
WIDE_PROMPT_FORMS = tuple(_FORMS)
