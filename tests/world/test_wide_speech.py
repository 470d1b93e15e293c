"""How people write: other names, places and relations in other words, openings and endings."""

import random
import re

import pytest

from ddit.world.wide import read_statements
from ddit.world.wide.speech import (
    SHORT_ANSWER,
    SYNONYMS,
    YES_OR_NO,
    plural,
    rename,
    say_at,
    say_relation,
    write_prompt,
    write_question,
)
from ddit.world.wide.words import PLACES, RELATION_WORDS, SIDES

RNGS = [random.Random(seed) for seed in range(200)]


def test_other_names_keep_number_article_and_case_of_the_rest() -> None:
    renamed = {rename("an airplane, two couches and a car left of a wine glass", rng) for rng in RNGS}
    assert renamed == {
        f"{a}, two sofas and an automobile left of a wine glass" for a in ("a plane", "an aeroplane")
    }


def test_a_part_of_a_longer_name_is_left_alone() -> None:
    for text in ("is the carrot red?", "a stop sign", "three cups of tea and some scarves"):
        assert rename(text.replace("cups", "vases"), RNGS[0]) == text.replace("cups", "vases")


@pytest.mark.parametrize("name", SYNONYMS)
def test_every_other_name_is_read_as_its_class(name: str) -> None:
    for word in SYNONYMS[name]:
        (one,) = read_statements(f"there is a red {word}.").objects
        assert (one.class_name, one.color) == (name, "red")
        many = read_statements(f"there are three {plural(word)}.").objects
        assert [one.class_name for one in many] == [name] * 3


@pytest.mark.parametrize("place", dict.fromkeys((*PLACES, *SIDES)))
def test_a_place_in_other_words_is_the_same_place(place: str) -> None:
    said = {say_at(place, rng) for rng in RNGS}
    assert len(said) >= 3
    for words in said:
        (one,) = read_statements(f"a red dog is {words} of the image.").objects
        assert one.place == place, words


@pytest.mark.parametrize("relation", RELATION_WORDS)
def test_a_relation_in_other_words_is_the_same_relation(relation: str) -> None:
    said = {say_relation(relation, rng) for rng in RNGS}
    assert said > set(RELATION_WORDS[relation])
    for words in said:
        (one, *_) = read_statements(f"a dog is {words} a cat.").objects
        assert [found for found, *_ in one.relations] == [relation], words


def test_questions_have_openings_and_suffixes_and_prompts_have_endings() -> None:
    asked = [write_question("is there a dog?", "yes", rng) for rng in RNGS]
    assert any(text.lower().startswith("is there dog") for text in asked)  # without the article
    asked = [re.sub("is there dog", "is there a dog", text, flags=re.IGNORECASE) for text in asked]
    assert any(text.endswith(YES_OR_NO) for text in asked)
    assert any(text.endswith(SHORT_ANSWER) for text in asked)
    opened = [text for text in asked if not text.lower().startswith("is there a dog")]
    assert 0 < len(opened) < 30
    assert all(re.search(r"[:,!] is there a dog", text, re.IGNORECASE) for text in opened)
    assert not any("\n" in write_question("is there a dog?", "yes", rng, with_suffix=False) for rng in RNGS)
    drawn = [write_prompt("a red dog", rng).lower() for rng in RNGS]
    assert all(text.removeprefix("a ").startswith("red dog") for text in drawn)
    assert any(len(text) > len("a red dog!") for text in drawn)
    said = {write_prompt("can you draw a dog?", rng).lower().rstrip("?") for rng in RNGS}
    assert said <= {"can you draw a dog", "can you draw dog"}
