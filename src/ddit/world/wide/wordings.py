"""The wordings of prompts and questions: read from prompts.txt and questions.txt, a fifth of each form held out.

Which ones is a function of their texts alone: of each form the wordings with the smallest hashes, never a benchmark's
own sentence. The part "paraphrased" has the seen wordings, and half of the time one that a pattern of
paraphrases/prompts.txt or paraphrases/questions.txt makes.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

Part = Literal["seen", "held_out", "all", "paraphrased"]
HELD_OUT_SHARE = 0.2
PARAPHRASED_SHARE = 0.5

IMAGE_WORDS = ("image", "picture", "photo", "scene")
FILES = ("prompts.txt", "questions.txt", "descriptions.txt")
_IMAGE = re.compile(rf"\b({'|'.join(IMAGE_WORDS)})\b")
_AN_IMAGE = re.compile(r"\ba image\b")
_SLOT = re.compile(r"\{\w+\}")
_ATTEMPTS = 100
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_SPACES = re.compile(" {2,}")


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
    return {form: tuple(_hold_out(form, lines)) for form, lines in _read(file).items()}


def _read(file: str) -> dict[str, list[tuple[str, bool]]]:
    """The lines of each form, and whether they are a benchmark's own."""
    texts: dict[str, list[tuple[str, bool]]] = {}
    form = ""
    for line in files("ddit.world.wide").joinpath(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            form = line[1 : line.index("]")]
            texts[form] = []
        elif line and not line.startswith("#"):
            texts[form].append((line.removeprefix("! "), line.startswith("! ")))
    return texts


@cache
def list_patterns(file: str) -> dict[str, tuple[str, ...]]:
    """The patterns of the forms of `prompts.txt` or `questions.txt`; other files have none."""
    if not files("ddit.world.wide").joinpath(f"paraphrases/{file}").is_file():
        return {}
    return {form: tuple(text for text, _ in lines) for form, lines in _read(f"paraphrases/{file}").items()}


def paraphrase(pattern: str, rng: random.Random) -> str:
    """One of the wordings that a pattern makes; never one that is held out, nor its longest part without a slot.

    Raises:
        ValueError: if the pattern hardly makes any other.
    """
    for _ in range(_ATTEMPTS):
        text = pattern
        while (found := _ALTERNATIVES.search(text)) is not None:
            text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
        text = _SPACES.sub(" ", text).strip().replace(" ?", "?")
        told, (wordings, parts) = _one_word(text), _held_out()
        if told not in wordings and not any(part in told for part in parts):
            return text
    raise ValueError(f"this pattern makes wordings that are held out: {pattern!r}")


@cache
def _held_out() -> tuple[frozenset[str], tuple[str, ...]]:
    """The held-out wordings, and their longest parts without a slot: of three words and more, in no seen wording."""
    listed = [wording for file in FILES for wording in list_wordings(file)]
    seen = "\n".join(_one_word(wording.text) for wording in listed if not wording.held_out)
    held_out = [_one_word(wording.text) for wording in listed if wording.held_out]
    longest = (max(_SLOT.split(text), key=len).strip(" ,;:") for text in held_out)
    return frozenset(held_out), tuple(p for p in longest if len(p.split()) >= 3 and p not in seen)


def _one_word(text: str) -> str:
    """Without a mark at the end, and with one word for an image and for colour."""
    text = text.lower().rstrip("?.!").replace("{an_image}", "an image").replace("{the_x}", "the {x}")
    text = text.replace("{image}", "image").replace("{color_word}", "color").replace("colour", "color")
    text = text.replace("{is}", "is").replace("{does}", "does")
    return _AN_IMAGE.sub("an image", _IMAGE.sub("image", text))


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
    patterns = list_patterns(file).get(form, ()) if part == "paraphrased" and not official else ()
    if patterns and rng.random() < PARAPHRASED_SHARE:
        return Wording(form, paraphrase(rng.choice(patterns), rng), official=False, held_out=False)
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
