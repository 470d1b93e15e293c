"""The wordings of prompts and questions: read from prompts.txt and questions.txt, a fifth of each form held out.

Which ones is a function of their texts alone: of each form the wordings with the smallest hashes, never a benchmark's
own sentence. `fill` puts one into words as people write them: with and without capitals, marks and suffixes.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

Part = Literal["seen", "held_out", "all"]
PARTS: tuple[Part, ...] = ("seen", "held_out", "all")
HELD_OUT_SHARE = 0.2

IMAGE_WORDS = ("image", "picture", "photo", "scene")
SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's suffix of VQAv2, GQA and POPE."""
YES_OR_NO = "Please answer yes or no."
"""MME's suffix."""


class Wording(NamedTuple):
    """A text with slots in braces. `form` is what it says, whatever its words."""

    form: str
    text: str
    official: bool
    held_out: bool

    @property
    def name(self) -> str:
        return f"{self.form}: {self.text}"


@cache
def _forms(file: str) -> dict[str, tuple[Wording, ...]]:
    texts: dict[str, list[tuple[str, bool]]] = {}
    form = ""
    for line in files("ddit.world.wide").joinpath(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            form = line[1 : line.index("]")]
            texts[form] = []
        elif line and not line.startswith("#"):
            texts[form].append((line.removeprefix("! "), line.startswith("! ")))
    return {form: tuple(_hold_out(form, lines)) for form, lines in texts.items()}


def _hold_out(form: str, lines: list[tuple[str, bool]]) -> Iterator[Wording]:
    free = [text for text, official in lines if not official]
    free.sort(key=lambda text: hashlib.blake2b(f"{form}: {text}".encode()).digest())
    held_out = set(free[: max(1, round(HELD_OUT_SHARE * len(lines)))])
    for text, official in lines:
        yield Wording(form, text, official, text in held_out)


def list_wordings(file: str, form: str | None = None, part: Part = "all") -> list[Wording]:
    """The wordings of `prompts.txt` or `questions.txt`, of one form or of all."""
    found = [w for name, wordings in _forms(file).items() if form in (None, name) for w in wordings]
    if not found:
        raise ValueError(f"unknown form {form!r} of {file}; known: {', '.join(_forms(file))}")
    return [w for w in found if part == "all" or w.held_out == (part == "held_out")]


@cache
def _choices(file: str, form: str, part: Part) -> tuple[Wording, ...]:
    return tuple(list_wordings(file, form, part))


def pick(file: str, form: str, part: Part, rng: random.Random, *, official: bool = False) -> Wording:
    """A random wording of a form; `official`: one of the benchmarks' own, where there are any."""
    choices = _choices(file, form, part)
    if official:
        choices = tuple(w for w in choices if w.official) or choices
    return choices[int(rng.random() * len(choices))]


def fill(wording: Wording, slots: Mapping[str, str], rng: random.Random) -> str:
    """The wording with its slots filled, and a word for the image and for colour where it has room for them."""
    image = IMAGE_WORDS[int(rng.random() * 4)]
    color_word = "colour" if rng.random() < 0.15 else "color"
    an_image = f"{'an' if image == 'image' else 'a'} {image}"
    return wording.text.format_map({"image": image, "an_image": an_image, "color_word": color_word, **slots})


def write_freely(text: str, rng: random.Random) -> str:
    """The text as people write: perhaps with a capital, without its mark, with another, or in capitals."""
    chance = rng.random()
    if chance < 0.3:
        text = text.rstrip("?.!")
    elif chance < 0.4 and not text.endswith("?"):
        text = text.rstrip(".!") + ("." if chance < 0.36 else "!")
    chance = rng.random()
    if chance < 0.45:
        text = text[0].upper() + text[1:]
    elif chance < 0.47:
        text = text.upper()
    return text
