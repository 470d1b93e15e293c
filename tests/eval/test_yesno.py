"""POPE's and MME's tallies by hand, and their files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ddit.eval.items import Item
from ddit.eval.yesno import (
    parse_mme_answer,
    parse_pope_answer,
    read_mme,
    read_pope,
    score_mme,
    score_pope,
    tally_pope,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("No, there is none.", "no"),
        ("There is not. Yes.", "no"),
        ("yes. no", "yes"),  # the first sentence counts
        ("nothing", "yes"),  # whole words only
        ("a dog", "yes"),  # unclear is a yes
    ],
)
def test_pope_parses_an_answer_by_the_official_rule(text: str, answer: str) -> None:
    assert parse_pope_answer(text) == answer


def test_pope_tallies_by_hand() -> None:
    labels = ["yes", "yes", "yes", "no", "no", "no"]
    texts = [
        "yes",
        "no",
        "a dog",
        "no",
        "yes",
        "No.",
    ]  # 2 true positives, 1 missed, 1 false, 2 true negatives
    figures = {figure.name: figure.value for figure in tally_pope(labels, texts)}
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["precision"] == pytest.approx(2 / 3)
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["F1"] == pytest.approx(2 / 3)
    assert figures["share of yes"] == 0.5
    assert figures["unclear"] == pytest.approx(1 / 6)


def test_pope_without_a_single_yes_has_no_precision_and_does_not_fail() -> None:
    figures = {figure.name: figure.value for figure in tally_pope(["no", "no"], ["no", "no"])}
    assert (figures["F1"], figures["precision"], figures["accuracy"]) == (0, 0, 1)


def test_popes_headline_is_the_mean_of_the_three_f1() -> None:
    def item(kind: str, label: str) -> Item:
        return Item(f"{kind}/{label}", Path("p.png"), "is there a dog?", {"answer": label, "kind": kind})

    kinds = ("random", "popular", "adversarial")
    items = [item(kind, label) for kind in kinds for label in ("yes", "no")]
    result = score_pope(items, ["yes", "no", "yes", "yes", "no", "no"])
    figures = {figure.name: figure.value for figure in result.figures}
    assert (figures["random: F1"], figures["adversarial: F1"]) == (1, 0)
    assert figures["popular: F1"] == pytest.approx(2 / 3)
    assert result.figures[0].name == "F1"
    assert result.figures[0].value == pytest.approx(5 / 9)
    assert result.scores == [1, 1, 1, 0, 0, 1]


def test_pope_is_read_from_its_three_files(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "COCO_val2014_000000016631.jpg")
    for kind in ("random", "popular", "adversarial"):
        line = {
            "question_id": 1,
            "image": "COCO_val2014_000000016631.jpg",
            "text": "Is there a person in the image?",
        }
        text = json.dumps({**line, "label": "yes"}) + "\n"
        (tmp_path / f"coco_pope_{kind}.json").write_text(text)
    assert [item.id for item in read_pope(tmp_path).items] == ["random/1", "popular/1", "adversarial/1"]
    (tmp_path / "coco_pope_random.json").write_text(json.dumps({**line, "label": "maybe"}) + "\n")
    with pytest.raises(ValueError, match="label must be yes or no, got 'maybe'"):
        read_pope(tmp_path)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes, it is", "yes"), ("no", "no"), ("  NO.", "no"), ("it is, yes", "other"), ("", "other")],
)
def test_mme_looks_for_yes_or_no_in_the_first_four_letters(text: str, answer: str) -> None:
    assert parse_mme_answer(text) == answer


def test_mmes_points_by_hand() -> None:
    def pair(kind: str, image: str) -> list[Item]:
        return [
            Item(f"{kind}/{image}/{i}", Path(kind, f"{image}.png"), "?", {"answer": label, "kind": kind})
            for i, label in enumerate(("yes", "no"))
        ]

    items = [
        *pair("existence", "1"),
        *pair("existence", "2"),
        *pair("count", "1"),
        *pair("code_reasoning", "1"),
    ]
    result = score_mme(items, ["yes", "no", "yes", "yes", "a dog", "no", "yes", "no"])
    figures = {figure.name: figure.value for figure in result.figures}
    assert figures["existence: accuracy"] == 0.75
    assert figures["existence: accuracy+"] == 0.5
    assert figures["existence"] == 125
    assert (figures["count: accuracy"], figures["count: accuracy+"], figures["count"]) == (0.5, 0, 50)
    assert figures["perception, sum"] == 175
    assert figures["cognition, sum"] == 200
    assert figures["unclear"] == 1 / 8
    assert result.figures[0].name == "perception, sum"


@pytest.mark.parametrize("is_split", [False, True])
def test_mme_is_read_in_both_of_its_layouts(tmp_path: Path, is_split: bool) -> None:
    category = tmp_path / "existence"
    texts, images = (
        (category / "questions_answers_YN", category / "images") if is_split else (category, category)
    )
    for folder in (texts, images):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(images / "0001.jpg")
    question = "Is there a dog in this image? Please answer yes or no."
    (texts / "0001.txt").write_text(f"{question}\tYes\nIs there a cat?\tNo\n")
    first, second = read_mme(tmp_path).items
    assert (first.question, first.truth["answer"]) == ("Is there a dog in this image?", "yes")
    assert (second.id, second.truth["answer"]) == ("existence/0001/1", "no")
    (texts / "0001.txt").write_text("Is there a dog?\tYes\n")
    with pytest.raises(ValueError, match="not two lines"):
        read_mme(tmp_path)
