import random
import re
from collections import Counter

import pytest
from world.wide_answers import named_classes, relations

from ddit.config.data import WideData
from ddit.data.sources import WideSource
from ddit.world import Prompt, check_detections
from ddit.world.geneval import Detection
from ddit.world.wide import (
    WIDE_PRESETS,
    WIDE_PROMPT_FORMS,
    WIDE_TAGS,
    Part,
    caption_is_right,
    is_held_out,
    list_wordings,
    make_caption,
    make_description,
    make_plain_description,
    make_prompt,
    make_prompts,
    make_scene,
    read_statements,
    say_plainly,
    score_description,
    wordings,
)
from ddit.world.wide.descriptions import count_tokens

WIDE = WIDE_PRESETS["wide"]
SCENES = [make_scene(WIDE, split, i) for split in ("test", "heldout") for i in range(300)]
HELD_OUT_PROMPTS = ["single: generate {an_image} of {a}", "single: {an_image} that has {a} in it"]
FILES = ("prompts.txt", "questions.txt", "descriptions.txt")


@pytest.mark.parametrize("file", FILES)
def test_every_form_has_eight_seen_wordings_and_a_fifth_is_held_out(file: str) -> None:
    forms = Counter(w.form for w in list_wordings(file))
    held_out = Counter(w.form for w in list_wordings(file, part="held_out"))
    for form, number in forms.items():
        assert number - held_out[form] >= 8, form
        assert held_out[form] >= 1, form
    assert abs(held_out.total() / forms.total() - 0.2) < 0.02
    texts = [(w.form, w.text) for w in list_wordings(file)]
    assert len(set(texts)) == len(texts)


def test_which_wordings_are_held_out_does_not_change() -> None:
    """The list is part of every score on held-out wordings."""
    held_out = [w.name for w in list_wordings("prompts.txt", part="held_out")]
    assert held_out[:2] == HELD_OUT_PROMPTS
    with pytest.raises(ValueError, match="singel"):
        list_wordings("prompts.txt", "singel")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["seen", "paraphrased"])
