"""What a class is called, from the name of its folder."""

from __future__ import annotations

import re
import unicodedata

_SYNSET = re.compile(r"^n\d{8}(?=\W|_)")
_NUMBER = re.compile(r"^(?:(?:0\d*|\d{3,})[\W_]+|\d+\.)(?=[^\W\d_])")
"""As of 001.Albatross and 07_dog, but not of 8_ball."""
_CAMEL = re.compile(r"(?<=[a-zß-öø-ÿ]{2})(?=[A-ZÀ-ÖØ-Þ])|(?<=[A-Z])(?=[A-Z][a-z])")
_BETWEEN = re.compile(r"[\s_\-+.,]+")
_AN_LETTERS = "AEFHILMNORSX"
"""Letters whose names begin with a vowel: an MRI, an X ray."""
_AN_SOUND = re.compile(
    r"[aeio]|hours?\b|heir|hones|honou?r|8|1[18](?!\d)|un(?!i)|unim|unin|u[bdghklmpsvwxz](?![eiu])|ur[bcgn]",
    re.I,
)
_A_SOUND = re.compile(r"eu|ewe|once\b|one\b|ouija", re.I)


def clean_name(folder: str) -> str:
    """The name as words: of "n02084071_dog" and "001.dog" it is "dog", of "fire-truck" and "FireTruck" two words.

    The case is kept. A name that is nothing but a number or a synset stays as it is.
    """
    text = unicodedata.normalize("NFC", folder).strip()
    text = _NUMBER.sub("", _SYNSET.sub("", text))
    words = _CAMEL.sub(" ", _BETWEEN.sub(" ", text)).split()
    return " ".join(words) or folder.strip()


def article_for(name: str) -> str:
    """The English indefinite article before a name: by its first letter, and by how a few words sound."""
    word = unicodedata.normalize("NFD", name.split(" ", 1)[0])
    if (len(word) == 1 or (word.isupper() and not set(word) & set("AEIOU"))) and word[:1].isalpha():
        return "an" if word[0].upper() in _AN_LETTERS else "a"
    return "an" if _AN_SOUND.match(word) and not _A_SOUND.match(word) else "a"
