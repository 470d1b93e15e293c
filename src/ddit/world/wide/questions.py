"""Questions about a scene of the wide world: what `finders` find, in one of many wordings."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..questions import UNANSWERABLE
from .finders import FINDERS, Found
from .scenes import WideScene
from .speech import write_question
from .wordings import Part, Wording, fill, pick

FILE = "questions.txt"
WIDE_QUESTION_KINDS = tuple(FINDERS)
_ATTEMPTS = 200


class Asked(NamedTuple):
    """A question: its form, facts and answer; `wording` is the one that `text` came from."""

    text: str
    answer: str
    kind: str
    facts: dict[str, Any]
    wording: Wording


def make_question(
    scene: WideScene,
    rng: random.Random,
    kind: str | None = None,
    *,
    part: Part = "seen",
    official: bool = False,
    plain: bool = False,
    emphasis: Mapping[str, float] = MappingProxyType({}),
) -> Asked | None:
    """A question about a scene, of a given kind or of a random one that fits; None if the given kind does not fit.

    part: which wordings it may have. official: the benchmarks' own sentences alone, where a kind has any. plain: as the
    wording is written, without other marks, capitals or suffixes. emphasis: how many times as often as by `FINDERS` a
    kind is drawn, 1 of others; a scene that fits none of those has a kind as usual.
    """
    if kind is not None:
        if kind not in FINDERS:
            raise ValueError(f"kind must be one of {', '.join(FINDERS)}, got {kind!r}")
        found = FINDERS[kind][0](scene, rng)
        return None if found is None else ask(kind, found, rng, part=part, official=official, plain=plain)
    weights = [weight * emphasis.get(name, 1.0) for name, (_, weight) in FINDERS.items()]
    for _ in range(_ATTEMPTS):
        chosen = rng.choices(WIDE_QUESTION_KINDS, weights)[0]
        found = FINDERS[chosen][0](scene, rng)
        if found is not None:
            return ask(chosen, found, rng, part=part, official=official, plain=plain)
    return make_question(scene, rng, part=part, official=official, plain=plain)


def ask(
    kind: str,
    found: Found,
    rng: random.Random,
    *,
    form: str = "",
    part: Part = "seen",
    official: bool = False,
    plain: bool = False,
    with_suffix: bool = True,
) -> Asked:
    """What was found, in a wording of its kind or of another `form`, perhaps with a benchmark's suffix."""
    form = form or (rng.choice(("color", "place", "size")) if kind == UNANSWERABLE else kind)
    wording = pick(FILE, form, part, rng, official=official)
    text = fill(wording, found.slots, rng)
    if not plain:
        text = write_question(text, found.answer, rng, with_suffix=with_suffix)
    return Asked(text, found.answer, kind, found.facts, wording)