def test_no_held_out_wording_is_in_20000_training_samples(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    choices = wordings._choices

    def spy(file: str, form: str, part: str):
        used.append((file, form, part))
        return choices(file, form, part)

    monkeypatch.setattr(wordings, "_choices", spy)
    source, texts = WideSource(WideData(wordings=part)), []
    for index in range(10_000):
        texts.append(source.sample(index, random.Random(index), i2t=False, with_image=False).caption or "")
        turns = source.sample(index, random.Random(index), i2t=True, with_image=False).turns
        texts.append(" | ".join(f"{turn.question or ''} | {turn.answer}" for turn in turns))
    assert len(texts) == 20_000
    chosen = {w.name: w for use in set(used) for w in choices(*use)}
    assert len(chosen) > 300
    assert not any(w.held_out for w in chosen.values())
    everything = same_image("\n".join(texts).lower())
    for literal in distinctive_literals():
        assert literal not in everything, literal


def same_image(text: str) -> str:
    """With one word for an image and for colour."""
    text = text.replace("{an_image}", "an image").replace("{image}", "image").replace("{color_word}", "color")
    text = text.replace("{the_x}", "the {x}")
    return re.sub(r"\bcolour\b", "color", re.sub(r"\b(a picture|a photo|a scene)\b", "an image",
                  re.sub(r"(?<!a )\b(picture|photo|scene)\b", "image", text)))  # fmt: skip


def distinctive_literals() -> list[str]:
    """Of the held-out wordings the longest part without a slot, if no seen wording has it."""
    listed = [w for file in FILES for w in list_wordings(file)]
    seen = "\n".join(same_image(w.text) for w in listed if not w.held_out)
    found = []
    for wording in listed:
        literal = max(re.split(r"\{\w+\}", same_image(wording.text.rstrip("?."))), key=len)
        literal = literal.lstrip(" ,;:")  # an opening such as "hi, " may come before a seen wording
        if wording.held_out and len(literal.split()) >= 3 and literal.strip() not in seen:
            found.append(literal)
    assert len(found) >= 20
    return found


@pytest.mark.parametrize("part", ["all", "paraphrased"])
def test_prompts_name_what_the_scene_shows(part: Part) -> None:
    forms = Counter()
    for index, scene in enumerate(SCENES * 3):
        prompt = make_prompt(scene, random.Random(index), part=part)
        forms[prompt.wording.form] += 1
        names = {o.class_name for o in scene.objects}
        told = named_classes(prompt.text)
        form = prompt.wording.form
        assert told >= names, prompt
        assert len(told - names) == (form == "negation"), prompt
        if form == "binding":
            text = prompt.text.lower()
            for item in scene.objects:
                assert item.color is not None
                assert item.color in text
        if form not in ("negation", "binding", "style", "size", "bare", "sides", "relation"):
            assert score_description(scene, prompt.text).false_statements == 0 or part != "all", prompt
    assert set(forms) == set(WIDE_PROMPT_FORMS)


def test_captions_are_complete_and_right_and_a_wrong_one_is_told() -> None:
    for index, scene in enumerate(SCENES):
        for part in ("seen", "held_out"):
            text = make_caption(scene, random.Random(index), part=part)
            assert caption_is_right(scene, text, complete=True), (text, scene)
        other = SCENES[index - 1]
        assert caption_is_right(other, text) <= (
            sorted(o.class_name for o in other.objects) == sorted(o.class_name for o in scene.objects)
        )


@pytest.mark.parametrize("part", ["seen", "held_out"])
def test_descriptions_are_complete_right_and_40_to_128_tokens_long(part: Part) -> None:
    lengths, orders = [], set()
    for index, scene in enumerate(SCENES[100:500]):
        text = make_description(scene, random.Random(index), part=part)
        score = score_description(scene, text)
        assert (score.objects, score.attributes, score.false) == (1, 1, 0), (text, score)
        lengths.append(count_tokens(text))
        orders.add(text.index(" background") < 40 if " background" in text else True)
        stated = read_statements(text)
        assert stated.total == len(scene.objects)
        assert stated.absent
        for mention in stated.objects:
            assert all((mention.color, mention.style, mention.size, mention.place)), (text, mention)
            item = [o for o in scene.to_json()["objects"] if o["class"] == mention.class_name]
            for relation, name, _ in mention.relations:
                others = [o for o in scene.to_json()["objects"] if o["class"] == name]
                assert any(relation in relations(a, b) for a in item for b in others if a is not b)
    assert min(lengths) >= 40
    assert max(lengths) <= 128
    assert len(orders) == 2


def scene_of(number: int):
    return next(
        s for s in SCENES
        if len(s.objects) == number and len({o.class_name for o in s.objects}) == number
        and all(o.color for o in s.objects)
    )  # fmt: skip


def test_the_plain_description_is_complete_and_right() -> None:
    for scene in SCENES:
        text = make_plain_description(scene)
        score = score_description(scene, text)
        assert (score.objects, score.attributes, score.false) == (1, 1, 0), text
        assert count_tokens(text) <= 128


def test_made_errors_cost_what_they_should() -> None:
    scene = scene_of(3)
    text = make_description(scene, random.Random(1))
    right = score_description(scene, text)
    item = scene.objects[0]
    swapped = re.sub(rf"\b{item.color}\b", "purple" if item.color != "purple" else "green", text)
    worse = score_description(scene, swapped)
    assert worse.right_objects == right.right_objects
    assert worse.right_attributes < right.right_attributes
    assert worse.false_statements >= 1
    added = score_description(
        scene, text + " There is a small red zebra-free " + absent(scene) + " at the top."
    )
    assert added.false_statements >= 1
    assert added.right_attributes == right.right_attributes
    kept = ". ".join(s for s in text.split(". ") if item.class_name not in s.lower())
    dropped = score_description(scene, kept)
    assert dropped.right_objects < right.right_objects
    assert score_description(scene, "").objects == 0
    assert score_description(scene, "").false == 0


def absent(scene) -> str:
    return next(n for n in ("cup", "cow", "kite", "bus") if n not in {o.class_name for o in scene.objects})


@pytest.mark.parametrize("attribute", ["style", "size", "place", "ground", "total", "absent"])
def test_a_false_statement_of_each_kind_is_counted(attribute: str) -> None:
    scene = scene_of(1)
    item = scene.objects[0]
    wrong = {
        "style": f"a {item.class_name} in {'noto' if item.style != 'noto' else 'fluent'} style.",
        "size": f"a {'small' if item.size > 30 else 'huge'} {item.class_name}.",
        "place": f"a {item.class_name} at the {'bottom right' if item.x < 40 else 'top left'}.",
        "ground": f"a {item.class_name} on a {'black' if scene.ground.tone != 'black' else 'white'} background.",
        "total": f"there are three objects, a {item.class_name} is one.",
        "absent": f"there is no {item.class_name}.",
    }[attribute]
    assert score_description(scene, wrong).false_statements == 1, wrong


def test_other_words_for_the_same_are_read() -> None:
    stated = read_statements(
        "Two red dogs and a big blue cat are on the left side of the image, against a plain grey backdrop. "
        "The cat is in the upper left corner, underneath the dog; no car."
    )
    assert Counter(m.class_name for m in stated.objects)["dog"] == 2
    assert (stated.ground_kind, stated.ground_color, stated.absent) == ("plain", "gray", ["car"])
    bound = read_statements("The cat is red and the dog is blue.")
    assert {(m.class_name, m.color) for m in bound.objects} == {("cat", "red"), ("dog", "blue")}
    sides = read_statements("A cat on the left and a dog on the right")
    assert {(m.class_name, m.place) for m in sides.objects} == {("cat", "left"), ("dog", "right")}


def test_in_plain_words_a_prompt_is_genevals_and_asks_for_the_same() -> None:
    compared = 0
    for prompt in make_prompts(WIDE, 20, official=True):
        if prompt.tag not in WIDE_TAGS[:6]:
            continue
        said = re.findall("[a-z]+", prompt.text.lower())
        classes = " ".join(entry["class"] for entry in prompt.include).split()
        named = [word for word in re.findall("[a-z]+", say_plainly(prompt)) if word in classes]
        if set(named) <= set(said):  # not in other words, such as "bike"
            assert [word for word in said if word in named] == named
            compared += 1
    assert compared > 60
    pair = [{"class": "car", "count": 1}, {"class": "carrot", "count": 1}]
    assert (
        say_plainly(Prompt("draw a carrot with a car", "two_object", pair)) == "a photo of a carrot and a car"
    )
    two = next(p for p in make_prompts(WIDE, 1) if p.tag == "binding")
    (first, one), (second, other) = ((e["class"], e["color"]) for e in two.include)
    if two.text.index(first) > two.text.index(second):
        first, one, second, other = second, other, first, one
    assert re.fullmatch(rf"a photo of an? {one} {first} and an? {other} {second}", say_plainly(two))


@pytest.mark.parametrize("part", ["seen", "held_out"])
def test_prompts_for_evaluation_have_every_tag_and_what_they_ask_for_passes(part: Part) -> None:
    prompts = make_prompts(WIDE, 20, part=part)
    assert [p.tag for p in prompts] == [tag for tag in WIDE_TAGS for _ in range(20)]
    assert prompts == make_prompts(WIDE, 20, part=part)
    for prompt in prompts:
        include = [clause["class"] for clause in prompt.include]
        banned = [clause["class"] for clause in prompt.exclude if clause["class"] not in include]
        assert named_classes(prompt.text) == {*include, *banned}
        assert not any(is_held_out(c["class"], c.get("color")) for c in prompt.include)
        seen = []
        for clause in prompt.include:
            place = {"left of": (0, 20), "right of": (44, 20), "above": (22, 0), "below": (22, 44)}
            x, y = place[clause["position"][0]] if "position" in clause else (22, 20)
            box = (x, y, x + 18, y + 18)
            seen += [Detection(clause["class"], clause.get("color"), box, 0.9)] * clause["count"]
        assert check_detections(prompt, seen), prompt
        assert not check_detections(prompt, seen[1:]), prompt
        for clause in prompt.exclude:
            more = [Detection(clause["class"], None, (0, 0, 9, 9), 0.9)] * clause["count"]
            assert not check_detections(prompt, [*seen, *more])
    held_out = make_prompts(WIDE, 10, split="heldout")
    assert all(
        any(is_held_out(c["class"], c.get("color")) for c in p.include)
        or any(is_held_out(a, b) for a in named_classes(p.text) for b in named_classes(p.text))
        for p in held_out
    )
