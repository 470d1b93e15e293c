"""How people write what a wording says: other names of things, openings and endings, marks, capitals, suffixes."""

import random
import re
from functools import cache

from .words import RELATION_WORDS, article, at, noun

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's suffix of VQAv2, GQA and POPE."""
YES_OR_NO = "Please answer yes or no."
"""MME's suffix."""

SYNONYMS = {
    "airplane": ("plane", "aeroplane"), "backpack": ("rucksack",), "bicycle": ("bike",), "car": ("automobile",),
    "cell phone": ("phone", "mobile phone", "smartphone"), "couch": ("sofa",), "cup": ("mug",), "donut": ("doughnut",),
    "handbag": ("purse",), "motorcycle": ("motorbike",), "person": ("human",), "potted plant": ("plant",),
    "sports ball": ("ball",), "teddy bear": ("teddy",), "traffic light": ("stoplight",), "truck": ("lorry",),
    "tv": ("television", "tv set"),
}  # fmt: skip
"""Other names of classes."""
_IMAGE_SYNONYMS = {"picture": ("pic",), "photo": ("photograph",)}
_PLURALS: dict[str, str] = {"lorry": "lorries"}
_OPENINGS = (
    "question: ", "quick question: ", "i have a question: ", "please tell me: ", "please answer: ", "tell me, ", "hi, ",
    "hey, ", "hello! ", "ok, ", "so, ", "well, ", "now, ", "look at the picture: ", "about this image: ", "one more: ",
    "could you tell me: ", "let me ask: ", "another question: ", "looking at the image, ", "please: ", "just asking: ",
)  # fmt: skip
_PROMPT_ENDINGS = (
    ", please", ", thanks", ", high quality", ", simple", ", 4k", ", sharp", ", emoji style", ", clean drawing",
    ", digital art", ", nothing else",
)  # fmt: skip
_ARTICLES = re.compile(r"\b(a|an|the) ", re.IGNORECASE)
OTHER_RELATIONS = {
    "left of": ("on the left side of", "at the left of"),
    "right of": ("on the right side of", "at the right of"),
    "above": ("higher than",),
    "below": ("underneath", "lower than"),
}
_CORNER = ("in the {} corner", "in the {}", "at the {}")


def say_relation(relation: str, rng: random.Random) -> str:
    return rng.choice((*RELATION_WORDS[relation], *OTHER_RELATIONS[relation]))


def say_at(place: str, rng: random.Random) -> str:
    """Words for a side or a field of the image: "on the left", "in the upper left corner"."""
    if rng.random() < 0.5:
        return at(place)
    if place == "middle":
        return rng.choice(("in the center", "in the centre", "at the center"))
    if " " in place:
        words = place if rng.random() < 0.5 else place.replace("top", "upper").replace("bottom", "lower")
        return rng.choice(_CORNER).format(words)
    if place in ("left", "right"):
        return rng.choice((f"on the {place} side", f"at the {place}", f"in the {place} half"))
    return rng.choice((f"in the {place} half", f"in the {'upper' if place == 'top' else 'lower'} part"))


def plural(synonym: str) -> str:
    return _PLURALS.get(synonym, f"{synonym}s")


@cache
def _names() -> tuple[re.Pattern[str], dict[str, tuple[str, ...]]]:
    """Finds the names that have synonyms, perhaps with their article; and the synonyms of each."""
    others: dict[str, tuple[str, ...]] = {**SYNONYMS, **_IMAGE_SYNONYMS}
    others |= {noun(name, 2): tuple(map(plural, own)) for name, own in SYNONYMS.items()}
    longest = sorted(others, key=len, reverse=True)
    return re.compile(rf"\b(an? )?({'|'.join(longest)})\b"), others


def rename(text: str, rng: random.Random) -> str:
    """The text with other names of things, where they have any."""
    pattern, others = _names()

    def other(found: re.Match[str]) -> str:
        word = rng.choice(others[found[2]])
        return article(word) if found[1] else word

    return pattern.sub(other, text)


def write_freely(text: str, rng: random.Random) -> str:
    """The text as people write: perhaps with other names, without articles, with another mark or none, in capitals."""
    if rng.random() < 0.1:
        text = rename(text, rng)
    chance = rng.random()
    if chance < 0.3:
        text = text.rstrip("?.!")
    elif chance < 0.4 and not text.endswith("?"):
        text = text.rstrip(".!") + ("." if chance < 0.36 else "!")
    elif chance > 0.96:
        text = _ARTICLES.sub("", text)
    chance = rng.random()
    if chance < 0.45:
        text = text[0].upper() + text[1:]
    elif chance < 0.47:
        text = text.upper()
    return text


def write_question(text: str, answer: str, rng: random.Random, *, with_suffix: bool = True) -> str:
    """A question as people write it: now and then after a few words, or with a benchmark's suffix."""
    if rng.random() < 0.06:
        text = rng.choice(_OPENINGS) + text
    text = write_freely(text, rng)
    return _add_suffix(text, answer, rng) if with_suffix else text


def write_prompt(text: str, rng: random.Random) -> str:
    """A prompt as people write it: now and then with a few words more."""
    if rng.random() < 0.06 and not text.endswith(("?", ".")):
        text += rng.choice(_PROMPT_ENDINGS)
    return write_freely(text, rng)


def _add_suffix(text: str, answer: str, rng: random.Random) -> str:
    chance = rng.random()
    link = " " if text.endswith(("?", ".", "!")) and rng.random() < 0.5 else "\n"
    if answer in ("yes", "no") and chance < 0.12:
        return text + link + YES_OR_NO
    return text + link + SHORT_ANSWER if chance < 0.24 else text
