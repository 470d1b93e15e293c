"""Prompts of the wide world in GenEval's form, for `ddit.world.geneval.check_detections`."""

import random
import re
from collections.abc import Callable

from ..captions import RELATIONS
from ..geneval import TAGS, Prompt
from ..presets import SPLITS
from ..scenes import Group
from .presets import WIDE_HELD_OUT_CLASSES, WIDE_HELD_OUT_COLORS, WideConfig
from .prompts import SIDE_OF_RELATION, list_slots, pair_slots, say, side_slots
from .scenes import is_allowed
from .wordings import Part
from .words import RELATION_WORDS, enumerate_words, noun, phrase

WIDE_TAGS = (*TAGS, "binding", "sides", "three_kinds", "negation", "bare")
"""GenEval's six categories, and five more."""


def make_prompts(
    config: WideConfig,
    num_per_tag: int,
    *,
    split: str = "test",
    part: Part = "seen",
    seed: int = 0,
    official: bool = False,
) -> list[Prompt]:
    """`num_per_tag` prompts of each of `WIDE_TAGS`, in seen or held-out wordings; no two alike if there are enough.

    `heldout` gives prompts that name a held-out pair, hence none for tags without a pair; the other splits give prompts
    that name none. official: GenEval's own sentences, where it has any.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = random.Random(f"wide/prompts/{seed}/{split}/{part}")
    prompts: list[Prompt] = []
    for tag, make in _MAKERS.items():
        if split == "heldout" and tag in ("single_object", "counting", "bare"):
            continue
        found: dict[str, Prompt] = {}
        for _ in range(60 * num_per_tag):
            if len(found) == num_per_tag:
                break
            prompt = make(config, rng, split, part, official)
            if prompt is not None:
                found.setdefault(prompt.text, prompt)
        distinct = list(found.values())
        prompts += [distinct[i % len(distinct)] for i in range(num_per_tag if distinct else 0)]
    return prompts


def say_plainly(prompt: Prompt) -> str:
    """GenEval's own sentence for what a prompt asks to be shown, in the order in which it names things."""
    phrases = [phrase(entry["class"], entry.get("color"), count=entry["count"]) for entry in prompt.include]
    for words, entry in zip(phrases, prompt.include, strict=True):
        if "position" in entry:
            relation, other = entry["position"]
            return f"a photo of {words} {relation} {phrases[other]}"
    text = prompt.text.lower()
    names = [noun(entry["class"], entry["count"]) for entry in prompt.include]
    found = [re.search(rf"\b{name}\b", text) for name in names]  # a carrot is no car
    places = [match.start() if match else 0 for match in found]
    in_order = [words for _, words in sorted(zip(places, phrases, strict=True))]
    return f"a photo of {enumerate_words(in_order)}"


def _draw(
    config: WideConfig, rng: random.Random, split: str, number: int, *, colored: bool
) -> list[Group] | None:
    """Single objects of different classes, with colours or without; None if the split may not name them."""
    names = rng.sample(config.classes, number)
    colors: list[str | None] = [rng.choice(config.colors) if colored else None for _ in names]
    if split == "heldout" and number > 1 and (not colored or rng.random() < 0.5):
        pair = rng.choice(WIDE_HELD_OUT_CLASSES)
        names = [*rng.sample(pair, 2), *(n for n in names if n not in pair)][:number]
    elif split == "heldout" and colored:
        name, colors[0] = rng.choice(WIDE_HELD_OUT_COLORS)
        names = [name, *(n for n in names if n != name)][:number]
    if not set(names) <= set(config.classes) or not {*colors} - {None} <= set(config.colors):
        return None
    pairs = list(zip(names, colors, strict=True))
    if len(config.counts) < number or not is_allowed(split, pairs):
        return None
    return [Group(name, color, 1) for name, color in pairs]


def _include(groups: list[Group]) -> list[dict]:
    return [
        {"class": g.class_name, "count": g.count, **({"color": g.color} if g.color else {})} for g in groups
    ]


_Maker = Callable[[WideConfig, random.Random, str, Part, bool], Prompt | None]


def _listing(tag: str, form: str, number: int, *, colored: bool = False) -> _Maker:
    """Of `number` single objects in a row."""

    def make(config: WideConfig, rng: random.Random, split: str, part: Part, official: bool) -> Prompt | None:
        groups = _draw(config, rng, split, number, colored=colored)
        if groups is None:
            return None
        text = say(form, list_slots(groups, rng), rng, part=part, official=official).text
        return Prompt(text, tag, _include(groups))

    return make


def _counting(
    config: WideConfig, rng: random.Random, split: str, part: Part, official: bool
) -> Prompt | None:
    most = min(len(config.counts), 4)  # GenEval's
    if most < 2:
        return None
    group = Group(rng.choice(config.classes), None, rng.randint(2, most))
    text = say("count", list_slots([group], rng), rng, part=part, official=official).text
    return Prompt(
        text, "counting", _include([group]), [{"class": group.class_name, "count": group.count + 1}]
    )


def _pair(tag: str, form: str) -> _Maker:
    """Of two single objects: a relation, two sides or a colour each."""

    def make(config: WideConfig, rng: random.Random, split: str, part: Part, official: bool) -> Prompt | None:
        groups = _draw(config, rng, split, 2, colored=tag == "binding")
        if groups is None or (tag == "binding" and groups[0].color == groups[1].color):
            return None
        rng.shuffle(groups)
        relation = rng.choice(RELATIONS)
        slots = {**pair_slots(*groups), "rel": rng.choice(RELATION_WORDS[relation])}
        slots |= side_slots(SIDE_OF_RELATION[relation])
        include = _include(groups[::-1])
        if tag != "binding":
            include[1]["position"] = [relation, 0]
        return Prompt(say(form, slots, rng, part=part, official=official).text, tag, include)

    return make


def _negation(
    config: WideConfig, rng: random.Random, split: str, part: Part, official: bool
) -> Prompt | None:
    groups = _draw(config, rng, split, 2, colored=False)
    if groups is None:
        return None
    shown, banned = groups
    name = banned.class_name
    slots = {**list_slots([shown], rng), "y": noun(name), "ys": noun(name, 2), "an_y": phrase(name)}
    text = say("negation", slots, rng, part=part, official=official).text
    return Prompt(text, "negation", _include([shown]), [{"class": name, "count": 1}])


_MAKERS: dict[str, _Maker] = {
    "single_object": _listing("single_object", "single", 1),
    "two_object": _listing("two_object", "several", 2),
    "counting": _counting,
    "colors": _listing("colors", "single", 1, colored=True),
    "position": _pair("position", "relation"),
    "color_attr": _listing("color_attr", "several", 2, colored=True),
    "binding": _pair("binding", "binding"),
    "sides": _pair("sides", "sides"),
    "three_kinds": _listing("three_kinds", "several", 3),
    "negation": _negation,
    "bare": _listing("bare", "bare", 1),
}
