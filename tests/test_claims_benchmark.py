"""What the audits of the results page take for a twin, for a blank and for POPE's own sentence."""

import random
from dataclasses import replace

import pytest

from benchmarks.claims import OWN_POPE, foreground, training_pools
from benchmarks.infilling import BLANK, blank_words, caption_of
from ddit.world import PRESETS, caption_is_right, make_scene


def test_twins_differ_in_their_background_alone() -> None:
    scenes = [make_scene(PRESETS["fixed"], "test", index) for index in range(50)]
    scene = next(scene for scene in scenes if len(scene.objects) == 2)
    first, second = scene.objects
    twin = replace(scene, objects=(second, first), background=((180, 180, 180), (190, 190, 190)), index=999)
    moved = replace(scene, objects=(replace(first, left=first.left + 1), second))
    assert foreground(scene) == foreground(twin)
    assert foreground(scene) != foreground(moved)
    assert len({foreground(each) for each in scenes}) > 40


def test_the_pools_are_those_of_the_recipe() -> None:
    assert sorted(count for _, count, _ in training_pools()) == [40_000, 150_000]


@pytest.mark.parametrize("num_blanks", [1, 3, None])
def test_as_many_words_are_blank_as_asked_for(num_blanks: int | None) -> None:
    caption = "a red dog left of a car"
    text = blank_words(caption, num_blanks, random.Random(0))
    assert text is not None
    words = text.split()
    assert words.count(BLANK) == (num_blanks or 7)
    assert all(word in (BLANK, own) for word, own in zip(words, caption.split(), strict=True))
    assert blank_words(caption, 8, random.Random(0)) is None


def test_the_captions_are_right_before_words_are_left_out() -> None:
    for index in range(20):
        scene = make_scene(PRESETS["fixed"], "test", index)
        for opening in ("", "a photo of"):
            caption = caption_of(scene, opening, random.Random(index))
            assert caption.startswith(opening)
            assert caption_is_right(scene, caption, complete=True)


def test_popes_own_sentence_is_made_of_the_worlds_question() -> None:
    asked = OWN_POPE.sub(r"Is there \1 in the image?", "is there an apple?")
    assert asked == "Is there an apple in the image?"
