"""Patterns of wordings for training: they make many, all of which can be said, and none that is held out."""

import random
import re
from collections import Counter

import pytest

from ddit.pipeline import Pipeline
from ddit.world.wide import WIDE_PRESETS, list_wordings, make_prompt, make_question, make_scene
from ddit.world.wide.wordings import PARAPHRASED_SHARE, list_patterns, paraphrase, pick

SCENES = [make_scene(WIDE_PRESETS["wide"], "train", i) for i in range(40)]
FILES = ("prompts.txt", "questions.txt")
SLOT = re.compile(r"\{(\w+)\}")
OF_ALL_FORMS = {"image", "an_image", "color_word"}
IMAGES = re.compile(r"\b(picture|photo|scene)\b")


def said(text: str) -> str:
    """Without what differs between two texts of the same wording."""
    text = text.lower().rstrip("?.!").replace("{an_image}", "an {image}").replace("{image}", "image")
    text = IMAGES.sub("image", text).replace("a image", "an image").replace("{the_x}", "the {x}")
    return text.replace("{color_word}", "color").replace("colour", "color")


@pytest.mark.parametrize("file", FILES)
def test_patterns_have_the_slots_of_their_form_and_alternatives_that_close(file: str) -> None:
    patterns = list_patterns(file)
    forms = Counter(w.form for w in list_wordings(file))
    assert set(forms) - set(patterns) <= {"caption"}  # what a model writes, not what it is told
    for form, own in patterns.items():
        slots = {s for w in list_wordings(file, form) for s in SLOT.findall(w.text)} | OF_ALL_FORMS
        assert len(set(own)) == len(own)
        for pattern in own:
            assert set(SLOT.findall(pattern)) <= slots, pattern
            depths = [pattern[:end].count("(") - pattern[:end].count(")") for end in range(len(pattern) + 1)]
            assert min(depths) == depths[-1] == 0, pattern
            assert not set("|()") & set(paraphrase(pattern, random.Random(0)))


@pytest.mark.parametrize("file", FILES)
def test_no_pattern_makes_a_wording_that_is_held_out_though_some_could(file: str) -> None:
    held_out = {said(w.text) for w in list_wordings(file, part="held_out")}
    rng, made = random.Random(1), set()
    for own in list_patterns(file).values():
        made |= {said(paraphrase(pattern, rng)) for pattern in own for _ in range(200)}
    assert len(made) > {"prompts.txt": 3_000, "questions.txt": 15_000}[file]
    assert not made & held_out
    target = next(w.text for w in list_wordings(file, part="held_out") if "{" in w.text)
    assert {paraphrase(f"({target}|another)", rng) for _ in range(50)} == {"another"}


def test_the_packaged_model_knows_the_words_of_all_patterns() -> None:
    codec = Pipeline.from_pretrained("mini").text_codec
    patterns = [p for file in FILES for own in list_patterns(file).values() for p in own]
    words = dict.fromkeys(re.findall("[a-z]+", " ".join(SLOT.sub(" ", pattern) for pattern in patterns)))
    assert codec.unknown_words(" ".join(words)) == []


def test_half_of_the_paraphrased_wordings_are_of_patterns_and_the_others_seen() -> None:
    seen = {w.text for w in list_wordings("questions.txt", "exists", "paraphrased")}
    assert seen == {w.text for w in list_wordings("questions.txt", "exists", "seen")}
    rng = random.Random(2)
    picked = [pick("questions.txt", "exists", "paraphrased", rng).text for _ in range(2_000)]
    assert abs(sum(text not in seen for text in picked) / 2_000 - PARAPHRASED_SHARE) < 0.06
    official = pick("questions.txt", "exists", "paraphrased", rng, official=True)
    assert official.official


def test_questions_and_prompts_of_scenes_are_paraphrased() -> None:
    rng, texts = random.Random(3), set()
    for scene in SCENES * 20:
        asked = make_question(scene, rng, part="paraphrased")
        prompt = make_prompt(scene, rng, part="paraphrased")
        assert asked is not None
        assert not set("{|}()") & set(asked.text + prompt.text), (asked, prompt)
        texts.update((asked.text, prompt.text))
    assert len(texts) > 1_500
