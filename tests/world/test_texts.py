import random
import re
from collections import Counter

import pytest

from ddit.world import (
    PRESETS,
    QUESTION_KINDS,
    UNANSWERABLE,
    Scene,
    SceneObject,
    WorldConfig,
    caption_is_right,
    is_held_out,
    list_captions,
    list_vocabulary,
    make_caption,
    make_question,
    make_scene,
    parse_caption,
)

CONFIG = PRESETS["fixed"]
SCENES = [make_scene(CONFIG, "train", i) for i in range(1500)]
BACKGROUND = ((190, 190, 190), (190, 190, 190))


def scene(*objects, kind="two"):
    items = tuple(SceneObject(name, color, "noto", x, y, 30) for name, color, x, y in objects)
    return Scene(WorldConfig(), "test", 0, 0, kind, items, BACKGROUND)


DOG_AND_CAR = scene(("dog", "red", 0, 17), ("car", "blue", 33, 17))
THREE_BUSES = scene(("bus", "pink", 0, 0), ("bus", "pink", 33, 0), ("bus", "pink", 0, 33), kind="count")


def words(text):
    return re.findall(r"[a-z]+|[?.,]", text)


def test_every_wording_is_right_and_complete():
    for i, s in enumerate(SCENES[:400]):
        rng = random.Random(i)
        assert all(caption_is_right(s, text, complete=True) for text in list_captions(s))
        assert make_caption(s, rng) in list_captions(s)
        assert caption_is_right(s, make_caption(s, rng, complete=False))


def test_incomplete_captions_sometimes_leave_out_colours_and_relations():
    rng = random.Random(0)
    texts = {make_caption(DOG_AND_CAR, rng, complete=False) for _ in range(300)}
    assert {"a photo of a dog and a car", "a photo of a red dog and a blue car"} <= texts
    assert {"a photo of a dog left of a car", "a photo of a red dog left of a blue car"} <= texts


@pytest.mark.parametrize(
    "text",
    [
        "a red dog left of a blue car", "a blue car right of a red dog",
        "there is a red dog to the left of a blue car",
        "a photo of a dog and a car", "a picture of a car to the right of a dog.", "a dog left of a blue car",
    ],
)  # fmt: skip
def test_parser_accepts(text):
    assert caption_is_right(DOG_AND_CAR, text)


@pytest.mark.parametrize(
    "text",
    [
        "a blue dog left of a red car", "a red dog right of a blue car", "a red dog above a blue car",
        "a red dog",
        "a red cat left of a blue car", "two red dogs and a blue car",
        "a red dog left of a blue car and a cat",
        "", "a photo of", "dog", "a red", "left of", "a dogs left of a car", "zero dogs and a car",
    ],
)  # fmt: skip
def test_parser_refuses(text):
    assert not caption_is_right(DOG_AND_CAR, text)


def test_a_complete_caption_names_colours_and_relation():
    assert not caption_is_right(DOG_AND_CAR, "a dog left of a car", complete=True)
    assert not caption_is_right(DOG_AND_CAR, "a red dog and a blue car", complete=True)
    assert caption_is_right(THREE_BUSES, "there are three pink buses", complete=True)
    assert not caption_is_right(THREE_BUSES, "two pink buses")
    assert not caption_is_right(scene(("elephant", None, 9, 9), kind="single"), "a white elephant")


def test_parse_caption_reads_groups_and_relation():
    stated = parse_caption("a photo of two sheep and an orange apple")
    assert [tuple(g.__dict__.values()) for g in stated.groups] == [("sheep", None, 2), ("apple", "orange", 1)]
    assert stated.relation is None
    assert parse_caption("a dog to the right of a cup").relation == "right of"


def test_texts_use_the_vocabulary_and_stay_short():
    known = set(list_vocabulary())
    for i, s in enumerate(SCENES):
        rng = random.Random(i)
        asked = make_question(s, rng)
        texts = [make_caption(s, rng), make_caption(s, rng, complete=False), f"{asked.text} {asked.answer}"]
        for text, most in zip(texts, (22, 22, 20), strict=True):
            assert set(words(text)) <= known
            assert len(words(text)) <= most


@pytest.mark.parametrize(
    ("kind", "highest"),
    [("count", 0.36), ("color", 0.17), ("what", 0.11), ("where", 0.13), ("relation", 0.58), ("exists", 0.56),
     ("exists_color", 0.56), ("exists_count", 0.56)],
)  # fmt: skip
def test_no_answer_is_a_good_guess(kind, highest):
    asked = [make_question(s, random.Random(i), kind) for i, s in enumerate(SCENES)]
    answers = Counter(q.answer for q in asked if q)
    assert sum(answers.values()) > 150
    assert answers.most_common(1)[0][1] / sum(answers.values()) < highest


def test_answers_are_true():
    assert make_question(DOG_AND_CAR, random.Random(0), "what") is None
    assert make_question(DOG_AND_CAR, random.Random(0), "exists_count") is None
    for i in range(200):
        rng = random.Random(i)
        text, answer, _ = make_question(DOG_AND_CAR, rng, "color")
        assert answer == {"dog": "red", "car": "blue"}[words(text)[-2]]
        text, answer, _ = make_question(DOG_AND_CAR, rng, "where")
        assert (text, answer) in {("what is left of the car?", "dog"), ("what is right of the dog?", "car")}
        text, answer, _ = make_question(DOG_AND_CAR, rng, "relation")
        true = {"is the dog left of the car?", "is the car right of the dog?"}
        assert (text in true) == (answer == "yes")
        text, answer, _ = make_question(DOG_AND_CAR, rng, "exists")
        assert (text in {"is there a dog?", "is there a car?"}) == (answer == "yes")
        text, answer, _ = make_question(DOG_AND_CAR, rng, "exists_color")
        assert (text in {"is there a red dog?", "is there a blue car?"}) == (answer == "yes")
        text, answer, _ = make_question(THREE_BUSES, rng, "exists_count")
        assert text in {f"are there {number} buses?" for number in ("two", "three", "four")}
        assert (text == "are there three buses?") == (answer == "yes")
        text, answer, _ = make_question(DOG_AND_CAR, rng, "unanswerable")
        assert answer == UNANSWERABLE
        assert not {"dog", "car"} & set(words(text))
    assert make_question(THREE_BUSES, random.Random(0), "count")[:2] == ("how many buses are there?", "three")


def test_the_default_mixture_holds_every_kind_and_training_names_no_held_out_colour():
    asked = [make_question(s, random.Random(i)) for i, s in enumerate(SCENES)]
    assert {q.kind for q in asked} == set(QUESTION_KINDS)
    for q in asked:
        if q.kind == "exists_color":
            assert not is_held_out(*reversed(words(q.text)[-3:-1]))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="why"):
        make_question(DOG_AND_CAR, random.Random(0), "why")
