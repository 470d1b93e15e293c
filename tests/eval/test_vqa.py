"""VQAv2, VizWiz and GQA by hand: the official normalisation, the ten-answer rule, the breakdowns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ddit.eval.items import Figure, Item
from ddit.eval.vqa import (
    normalize_answer,
    normalize_gqa,
    read_gqa,
    read_vizwiz,
    read_vqav2,
    score_gqa,
    score_vizwiz,
    score_vqav2,
    ten_answer_score,
    vizwiz_score,
    vqav2_score,
)


def value(figures: list[Figure], name: str) -> float:
    return {figure.name: figure for figure in figures}[name].value


def item(number: int, **truth: object) -> Item:
    return Item(str(number), Path("image.png"), "what is this?", truth)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Dog", "dog"),
        ("a an the", ""),
        ("two", "2"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("DON'T", "don't"),
        ("couldntve", "couldntve"),  # lacks both: the table has only those that lack one
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("its", "its"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a comma between digits joins everything
        ("3.5", "3.5"),
        ("3. 5.", "3 5"),
        ("yes.", "yes"),
        ("10:30", "10:30"),
        ("the\nred\tcar ", "red car"),
        ("yes!", "yes"),
    ],
)
def test_answers_are_normalised_by_the_official_rule(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("agree", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_the_ten_answer_rule_leaves_out_each_person_once(agree: int, score: float) -> None:
    answers = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert ten_answer_score("red", answers) == pytest.approx(score)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_fewer_than_ten_answers_are_scored_by_exact_match(count: int) -> None:
    assert vqav2_score("A dog.", ["dog"] * count) == 1
    assert vqav2_score("cat", ["dog"] * count) == 0
    assert vizwiz_score("dog", ["cat"] * (count - 1) + ["dog"]) == 1
    items = [item(0, answer="dog", answers=["dog"] * count, kind="other", answerable=1)]
    for score in (score_vqav2, score_vizwiz):
        (note,) = score(items, ["dog"]).notes
        assert note.startswith("1 of 1 questions have fewer than ten answers and are scored by exact match")
    ten = [item(0, answer="dog", answers=["dog"] * 10, kind="other", answerable=1)]
    assert score_vqav2(ten, ["dog"]).notes == score_vizwiz(ten, ["dog"]).notes == ()


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Black.", ["black"] * 10),
        ("a dog", ["dog"] * 10),
        ("none", ["0"] * 4 + ["none"] * 6),
        ("two", ["2"] * 10),
    ],
)
def test_vqav2_normalises_where_all_ten_agree_too(text: str, answers: list[str]) -> None:
    assert vqav2_score(text, answers) == 1


def test_an_item_with_a_fault_is_wrong_in_every_figure() -> None:
    good, bad = item(0), item(1)
    truth = {"answer": "dog", "answers": ["dog"] * 10, "kind": "other", "answerable": 1}
    items = [replace(good, truth=truth), replace(bad, truth=truth, fault="no such image")]
    assert score_vqav2(items, ["dog", ""]).scores == [1, 0]
    assert score_gqa(items, ["dog", "dog"]).scores == [1, 0]
    result = score_vizwiz(items, ["dog", ""])
    assert result.scores == [1, 0]
    assert value(result.figures, "unanswerable: precision") == 0  # counted as a false alarm


def test_vqav2_normalises_both_sides_and_vizwiz_the_answer_alone() -> None:
    people = ["The dog."] * 4 + ["two"] * 6
    assert vqav2_score("dog", people) == 1
    assert vqav2_score("2", people) == 1
    assert vizwiz_score("dog", people) == 0
    assert vizwiz_score("Unanswerable.", ["unanswerable"] * 10) == 1


def test_vqav2_is_broken_down_by_answer_and_question_with_the_most_common_answer_as_baseline() -> None:
    def truth(answer: str) -> dict[str, object]:
        kind = "yes/no" if answer in ("yes", "no") else "number"
        question_type = "is there" if kind == "yes/no" else "how many"
        return {"answer": answer, "answers": [answer] * 10, "kind": kind, "question_type": question_type}

    items = [item(i, **truth(answer)) for i, answer in enumerate(["yes", "yes", "no", "2"])]
    result = score_vqav2(items, ["yes", "no", "no", "three"])
    assert result.scores == [1, 0, 1, 0]
    figures = {figure.name: figure for figure in result.figures}
    assert result.figures[0].name == "accuracy"
    assert figures["accuracy"].value == 0.5
    assert figures["accuracy"].baselines["majority"] == 0.5  # always "yes"
    assert figures["yes/no"].value == pytest.approx(2 / 3)
    assert figures["yes/no"].baselines["majority"] == pytest.approx(2 / 3)
    assert (figures["number"].value, figures["number"].num) == (0, 1)
    assert figures["question type: how many"].baselines["majority"] == 1


def test_the_baseline_by_the_first_two_words_is_the_commonest_answer_of_each() -> None:
    asked = [
        ("is there a dog?", "yes"), ("Is there a cat?", "yes"), ("is there a car?", "no"),
        ("how many dogs are there?", "2"), ("how many cars are there?", "3"), ("how many cats are there?", "3"),
    ]  # fmt: skip
    items = [
        replace(item(i, answer=answer, answers=[answer] * 10, kind="other"), question=question)
        for i, (question, answer) in enumerate(asked)
    ]
    first = score_vqav2(items, ["yes"] * len(items)).figures[0]
    assert first.baselines["first_two_words"] == pytest.approx(4 / 6)
    assert first.baselines["majority"] == pytest.approx(2 / 6)


def test_vizwiz_measures_how_well_unanswerable_is_recognised() -> None:
    actual = ["unanswerable", "unanswerable", "unanswerable", "red", "blue"]
    items = [
        item(i, answer=a, answers=[a] * 10, kind="other", answerable=int(a != "unanswerable"))
        for i, a in enumerate(actual)
    ]
    figures = score_vizwiz(items, ["unanswerable", "Unanswerable", "red", "unanswerable", "blue"]).figures
    assert value(figures, "accuracy") == pytest.approx(3 / 5)
    assert value(figures, "unanswerable: precision") == pytest.approx(2 / 3)
    assert value(figures, "unanswerable: recall") == pytest.approx(2 / 3)
    assert value(figures, "unanswerable: F1") == pytest.approx(2 / 3)
    # thresholds above and below the two values: recall 2/3 at precision 2/3, then recall 1 at precision 3/5
    assert value(figures, "unanswerable: average precision") == pytest.approx(2 / 3 * 2 / 3 + 1 / 3 * 3 / 5)


def test_gqa_compares_exactly_and_counts_by_type() -> None:
    assert normalize_gqa(" Left. ") == "left"
    types = [("verify", "rel", "relation"), ("query", "attr", "color"), ("query", "rel", "where")]
    items = [
        item(i, answer=answer, kind=kind, semantic=semantic, detailed=detailed)
        for i, (answer, (kind, semantic, detailed)) in enumerate(
            zip(["yes", "red", "dog"], types, strict=True)
        )
    ]
    result = score_gqa(items, ["Yes.", "dark red", "dog"])
    assert result.scores == [1, 0, 1]
    assert value(result.figures, "accuracy") == pytest.approx(2 / 3)
    assert value(result.figures, "binary") == 1
    assert value(result.figures, "open") == 0.5
    assert value(result.figures, "semantic: rel") == 1
    assert value(result.figures, "detailed: color") == 0


# --- the files ---


def save_image(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / name)


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_vqav2_is_read_from_its_pair_of_files_and_coco_names(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "val2014", "COCO_val2014_000000000042.jpg")
    ids = {"image_id": 42, "question_id": 42001}
    asked = {"data_subtype": "val2014", "questions": [{**ids, "question": "Is it red?"}]}
    people = [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    annotation = {
        "multiple_choice_answer": "yes",
        "answers": people,
        "answer_type": "yes/no",
        "question_type": "is it",
    }
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", asked)
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [{**ids, **annotation}]})
    (one,) = read_vqav2(tmp_path).items
    assert (one.id, one.question, one.image.name) == ("42001", "Is it red?", "COCO_val2014_000000000042.jpg")
    assert one.truth["answers"] == ["yes"] * 10
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(ValueError, match="no answers to question 42001"):
        read_vqav2(tmp_path)


def test_vizwiz_is_read_from_its_list(tmp_path: Path) -> None:
    save_image(tmp_path / "val", "VizWiz_val_00000000.jpg")
    people = [{"answer": "unsuitable", "answer_confidence": "maybe"}] * 4 + [{"answer": "basil"}] * 6
    entry = {
        "image": "VizWiz_val_00000000.jpg",
        "question": "What is it?",
        "answers": people,
        "answerable": 1,
    }
    write(tmp_path / "val.json", [{**entry, "answer_type": "other"}])
    (one,) = read_vizwiz(tmp_path, tmp_path / "val").items
    assert (one.truth["answer"], one.truth["answerable"], one.truth["kind"]) == ("basil", 1, "other")


def test_gqa_is_read_from_its_dictionary(tmp_path: Path) -> None:
    save_image(tmp_path / "images", "n161313.jpg")
    types = {"structural": "query", "semantic": "rel", "detailed": "relO"}
    entry = {"question": "What is on the shelf?", "imageId": "n161313", "answer": "book", "types": types}
    write(tmp_path / "testdev_balanced_questions.json", {"201307251": entry})
    (one,) = read_gqa(tmp_path).items
    assert (one.id, one.truth["kind"], one.truth["detailed"]) == ("201307251", "query", "relO")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no file"):
        read_vqav2(tmp_path)
    write(tmp_path / "questions.json", {"7": {"question": "What?", "imageId": "1", "answer": "dog"}})
    with pytest.raises(ValueError, match="no image 1 in"):
        read_gqa(tmp_path)
    write(tmp_path / "questions.json", {"7": {"question": "What?", "imageId": "1"}})
    with pytest.raises(ValueError, match="has no 'answer'"):
        read_gqa(tmp_path)
    (tmp_path / "questions.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_gqa(tmp_path)


def write_vqav2(folder: Path, questions: list[dict], annotations: list[dict]) -> None:
    write(folder / "questions.json", {"questions": questions})
    write(folder / "annotations.json", {"annotations": annotations})


def test_ids_are_numbers_or_texts_and_answers_too(tmp_path: Path) -> None:
    save_image(tmp_path, "000000000042.png")
    asked = [{"question_id": number, "image_id": image, "question": "?"} for number, image in
             ((1, 42), ("2", "42"), (3.0, 42.0), (4, 42))]  # fmt: skip
    answers = [[2, 2.0, "2"], [{"answer": 2}, {"answer": None}, {"answer": True}], "red", []]
    annotated = [{"question_id": number, "answers": given, "multiple_choice_answer": 0, "answer_type": None}
                 for number, given in zip(("1", 2, 3, "4"), answers, strict=True)]  # fmt: skip
    write_vqav2(tmp_path, asked, annotated)
    items, notes = read_vqav2(tmp_path)
    assert [item.id for item in items] == ["1", "2", "3", "4"]
    assert [item.truth["answers"] for item in items] == [["2", "2", "2"], ["2", "yes"], ["red"], ["0"]]
    assert {item.truth["kind"] for item in items} == {"other"}
    assert {item.image for item in items} == {tmp_path / "000000000042.png"}
    assert notes == ()


def test_what_is_left_out_of_vqav2_is_said(tmp_path: Path) -> None:
    save_image(tmp_path, "000000000042.png")
    asked = [{"question_id": number, "image_id": 42, "question": "?"} for number in (1, 1, 2, 3)]
    answers = [{"question_id": 1, "answers": ["a"]}, {"question_id": 2, "answers": []}]
    write_vqav2(tmp_path, asked, [*answers, {"question_id": 9, "answers": ["b"]}])
    items, notes = read_vqav2(tmp_path)
    assert [item.id for item in items] == ["1"]
    assert notes == (
        "2 questions without an answer in annotations.json left out (2, 3)",
        "1 question left out: its id came before (1)",
        "1 annotation of annotations.json not asked: questions.json lacks it (9)",
    )


def test_vqav2_takes_the_image_of_its_own_split(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        save_image(tmp_path / "images" / split, "000000000042.jpg")
    write_vqav2(tmp_path, [], [{"question_id": 1, "answers": ["a"]}])
    question = {"question_id": 1, "image_id": 42, "question": "?"}
    write(tmp_path / "questions.json", {"data_subtype": "val2017", "questions": [question]})
    (one,) = read_vqav2(tmp_path).items
    assert one.image.parent.name == "val2017"


def test_gqa_leaves_out_unbalanced_questions_as_its_script_does(tmp_path: Path) -> None:
    save_image(tmp_path / "images", "1.jpg")
    entry = {"question": "?", "imageId": 1, "answer": "yes"}
    found = {"01": {**entry, "isBalanced": False}, "1": {**entry, "isBalanced": True}, "2": entry, "3": entry}
    found["3"] = {**entry, "answer": None}
    write(tmp_path / "questions.json", found)
    items, notes = read_gqa(tmp_path)
    assert [item.id for item in items] == ["1", "2"]
    assert notes == (
        "1 unbalanced question left out, as in the official script's accuracy (01)",
        "1 question without an answer left out (3)",
    )


def test_vizwiz_leaves_out_questions_without_an_answer(tmp_path: Path) -> None:
    save_image(tmp_path, "a.jpg")
    entry = {"image": "a.jpg", "question": "?", "answerable": "0", "answers": ["unanswerable"] * 10}
    write(tmp_path / "val.json", [entry, {**entry, "image": "b.jpg", "answers": []}])
    items, notes = read_vizwiz(tmp_path)
    assert [item.truth["answerable"] for item in items] == [0]
    assert notes == ("1 question without an answer left out (b.jpg)",)
    write(tmp_path / "val.json", [{"image": "a.jpg", "question": "?"}])
    with pytest.raises(ValueError, match="has no answers: the test split"):
        read_vizwiz(tmp_path)


def test_files_of_macos_and_windows_are_read(tmp_path: Path) -> None:
    """Hidden copies are passed over; a byte order mark, CRLF and UTF-16 are read."""
    save_image(tmp_path, "1.jpg")
    text = json.dumps(
        {"7": {"question": "caf\u00e9?", "imageId": "1", "answer": "yes"}}, ensure_ascii=False, indent=1
    )
    (tmp_path / "._questions.json").write_bytes(b"\x00\x05\x16\x07")
    for data in (text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode(), text.encode("utf-16")):
        (tmp_path / "questions.json").write_bytes(data)
        assert [item.question for item in read_gqa(tmp_path).items] == ["caf\u00e9?"]
    (tmp_path / "questions.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not valid JSON: .* is not text in UTF-8"):
        read_gqa(tmp_path)
    (tmp_path / "questions.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_gqa(tmp_path)
