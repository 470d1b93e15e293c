"""POPE's and MME's tallies by hand, and their files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ddit.eval.items import Item
from ddit.eval.yesno import (
    is_unclear,
    mme_answer,
    pope_answer,
    pope_figures,
    read_mme,
    read_pope,
    score_mme,
    score_pope,
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
        ("maybe", "yes"),
        ("It is not.", "no"),
        ("No!", "yes"),  # marks other than commas stay in the word
        ("Yes. No.", "yes"),
    ],
)
def test_pope_parses_an_answer_by_the_official_rule(text: str, answer: str) -> None:
    assert pope_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [("maybe", True), ("", True), ("No!", True), ("yesterday", True), ("nothing", True), ("no", False),
     ("It is not.", False), ("YES!", False), ("I think yes", False)],
)  # fmt: skip
def test_unclear_is_what_the_official_rule_takes_for_yes_without_the_word(text: str, expected: bool) -> None:
    assert is_unclear(text) == expected


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
    figures = {figure.name: figure.value for figure in pope_figures(labels, texts)}
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["precision"] == pytest.approx(2 / 3)
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["F1"] == pytest.approx(2 / 3)
    assert figures["share of yes"] == 0.5
    assert figures["unclear"] == pytest.approx(1 / 6)


def test_pope_without_a_single_yes_has_no_precision_and_does_not_fail() -> None:
    figures = {figure.name: figure.value for figure in pope_figures(["no", "no"], ["no", "no"])}
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
    assert mme_answer(text) == answer


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


def write_pope(folder: Path, text: str) -> None:
    for kind in ("random", "popular", "adversarial"):
        (folder / f"pope_{kind}.json").write_text(text, encoding="utf-8", newline="")


LINE = {"question_id": 1, "image": "a.png", "label": "yes"}


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    texts = ["a\u2028b", "a\x85b", "a\u2029b"]
    lines = [json.dumps({**LINE, "text": text}, ensure_ascii=False) for text in texts]
    for end in ("\n", "\r\n"):
        write_pope(tmp_path, "\ufeff" + end.join(lines) + end + end)
        assert [item.question for item in read_pope(tmp_path).items] == texts * 3
    write_pope(
        tmp_path, json.dumps([{**LINE, "text": text} for text in texts], indent=2)
    )  # a list, as .json says
    assert [item.question for item in read_pope(tmp_path).items] == texts * 3
    write_pope(tmp_path, "\n{")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_pope(tmp_path)
    write_pope(tmp_path, "[7]")
    with pytest.raises(ValueError, match="lists 7, no object"):
        read_pope(tmp_path)


@pytest.mark.parametrize(("label", "answer"), [("Yes", "yes"), ("NO.", "no"), (" no ", "no"), (True, "yes")])
def test_popes_labels_may_be_spelled_otherwise(tmp_path: Path, label: object, answer: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_pope(tmp_path, json.dumps({**LINE, "text": "?", "label": label}))
    assert {item.truth["answer"] for item in read_pope(tmp_path).items} == {answer}


def test_pope_counts_questions_that_repeat_an_id_as_its_script_does(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_pope(tmp_path, f"{json.dumps({**LINE, 'text': '?'})}\n" * 2)
    assert len(read_pope(tmp_path).items) == 6


def test_a_fault_is_wrong_whatever_pope_would_take_it_for() -> None:
    items = [Item(str(i), Path("p"), "?", {"answer": label, "kind": "random"}, fault="gone")
             for i, label in enumerate(("yes", "no"))]  # fmt: skip
    result = score_pope(items, ["", ""])
    figures = {figure.name: figure.value for figure in result.figures}
    assert result.scores == [0, 0]
    assert (figures["accuracy"], figures["F1"], figures["unclear"]) == (0, 0, 0)


def write_mme(folder: Path, text: str, name: str = "0001", suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    if suffix:
        Image.new("RGB", (8, 8)).save(folder / f"{name}{suffix}")


@pytest.mark.parametrize(
    "text",
    [
        "Is it a dog? Please answer yes or no.\tYes\r\nIs it a cat? Please answer yes or no.\tNo\r\n",
        "\ufeffIs it a dog?  please answer Yes or No\t\tYES.\n\nIs it a cat?\tno \t\n",
    ],
)
def test_mmes_texts_may_be_spelled_otherwise(tmp_path: Path, text: str) -> None:
    write_mme(tmp_path / "MME_Benchmark" / "existence", text, name="1[2]", suffix=".JPEG")
    (tmp_path / "MME_Benchmark" / "existence" / "._1[2].txt").write_bytes(b"\0")
    first, second = read_mme(tmp_path).items
    assert (first.question, first.truth["answer"]) == ("Is it a dog?", "yes")
    assert (second.question, second.truth["answer"]) == ("Is it a cat?", "no")
    assert first.image.name == "1[2].JPEG"


def test_mme_splits_at_newlines_only_and_names_a_line_of_another_form(tmp_path: Path) -> None:
    write_mme(tmp_path / "OCR", "a\u2028b?\tYes\nc\x0bd?\tNo\n")
    assert [item.question for item in read_mme(tmp_path).items] == ["a\u2028b?", "c\x0bd?"]
    write_mme(tmp_path / "OCR", "a?\tYes\nb? No\n")
    with pytest.raises(ValueError, match=r"a line must be a question, a tab, and Yes or No, not 'b\? No'"):
        read_mme(tmp_path)


def test_one_missing_image_of_mme_is_left_to_be_counted(tmp_path: Path) -> None:
    write_mme(tmp_path / "count", "a?\tYes\nb?\tNo\n", suffix="")
    with pytest.raises(ValueError, match="no image beside"):
        read_mme(tmp_path)
    write_mme(tmp_path / "count", "a?\tYes\nb?\tNo\n", name="0002")
    assert [item.image.exists() for item in read_mme(tmp_path).items] == [False, False, True, True]


def test_mme_says_what_its_sums_lack() -> None:
    def items(*kinds: str) -> list[Item]:
        return [
            Item(f"{kind}/{i}", Path(kind), "?", {"answer": label, "kind": kind})
            for kind in kinds
            for i, label in enumerate(("yes", "no"))
        ]

    assert (
        score_mme(items("existence", "count"), ["yes"] * 4).notes == ()
    )  # the coarse ones are a set of their own
    notes = score_mme(items("existence", "OCR", "ocr"), ["yes"] * 6).notes
    assert notes[0] == "not a category of MME, left out of the sums: ocr"
    assert notes[1].startswith("the sum of perception lacks count, position, color, posters, ")
