import random
import re

import pytest

from ddit.eval.wide_world import (
    READING_SETS,
    description_requests,
    is_right,
    measure_reading,
    score_descriptions,
    tally,
    tally_tags,
)
from ddit.world.wide import WIDE_PRESETS, WIDE_TAGS, make_prompts, make_scene
from ddit.world.wide.official import BENCHMARKS, make_official_question

WIDE = WIDE_PRESETS["wide"]


@pytest.mark.parametrize("chosen", READING_SETS, ids=lambda chosen: chosen.name)
def test_the_truth_is_right_and_an_empty_answer_wrong(chosen) -> None:
    asked = chosen.items(60, seed=5)
    assert asked == chosen.items(60, seed=5)
    assert tally(asked, [a.answer for a in asked])[0][:3] == ("all", 1.0, 60)
    assert tally(asked, [""] * 60)[0].value == 0
    for asking in asked:
        if chosen.name.startswith("alone"):
            assert len(asking.scene.objects) == 1
            assert asking.scene.ground.kind == chosen.name.split()[-1]
        assert asking.image().size == (64, 64)


def test_an_answer_may_have_digits_articles_and_another_order() -> None:
    asked = READING_SETS[0].items(300)
    count = next(a for a in asked if a.answer == "two")
    listed = next(a for a in asked if a.kind == "list" and "," in a.answer)
    thing = next(a for a in asked if a.kind == "where")
    assert is_right(count, "2")
    assert is_right(listed, ", ".join(reversed(listed.answer.split(", "))))
    assert is_right(thing, f"A {thing.answer}.")
    assert not is_right(thing, "unanswerable")


def test_measuring_asks_in_batches() -> None:
    sizes = []

    def answer(images, questions):
        sizes.append(len(questions))
        return ["yes"] * len(images)

    found = measure_reading(answer, 20, sets=READING_SETS[:1], batch_size=8)
    assert sizes == [8, 8, 4]
    assert found["seen wordings"][0].num == 20


def test_official_sentences_are_the_benchmarks_own() -> None:
    forms = {
        "pope": r"Is there an? [a-z ]+ in the image\?\nAnswer the question using a single word or phrase\.",
        "mme": r"(Is|Are) there? ?[a-z ]+(in (this|the) image)?\? Please answer yes or no\.",
        "vqav2": r"[A-Z][^?\n]+\?\nAnswer the question using a single word or phrase\.",
        "gqa": r"[A-Z][^?\n]+\?\nAnswer the question using a single word or phrase\.",
    }
    for benchmark in BENCHMARKS:
        asked = [
            make_official_question(make_scene(WIDE, "test", i), random.Random(i), benchmark)
            for i in range(150)
        ]
        texts = [a.text for a in asked if a is not None]
        assert len(texts) > 60
        for text in texts:
            assert re.fullmatch(forms[benchmark], text) or (
                benchmark == "mme" and text.startswith("Is the ")
            ), text
    with pytest.raises(ValueError, match="vizwiz"):
        make_official_question(make_scene(WIDE, "test", 0), random.Random(0), "vizwiz")


def test_right_descriptions_score_one_and_those_of_other_scenes_less() -> None:
    asked = description_requests(WIDE, 40)
    right = score_descriptions(asked, [a.answer for a in asked])
    assert (right.objects, right.attributes, right.false) == (1, 1, 0)
    wrong = score_descriptions(asked, [a.answer for a in [*asked[1:], asked[0]]])
    assert wrong.objects < 0.4
    assert wrong.false > 0.3


def test_every_category_is_tallied() -> None:
    prompts = make_prompts(WIDE, 4)
    figures = tally_tags(prompts, [p.tag != "negation" for p in prompts])
    assert [f.name for f in figures] == list(WIDE_TAGS)
    assert {f.name: f.value for f in figures}["negation"] == 0
