"""Conversations about a scene of the wide world, whose later turns refer back to earlier ones; and small talk."""

import random
from collections.abc import Callable
from typing import NamedTuple

from .descriptions import make_description, make_plain_description
from .facts import count_classes, draw_absent
from .finders import Found, color, count, exists, place, size, style
from .prompts import make_caption
from .questions import FILE, Asked, ask, make_question
from .scenes import WideScene
from .speech import write_freely
from .wordings import Part, fill, pick

MAX_TURNS = 6

SMALL_TALK = {
    "greeting": "hello! ask me about the image.",
    "thanks": "you are welcome.",
    "farewell": "goodbye!",
    "praise": "thank you.",
    "identity": "i am a small model that draws and describes images.",
    "ability": "i can describe the image, answer questions about it, and draw.",
}
"""The reply to each form of small talk."""

_Finder = Callable[[WideScene, random.Random, str], Found | None]
_ABOUT_IT: dict[str, _Finder] = {"it_color": color, "it_place": place, "it_size": size, "it_style": style}
"""Questions with "it", by form, and what they ask."""
_AGAIN: dict[str, tuple[_Finder, str]] = {
    "color": (color, "and_the"), "place": (place, "and_the"), "size": (size, "and_the"), "style": (style, "and_the"),
    "exists": (exists, "and_a"), "count": (count, "and_many"),
}  # fmt: skip
"""Questions that can be asked of another class with "and the dog?": what finds the answer, and the wordings' form."""


class Exchange(NamedTuple):
    """A turn: what is said, the reply, the kind of question, and the class that "it" means after it."""

    text: str
    reply: str
    kind: str
    subject: str | None


def make_small_talk(rng: random.Random, form: str | None = None, *, part: Part = "seen") -> Exchange:
    """A greeting, thanks or the like, and its reply."""
    form = form or rng.choice(list(SMALL_TALK))
    text = write_freely(fill(pick(FILE, form, part, rng), {}, rng), rng)
    return Exchange(text, SMALL_TALK[form], form, None)


def make_request(
    scene: WideScene, rng: random.Random, *, detailed: bool, part: Part = "seen", plain: bool = False
) -> Exchange:
    """A request for a caption, or for a detailed description, and its reply; a plain description has one wording."""
    form = "describe_in_detail" if detailed else "describe"
    text = write_freely(fill(pick(FILE, form, part, rng), {}, rng), rng)
    if detailed:
        reply = make_plain_description(scene) if plain else make_description(scene, rng)
    else:
        reply = make_caption(scene, rng)
    return Exchange(text, reply, form, None)


def make_dialogue(
    scene: WideScene, rng: random.Random, *, num_turns: int | None = None, part: Part = "seen"
) -> list[Exchange]:
    """A conversation of 2 to 6 turns: questions, of which half refer to the one before, and some small talk.

    A turn that refers back asks about "it", or asks the same of another class ("and the dog?").
    """
    wanted = num_turns or rng.randint(2, MAX_TURNS)
    turns: list[Exchange] = []
    if rng.random() < 0.12:
        turns.append(make_small_talk(rng, "greeting", part=part))
    elif rng.random() < 0.15:
        turns.append(make_request(scene, rng, detailed=False, part=part))
    ends = rng.random() < 0.2
    while len(turns) < wanted - ends:
        turns.append(_next(scene, rng, turns, part))
    if ends:
        turns.append(make_small_talk(rng, rng.choice(("thanks", "farewell", "praise")), part=part))
    return turns


def _next(scene: WideScene, rng: random.Random, turns: list[Exchange], part: Part) -> Exchange:
    if turns and rng.random() < 0.6:
        follow = _follow(scene, rng, turns, part)
        if follow is not None and all(follow.text != turn.text for turn in turns):
            return follow
    opening = rng.choice((None, "exists", "color", "place", "count", "what", "size"))
    asked = make_question(scene, rng, opening, part=part) or make_question(scene, rng, "exists", part=part)
    assert asked is not None, "asking whether there is something always fits"
    return _exchange(asked)


def _exchange(asked: Asked) -> Exchange:
    subject = asked.facts.get("class") if asked.answer != "no" else None
    if asked.kind == "what":
        subject = asked.answer
    if asked.kind in ("absent", "count", "where", "unanswerable"):
        subject = None
    return Exchange(asked.text, asked.answer, asked.kind, subject)


def _follow(scene: WideScene, rng: random.Random, turns: list[Exchange], part: Part) -> Exchange | None:
    """A turn that only the one before it makes clear; None if that allows none."""
    last = turns[-1]
    if last.subject and count_classes(scene).get(last.subject) == 1 and rng.random() < 0.5:
        form = rng.choice([f for f in _ABOUT_IT if f.removeprefix("it_") != last.kind])
        found = _ABOUT_IT[form](scene, rng, last.subject)
        if found is not None:
            asked = ask(form.removeprefix("it_"), found, rng, form=form, part=part, with_suffix=False)
            return Exchange(asked.text, asked.answer, asked.kind, last.subject)
    if last.kind not in _AGAIN:
        return None
    find, form = _AGAIN[last.kind]
    others = [n for n in count_classes(scene) if n != last.subject]
    if last.kind in ("exists", "count") and rng.random() < 0.4:
        others = [draw_absent(scene, rng)]
    if not others:
        return None
    found = find(scene, rng, rng.choice(others))
    if found is None:
        return None
    return _exchange(ask(last.kind, found, rng, form=form, part=part, with_suffix=False))
