"""Prompts in GenEval's form, and GenEval's rule for what a detector found (Ghosh et al. 2023)."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .captions import RELATIONS, phrase
from .presets import COLORS, HELD_OUT_CLASSES, HELD_OUT_COLORS, SPLITS, WorldConfig, is_held_out
from .scenes import Box, relative_position

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class Detection(NamedTuple):
    """One object found in an image; `color` is None for a sprite of no single colour."""

    class_name: str
    color: str | None
    box: Box
    score: float


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its image must (`include`) and must not (`exclude`) show, in GenEval's form.

    Entries are {"class", "count", "color"?, "position"?: [relation, index of the other in include]}. Prompts of one
    `section` have figures of their own.
    """

    text: str
    tag: str
    include: list[dict[str, Any]]
    exclude: list[dict[str, Any]] = field(default_factory=list)
    section: str = ""

    def to_json(self) -> dict[str, Any]:
        data = {"tag": self.tag, "include": self.include, "prompt": self.text}
        more = {"exclude": self.exclude, "section": self.section}
        return data | {key: value for key, value in more.items() if value}


def make_prompts(
    config: WorldConfig, num_per_tag: int, *, split: str = "test", seed: int = 0
) -> list[Prompt]:
    """`num_per_tag` prompts for each of GenEval's six tags, all different if the world has enough.

    `heldout` gives prompts that name a held-out pair, hence none for single objects and counting; the other
    splits give prompts that name none.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = random.Random(f"prompts/{seed}/{split}")
    prompts: list[Prompt] = []
    for tag in TAGS:
        if split == "heldout" and tag in ("single_object", "counting"):
            continue
        found: dict[str, Prompt] = {}
        for _ in range(100 * num_per_tag):
            if len(found) == num_per_tag:
                break
            prompt = _MAKERS[tag](config, rng, split)
            if prompt is not None:
                found.setdefault(prompt.text, prompt)
        distinct = list(found.values())
        prompts += [distinct[i % len(distinct)] for i in range(num_per_tag if distinct else 0)]
    return prompts


def check_detections(prompt: Prompt, detections: list[Detection]) -> bool:
    """Whether an image with these detections shows what was asked for (`find_faults`)."""
    return not find_faults(prompt, detections)


def find_faults(prompt: Prompt, detections: list[Detection]) -> list[str]:
    """What an image with these detections does not show as it was asked for, in the words of GenEval's results.

    Of each class the `count` most confident detections are taken. They must be that many, have the colour, and stand in
    the relation to each of the other class, if that is as asked for itself; `exclude` forbids as many as its count, or
    more.
    """
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        by_class.setdefault(detection.class_name, []).append(detection)
    faults: list[str] = []
    matched: list[list[Detection] | None] = []
    for clause in prompt.include:
        found = by_class.get(clause["class"], [])[: clause["count"]]
        fault = _clause_fault(clause, found, matched)
        matched.append(None if fault else found)
        faults += [fault] if fault else []
    for banned in prompt.exclude:
        number = len(by_class.get(banned["class"], []))
        if number >= banned["count"]:
            faults.append(f"expected {banned['class']}<{banned['count']}, found {number}")
    return faults


def _clause_fault(
    clause: dict[str, Any], found: list[Detection], matched: list[list[Detection] | None]
) -> str:
    """What is wrong with the detections of a clause; "" if nothing. matched: those of the clauses before."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" in clause:
        colors, wanted = [d.color for d in found], clause["color"]
        if colors.count(wanted) < count:
            seen = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
            return f"expected {wanted} {name}>={count}, found {colors.count(wanted)} {wanted}; and {seen}"
    if "position" in clause:
        relation, index = clause["position"]
        others = matched[index]
        if others is None:
            return f"no target for {name} to be {relation}"
        for a, b in itertools.product(found, others):
            relations = relative_position(a.box, b.box)
            if relation not in relations:
                return f"expected {name} {relation} target, found {' and '.join(sorted(relations))} target"
    return ""


def _names_held_out(names: list[str], colors: list[str]) -> bool:
    return any(is_held_out(n, c) for n, c in zip(names, colors, strict=False)) or (
        len(names) == 2 and is_held_out(*names)
    )


def _pick(
    config: WorldConfig, rng: random.Random, split: str, num_names: int, *, colored: bool
) -> tuple[list[str], list[str]] | None:
    """Random classes with their colours; None if the split may not name them."""
    names = rng.sample(config.classes, num_names)
    colors = [rng.choice(config.colors) for _ in names] if colored else []
    if split == "heldout" and num_names == 2 and (not colored or rng.random() < 0.5):
        names = list(rng.choice(HELD_OUT_CLASSES))
        rng.shuffle(names)
    elif split == "heldout" and colored:
        names[0], colors[0] = rng.choice(HELD_OUT_COLORS)
    known = (
        set(names) <= set(config.classes)
        and set(colors) <= set(config.colors)
        and len(set(names)) == num_names
    )
    fits = split == "detector" or _names_held_out(names, colors) == (split == "heldout")
    return (names, colors) if known and fits else None


def _single_object(config: WorldConfig, rng: random.Random, split: str) -> Prompt | None:
    name = rng.choice(config.classes)
    return Prompt(f"a photo of {phrase(name)}", "single_object", [{"class": name, "count": 1}])


def _two_object(config: WorldConfig, rng: random.Random, split: str) -> Prompt | None:
    picked = _pick(config, rng, split, 2, colored=False)
    if picked is None or config.max_objects < 2:
        return None
    names = picked[0]
    text = f"a photo of {phrase(names[0])} and {phrase(names[1])}"
    return Prompt(text, "two_object", [{"class": n, "count": 1} for n in names])


def _counting(config: WorldConfig, rng: random.Random, split: str) -> Prompt | None:
    if config.max_objects < 2:
        return None
    name, count = rng.choice(config.classes), rng.randint(2, config.max_objects)
    include, exclude = [{"class": name, "count": count}], [{"class": name, "count": count + 1}]
    return Prompt(f"a photo of {phrase(name, count=count)}", "counting", include, exclude)


def _colors(config: WorldConfig, rng: random.Random, split: str) -> Prompt | None:
    picked = _pick(config, rng, split, 1, colored=True)
    if picked is None:
        return None
    (name,), (color,) = picked
    return Prompt(
        f"a photo of {phrase(name, color)}", "colors", [{"class": name, "count": 1, "color": color}]
    )


def _position(config: WorldConfig, rng: random.Random, split: str) -> Prompt | None:
    picked = _pick(config, rng, split, 2, colored=False)
    if picked is None or config.max_objects < 2:
        return None
    (name, other), relation = picked[0], rng.choice(RELATIONS)
    include = [{"class": other, "count": 1}, {"class": name, "count": 1, "position": [relation, 0]}]
    return Prompt(f"a photo of {phrase(name)} {relation} {phrase(other)}", "position", include)


def _color_attr(config: WorldConfig, rng: random.Random, split: str) -> Prompt | None:
    picked = _pick(config, rng, split, 2, colored=True)
    if picked is None or config.max_objects < 2 or picked[1][0] == picked[1][1]:
        return None
    pairs = list(zip(*picked, strict=True))
    text = "a photo of " + " and ".join(phrase(*pair) for pair in pairs)
    return Prompt(text, "color_attr", [{"class": n, "count": 1, "color": c} for n, c in pairs])


_MAKERS: dict[str, Callable[[WorldConfig, random.Random, str], Prompt | None]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
