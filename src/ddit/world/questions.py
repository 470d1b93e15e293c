"""Questions about a scene, with short answers, balanced so that no answer is a good guess."""

import random
from collections.abc import Callable
from typing import NamedTuple

from .captions import NUMBERS, OPPOSITE, RELATIONS, find_relation, phrase, pluralize
from .presets import WorldConfig, is_held_out
from .scenes import Group, Scene

UNANSWERABLE = "unanswerable"


class Question(NamedTuple):
    text: str
    answer: str
    kind: str


def make_question(scene: Scene, rng: random.Random, kind: str | None = None) -> Question | None:
    """A question about a scene, of a given kind or of a random one that fits.

    None if the given kind does not fit, or if asking would favour an answer (most objects come alone, so few of them
    are counted).
    """
    if kind is not None:
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        return _make(scene, rng, kind)
    weights = {name: weight for name, (_, weight) in _KINDS.items()}
    while True:
        chosen = rng.choices(list(weights), list(weights.values()))[0]
        asked = _make(scene, rng, chosen)
        if asked is not None:
            return asked
        del weights[chosen]  # asking whether there is something always fits


def count_shares(config: WorldConfig) -> dict[int, float]:
    """How often a randomly chosen group of a random scene has 1, 2, 3 or 4 members (not normalised)."""
    shares = dict.fromkeys(range(1, config.max_objects + 1), 0.0)
    weights = config.kind_weights()
    shares[1] += weights.get("single", 0) + weights.get("two", 0)
    for count in range(2, config.max_objects + 1):
        shares[count] += weights.get("count", 0) / (config.max_objects - 1)
    mixed = config.mixed_counts()
    for counts in mixed:
        for count in counts:
            shares[count] += weights.get("mixed", 0) / (2 * len(mixed))
    return shares


def _make(scene: Scene, rng: random.Random, kind: str) -> Question | None:
    asked = _KINDS[kind][0](scene, rng)
    return None if asked is None else Question(*asked, kind)


_TextAndAnswer = tuple[str, str] | None


def _the(group: Group) -> str:
    return f"the {group.class_name if group.count == 1 else pluralize(group.class_name)}"


def _absent(scene: Scene, rng: random.Random) -> str:
    present = {g.class_name for g in scene.groups}
    return rng.choice([name for name in scene.config.classes if name not in present])


def _count(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    group = rng.choice(scene.groups)
    shares = count_shares(scene.config)
    if rng.random() * shares[group.count] > min(share for share in shares.values() if share > 0):
        return None
    return f"how many {pluralize(group.class_name)} are there?", NUMBERS[group.count]


def _color(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    colored = [g for g in scene.groups if g.color]
    if not colored:
        return None
    group = rng.choice(colored)
    return f"what color {'is' if group.count == 1 else 'are'} {_the(group)}?", group.color or ""


def _what(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    if scene.kind != "single":
        return None
    return rng.choice(("what is this?", "what is in the picture?")), scene.groups[0].class_name


def _where(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    relation = find_relation(scene)
    if relation is None:
        return None
    first, second = scene.groups
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    return f"what is {relation} {_the(second)}?", first.class_name


def _relation(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    relation = find_relation(scene)
    if relation is None:
        return None
    first, second = scene.groups
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    answer = rng.choice(("yes", "no"))
    if answer == "no":
        relation = rng.choice([OPPOSITE[relation], *(r for r in RELATIONS if r != relation)])
    return f"is {_the(first)} {relation} {_the(second)}?", answer


def _exists(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    if rng.random() < 0.5:
        return f"is there {phrase(rng.choice(scene.groups).class_name)}?", "yes"
    return f"is there {phrase(_absent(scene, rng))}?", "no"


def _exists_color(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    colored = [g for g in scene.groups if g.color]
    if not colored:
        return None
    group = rng.choice(colored)
    if rng.random() < 0.5:
        return f"is there {phrase(group.class_name, group.color)}?", "yes"
    truth = {(g.class_name, g.color) for g in scene.groups}
    if rng.random() < 0.6:  # right class, wrong colour: often that of the other object
        others = [g.color for g in colored if g is not group]
        color = rng.choice(others) if others and rng.random() < 0.6 else rng.choice(scene.config.colors)
        pair = group.class_name, color
    else:
        pair = _absent(scene, rng), group.color
    if pair in truth or (scene.split != "heldout" and is_held_out(*pair)):
        pair = _absent(scene, rng), group.color
        if scene.split != "heldout" and is_held_out(*pair):
            return _exists_color(scene, rng)
    return f"is there {phrase(*pair)}?", "no"


def _exists_count(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    several = [g for g in scene.groups if g.count > 1]
    if not several or scene.config.max_objects < 3:
        return None
    group, answer = rng.choice(several), rng.choice(("yes", "no"))
    others = [n for n in range(2, scene.config.max_objects + 1) if n != group.count]
    count = group.count if answer == "yes" else rng.choice(others)
    return f"are there {phrase(group.class_name, count=count)}?", answer


def _unanswerable(scene: Scene, rng: random.Random) -> _TextAndAnswer:
    name = _absent(scene, rng)
    if rng.random() < 0.6:
        return f"what color is the {name}?", UNANSWERABLE
    return f"what is {rng.choice(RELATIONS)} the {name}?", UNANSWERABLE


_KINDS: dict[str, tuple[Callable[[Scene, random.Random], _TextAndAnswer], float]] = {
    "color": (_color, 0.1),
    "count": (_count, 0.5),
    "what": (_what, 0.1),
    "where": (_where, 0.2),
    "relation": (_relation, 0.2),
    "exists": (_exists, 0.8),
    "exists_color": (_exists_color, 0.15),
    "exists_count": (_exists_count, 0.1),
    "unanswerable": (_unanswerable, 0.05),
}

QUESTION_KINDS = tuple(_KINDS)
