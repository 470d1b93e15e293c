"""The wordings of prompts and questions: read from prompts.txt and questions.txt, a fifth of each form held out.

Which ones is a function of their texts alone: of each form the wordings with the smallest hashes, never a benchmark's
own sentence.
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
