import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from world.wide_answers import answer, named_classes

from ddit.world import COLORS
from ddit.world.wide import (
    WIDE_PRESETS,
    WIDE_QUESTION_KINDS,
    is_held_out,
    make_dialogue,
    make_question,
    make_request,
    make_scene,
    make_small_talk,
)
from ddit.world.wide.dialogues import SMALL_TALK
from ddit.world.wide.finders import FINDERS
from ddit.world.wide.questions import FILE, ask
from ddit.world.wide.speech import SHORT_ANSWER, YES_OR_NO
from ddit.world.wide.wordings import Part, list_wordings

WIDE = WIDE_PRESETS["wide"]
SCENES = [make_scene(WIDE, split, i) for split in ("test", "heldout") for i in range(130)]


@pytest.mark.parametrize("part", ["all", "paraphrased"])
@pytest.mark.parametrize("kind", WIDE_QUESTION_KINDS)
def test_every_wording_of_a_question_has_the_answer_that_the_scene_gives(kind: str, part: Part) -> None:
    wordings, seen = {w.text for w in list_wordings(FILE, "size" if kind == "unanswerable" else kind)}, set()
    answers = Counter()
    for scene in SCENES:
        for number in range(5):
            one = make_question(scene, random.Random(f"{scene.index}/{number}"), kind, part=part)
            if one is None:
                continue
            assert one.answer == answer(scene.to_json(), kind, one.facts), (one, scene)
            seen.add(one.wording.text)
            answers[one.answer] += 1
            asked = {n for n in [one.facts.get("class"), *one.facts.get("classes", [])] if n}
            assert named_classes(one.text) == asked, one
            text = one.text.lower()
            assert "{" not in text
            if one.facts.get("color") and kind != "which_color":
                colors = set(re.findall(rf"\b({'|'.join(COLORS)})\b", text))
                assert one.facts["color"] in colors, one
    assert wordings <= seen or part != "all"
    if set(answers) <= {"yes", "no"}:
        assert 0.3 < answers["yes"] / answers.total() < 0.7, answers


def test_every_form_has_eight_wordings_and_more_and_a_fifth_is_held_out() -> None:
    forms = Counter(w.form for w in list_wordings(FILE))
    held_out = Counter(w.form for w in list_wordings(FILE, part="held_out"))
    assert min(forms.values()) >= 10
    for form, number in forms.items():
        assert number - held_out[form] >= 8, form
        assert 1 <= held_out[form] <= 0.3 * number, form
    assert abs(held_out.total() / forms.total() - 0.2) < 0.02


def test_the_benchmarks_own_sentences_are_asked_and_never_held_out() -> None:
    assert not any(w.official for w in list_wordings(FILE, part="held_out"))
    scene = SCENES[0]
    texts = {
        ask("exists", FINDERS["exists"][0](scene, rng), rng, official=True, plain=True).text  # pyright: ignore
        for rng in map(random.Random, range(300))
    }
    name = re.escape("is there a car in the image?").replace("a\\ car", r"an? [a-z ]+")
    assert any(re.fullmatch(name, text) for text in texts), "POPE's sentence"
    many = [make_question(scene, random.Random(i)) for i in range(600)]
    suffixes = [q for q in many if q and q.text.endswith(YES_OR_NO)]
    assert suffixes
    assert all(q.answer in ("yes", "no") for q in suffixes)
    assert any(q and q.text.endswith("\n" + SHORT_ANSWER) for q in many)


def test_texts_come_with_and_without_marks_capitals_and_in_both_spellings() -> None:
    texts = [q.text for i in range(800) if (q := make_question(SCENES[i % 260], random.Random(i)))]
    bare = [t for t in texts if SHORT_ANSWER not in t and YES_OR_NO not in t]
    shares = [
        sum(t.endswith("?") for t in bare) / len(bare),
        sum(t[0].isupper() for t in bare) / len(bare),
        sum(t.isupper() for t in bare) / len(bare),
    ]
    assert 0.4 < shares[0] < 0.8
    assert 0.3 < shares[1] < 0.6
    assert 0 < shares[2] < 0.06
    for word in ("image", "picture", "photo", "scene", "colour", "color"):
        assert any(word in t for t in bare), word


def test_a_question_is_a_pure_function_and_unknown_kinds_are_refused() -> None:
    assert make_question(SCENES[0], random.Random(3)) == make_question(SCENES[0], random.Random(3))
    with pytest.raises(ValueError, match="shape"):
        make_question(SCENES[0], random.Random(3), "shape")


def test_a_kind_is_asked_as_often_as_its_emphasis_says() -> None:
    def share(emphasis: dict[str, float]) -> float:
        asked = [make_question(SCENES[0], random.Random(i), emphasis=emphasis) for i in range(1500)]
        return sum(one is not None and one.kind == "style" for one in asked) / len(asked)

    usual = share({})
    assert 0 < usual < 0.05
    assert share({"style": 10.0}) == pytest.approx(10 * usual / (1 + 9 * usual), rel=0.4)
    assert share({"style": 0.0}) == 0
    single = next(scene for scene in SCENES if len(scene.objects) == 1)
    of_two = {name: float(name == "binding") for name in WIDE_QUESTION_KINDS}
    asked = make_question(single, random.Random(0), emphasis=of_two)  # nothing of that kind can be asked here
    assert asked is not None
    assert asked.kind != "binding"


def test_training_texts_name_no_held_out_colour() -> None:
    for index in range(400):
        scene = make_scene(WIDE, "train", index)
        for kind in ("exists_color", "binding", "color_check", "color_choice"):
            one = make_question(scene, random.Random(index), kind)
            if one is not None and "class" in one.facts and "color" in one.facts:
                assert not is_held_out(one.facts["class"], one.facts["color"])
            elif one is not None and "colors" in one.facts:
                pairs = zip(one.facts["classes"], one.facts["colors"], strict=True)
                assert not any(is_held_out(*pair) for pair in pairs)


def test_conversations_refer_back_and_stay_right() -> None:
    referring = 0
    rng = random.Random(5)
    for scene in SCENES * 2:
        turns = make_dialogue(scene, rng, part="all")
        assert 2 <= len(turns) <= 6
        for before, turn in pairwise(turns):
            refers_to_it = re.search(r"\bits?\b|\bthat's\b|^and its|^(and )?the style", turn.text.lower())
            if (
                turn.kind in ("color", "place", "size", "style")
                and not named_classes(turn.text)
                and refers_to_it
            ):
                referring += 1
                facts = {"class": before.subject}
                assert turn.reply == answer(scene.to_json(), turn.kind, facts), (before, turn)
            elif turn.kind == before.kind and turn.kind in (
                "color",
                "place",
                "size",
                "style",
                "exists",
                "count",
            ):
                names = named_classes(turn.text)
                assert len(names) == 1, turn
                assert turn.reply == answer(scene.to_json(), turn.kind, {"class": names.pop()}), turn
                referring += 1
    assert referring > 150


def test_small_talk_and_requests_are_answered() -> None:
    for form, reply in SMALL_TALK.items():
        assert make_small_talk(random.Random(0), form).reply == reply
    request = make_request(SCENES[0], random.Random(0), detailed=True)
    assert len(request.reply.split()) > 25
