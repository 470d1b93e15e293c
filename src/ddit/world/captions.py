"""Captions of a scene, in several wordings, and how to parse them.

The grammar is GenEval's ("a photo of a red dog left of a car"), with other openings beside "a photo of".
"""

import random
from itertools import product
from typing import NamedTuple

from .presets import CLASSES, COLORS
from .scenes import Group, Scene, relative_position

NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OPENINGS = ("", "a photo of", "a picture of", "there is")
"""`there is` turns into `there are` before several."""

_OPENING_WEIGHTS = {True: (0.35, 0.4, 0.1, 0.15), False: (0.2, 0.6, 0.1, 0.1)}  # by completeness
_LONG_RELATIONS = {"left of": "to the left of", "right of": "to the right of"}
_IRREGULAR = {"bus": "buses", "sheep": "sheep"}


_GRAMMAR = (
    "Q:", "A:", "describe", "a", "an", "the", "photo", "picture", "of", "and", "there", "is", "are", "to",
    "left", "right", "above", "below", "what", "color", "how", "many", "this", "in", "yes", "no",
    "unanswerable", ",", ".", "?",
)  # fmt: skip


class Description(NamedTuple):
    """What a caption states: a colour is None if not stated; the relation is that of the first to the second."""

    groups: tuple[Group, ...]
    relation: str | None


def pluralize(class_name: str) -> str:
    return _IRREGULAR.get(class_name, class_name + "s")


_NOUNS = {n: (n, 1) for n in CLASSES} | {pluralize(n): (n, 2) for n in CLASSES if pluralize(n) != n}


def phrase(class_name: str, color: str | None = None, count: int = 1, *, article: bool = True) -> str:
    """ "a red dog", "an apple", "three blue buses"; "one dog" without an article."""
    words = [class_name if count == 1 else pluralize(class_name)]
    if color:
        words.insert(0, color)
    indefinite = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([indefinite if article and count == 1 else NUMBERS[count], *words])


def find_relation(scene: Scene) -> str | None:
    """Where the first of two single objects is, seen from the second."""
    if scene.kind != "two":
        return None
    (relation,) = relative_position(scene.objects[0].box, scene.objects[1].box)
    return relation


def make_caption(scene: Scene, rng: random.Random, *, complete: bool = True) -> str:
    """A right caption, in a random wording.

    A complete one names every class, colour, count and the relation of two: the target when captioning. Otherwise half
    of them leave out the colours, and six in ten the relation, as GenEval's prompts do: for generating images.
    """
    relation = find_relation(scene)
    with_colors = complete or rng.random() < 0.5
    if not complete and rng.random() < 0.6:
        relation = None
    groups = [g if with_colors else Group(g.class_name, None, g.count) for g in scene.groups]
    opening = rng.choices(OPENINGS, _OPENING_WEIGHTS[complete])[0]
    if len(groups) == 1:
        article = complete or rng.random() < 0.93
        return _open(opening, phrase(*_spread(groups[0]), article=article), groups[0].count)
    if rng.random() < 0.5:
        groups.reverse()
        relation = OPPOSITE[relation] if relation else None
    link = relation or "and"
    if rng.random() < 0.25:
        link = _LONG_RELATIONS.get(link, link)
    return _open(opening, _join(groups, link), groups[0].count)


def list_captions(scene: Scene) -> list[str]:
    """Every complete caption."""
    groups, relation = scene.groups, find_relation(scene)
    if len(groups) == 1:
        return [_open(o, phrase(*_spread(groups[0])), groups[0].count) for o in OPENINGS]
    orders = [(groups, relation or "and"), (groups[::-1], OPPOSITE[relation] if relation else "and")]
    texts = []
    for opening, (order, link) in product(OPENINGS, orders):
        for wording in dict.fromkeys((link, _LONG_RELATIONS.get(link, link))):
            texts.append(_open(opening, _join(order, wording), order[0].count))
    return texts


def parse_caption(text: str) -> Description | None:
    """What a caption of any wording states; None for any other text."""
    words = text.lower().replace(".", " ").replace(",", " ").split()
    for opening in ("a photo of", "a picture of", "there is", "there are"):
        if words[: len(opening.split())] == opening.split():
            words = words[len(opening.split()) :]
            break
    first, words = _parse_group(words)
    if first is None or not words:
        return Description((first,), None) if first else None
    link, words = _parse_link(words)
    second, words = _parse_group(words)
    if link is None or second is None or words:
        return None
    return Description((first, second), None if link == "and" else link)


def caption_is_right(scene: Scene, text: str, *, complete: bool = False) -> bool:
    """Whether a caption of any wording names every object and states nothing wrong.

    With `complete` it must also name every colour and, of two single objects, the relation.
    """
    stated = parse_caption(text)
    if stated is None or len(stated.groups) != len(scene.groups):
        return False
    truth = {g.class_name: g for g in scene.groups}
    if {g.class_name for g in stated.groups} != set(truth):
        return False
    for group in stated.groups:
        real = truth[group.class_name]
        color_is_right = group.color == real.color or (group.color is None and not complete)
        if group.count != real.count or not color_is_right:
            return False
    relation = find_relation(scene)
    if relation and stated.groups[0].class_name != scene.groups[0].class_name:
        relation = OPPOSITE[relation]
    return stated.relation == relation or (stated.relation is None and not complete)


def list_vocabulary() -> list[str]:
    """Every word and mark of captions, prompts, questions and answers, and those of the mini prompt style."""
    plurals = [pluralize(name) for name in CLASSES]
    return list(dict.fromkeys([*_GRAMMAR, *NUMBERS, *COLORS, *CLASSES, *plurals]))


def _spread(group: Group) -> tuple[str, str | None, int]:
    return group.class_name, group.color, group.count


def _join(groups: tuple[Group, ...] | list[Group], link: str) -> str:
    return f" {link} ".join(phrase(*_spread(g)) for g in groups)


def _open(opening: str, text: str, first_count: int) -> str:
    if opening == "there is" and first_count > 1:
        opening = "there are"
    return f"{opening} {text}".strip()


def _parse_group(words: list[str]) -> tuple[Group | None, list[str]]:
    if not words:
        return None, words
    count = 1 if words[0] in ("a", "an") else NUMBERS.index(words[0]) if words[0] in NUMBERS else 0
    words = words[1:]
    color = words.pop(0) if words and words[0] in COLORS else None
    name, least = _NOUNS.get(words[0], ("", 0)) if words else ("", 0)
    agrees = bool(name) and count >= 1 and ((least > 1) == (count > 1) or pluralize(name) == name)
    return (Group(name, color, count), words[1:]) if agrees else (None, words)


def _parse_link(words: list[str]) -> tuple[str | None, list[str]]:
    for link in ("and", *RELATIONS, *_LONG_RELATIONS.values()):
        size = len(link.split())
        if words[:size] == link.split():
            return link.removeprefix("to the "), words[size:]
    return None, words
