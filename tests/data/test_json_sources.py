"""Metadata, conversations and questions in JSON: what is written is read, and what is corrupt has a countable cause."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddit.config.data import JsonData, LlavaData, QuestionsData
from ddit.data.samples import CorruptSample, Turn
from ddit.data.sources import JsonSource, LlavaSource, QuestionsSource, open_source
from ddit.data.sources.records import Records


def rng(seed: int = 0) -> random.Random:
    return random.Random(seed)


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def cause_of(source: Any, index: int, *, i2t: bool = True) -> str:
    with pytest.raises(CorruptSample) as caught:
        source.sample(index, rng(), i2t=i2t)
    return caught.value.cause


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")
    Image.new("RGB", (4, 8), "blue").save(tmp_path / "blue.png")
    return tmp_path


ENTRIES = [
    {"image_path": "red.png", "caption": "rouge ☃", "re_caption": "a red area"},
    {"image_path": "blue.png", "caption": "bleu", "re_caption": ""},
]


def as_list(entries: list) -> str:
    return json.dumps(entries, ensure_ascii=False, indent=1).replace("\n", "\r\n")


def as_lines(entries: list) -> str:
    return "\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)


@pytest.mark.parametrize("layout", [as_list, as_lines])
def test_a_list_and_lines_give_the_same_entries(layout: Any, tmp_path: Path) -> None:
    entries = [{"text": "x" * n, "wide": "é☃🐑"[: n % 4]} for n in range(50)]
    (tmp_path / "meta.json").write_bytes(layout(entries).encode())
    records = Records(tmp_path / "meta.json")
    assert [records[i] for i in range(len(records))] == entries


def test_an_empty_list_has_no_entries(tmp_path: Path) -> None:
    assert len(Records(write(tmp_path / "meta.json", []))) == 0
    (tmp_path / "meta.jsonl").write_text("")
    assert len(Records(tmp_path / "meta.jsonl")) == 0


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1} {"a": 2}]', '[{"a": 1},', "["])
def test_a_list_cut_short_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json' is not whole JSON"):
        Records(tmp_path / "meta.json")


@pytest.mark.parametrize("text", ["hello", '{\n "info": {}\n}'])
def test_what_is_neither_a_list_nor_lines_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
        Records(tmp_path / "meta.json")


def test_a_corrupt_line_is_one_corrupt_sample(folder: Path) -> None:
    (folder / "meta.jsonl").write_text(json.dumps(ENTRIES[0]) + "\n{oops\n[1]\n" + json.dumps(ENTRIES[1]))
    source = JsonSource(JsonData(str(folder / "meta.jsonl")))
    assert len(source) == 4
    assert [cause_of(source, 1), cause_of(source, 2)] == ["bad JSON", "bad JSON"]
    assert source.sample(3, rng(), i2t=False).caption == "bleu"


def test_json_gives_the_image_and_either_caption_by_its_share(folder: Path) -> None:
    source = open_source(JsonData(write(folder / "meta.json", ENTRIES), original_share=0.25))
    found = Counter(source.sample(0, rng(i), i2t=False).caption for i in range(400))
    assert set(found) == {"a red area", "rouge ☃"}
    assert 0.18 < found["rouge ☃"] / 400 < 0.32
    sample = source.sample(0, rng(3), i2t=True)
    assert sample.image is not None
    assert sample.image.getpixel((0, 0)) == (255, 0, 0)
    assert sample.turns == (Turn(None, sample.caption),)
    assert source.sample(1, rng(), i2t=True).caption == "bleu"


def test_the_same_generator_gives_the_same_text_with_and_without_the_image(folder: Path) -> None:
    source = open_source(JsonData(write(folder / "meta.json", ENTRIES), original_share=0.5))
    for seed in range(20):
        whole = source.sample(0, rng(seed), i2t=True)
        bare = source.sample(0, rng(seed), i2t=True, with_image=False)
        assert bare == whole._replace(image=None)


def test_sizes_come_from_the_metadata_or_from_the_header(folder: Path) -> None:
    entries = [{**ENTRIES[0], "width": 30, "height": 20}, ENTRIES[1], {"image_path": "none.png"}, {}]
    source = open_source(JsonData(write(folder / "meta.json", entries)))
    assert source.sizes().tolist() == [[30, 20], [4, 8], [0, 0], [0, 0]]


def test_faults_of_json_entries_have_their_causes(folder: Path) -> None:
    entries = [
        {"image_path": "red.png", "re_caption": " ", "caption": None},
        {"image_path": "none.png", "re_caption": "x"},
        {"re_caption": "x"},
    ]
    source = open_source(JsonData(write(folder / "meta.json", entries)))
    assert [cause_of(source, i) for i in range(3)] == ["no caption", "missing file", "no image"]


def test_missing_files_and_folders_say_what_to_do(folder: Path) -> None:
    path = write(folder / "meta.json", ENTRIES)
    with pytest.raises(ValueError, match=r"'nowhere.json' does not exist: give the path"):
        open_source(JsonData("nowhere.json"))
    with pytest.raises(ValueError, match="is a folder, not a file"):
        open_source(LlavaData(str(folder)))
    with pytest.raises(ValueError, match="no folder 'nowhere': set images"):
        open_source(JsonData(path, images="nowhere"))


def test_kept_sizes_are_found_again_where_the_images_are_others(folder: Path) -> None:
    path = write(folder / "meta.json", ENTRIES)
    (folder / "other").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "other/red.png")
    assert open_source(JsonData(path)).sizes().tolist() == [[6, 4], [4, 8]]
    assert open_source(JsonData(path, images=str(folder / "other"))).sizes().tolist() == [[9, 9], [0, 0]]


def test_offsets_of_a_large_file_are_kept_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddit.data.sources.records._KEPT_FROM", 10)
    path = write(folder / "meta.json", ENTRIES)
    assert Records(path)[1] == ENTRIES[1]
    with monkeypatch.context() as patch:
        patch.setattr("ddit.data.sources.records._list_spans", None)  # finding them again would fail
        assert Records(path)[1] == ENTRIES[1]
    write(folder / "meta.json", ENTRIES * 2)
    assert len(Records(path)) == 4


# --- LLaVA ---


def talk(*texts: str, **entry: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    return {**entry, "conversations": [{"from": roles[i % 2], "value": t} for i, t in enumerate(texts)]}


def test_all_turns_of_a_conversation_are_kept_in_order(folder: Path) -> None:
    entries = [
        talk("<image>\nwhat?", "a dog", "where?\n<image>", "here", image="red.png"),
        talk("two?", "yes"),
    ]
    source = LlavaSource(LlavaData(write(folder / "talk.json", entries)))
    sample = source.sample(0, rng(), i2t=True)
    assert sample.turns == (Turn("what?", "a dog"), Turn("where?", "here"))
    assert sample.image is not None
    assert source.sample(1, rng(), i2t=True) == (None, None, (Turn("two?", "yes"),), False, False)
    assert source.sizes().tolist() == [[6, 4], [0, 0]]


def test_a_conversation_that_only_shows_an_image_is_a_caption(folder: Path) -> None:
    source = LlavaSource(LlavaData(write(folder / "talk.json", [talk("<image>", "a dog", image="red.png")])))
    assert source.sample(0, rng(), i2t=True).turns == (Turn(None, "a dog"),)


def test_corrupt_conversations_have_their_cause(folder: Path) -> None:
    entries = [talk("hm?"), talk("hm?", ""), {"conversations": []}, {}, talk("a?", "b", image="none.png")]
    entries.append({"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]})
    entries.append({"conversations": [{"from": "human"}, {"from": "gpt", "value": "y"}]})
    source = LlavaSource(LlavaData(write(folder / "talk.json", entries)))
    causes = [cause_of(source, i) for i in range(len(source))]
    assert causes == ["bad conversation"] * 4 + ["missing file"] + ["bad conversation"] * 2


def test_conversations_have_no_caption(folder: Path) -> None:
    source = LlavaSource(LlavaData(write(folder / "talk.json", [talk("a?", "b", image="red.png")])))
    assert cause_of(source, 0, i2t=False) == "no caption"


# --- questions ---


def vqa(folder: Path, answers: list[str], image_id: Any = 7) -> QuestionsData:
    Image.new("RGB", (6, 4), "red").save(folder / "COCO_train2014_000000000007.jpg")
    ids = {"image_id": image_id, "question_id": 1}
    asked = {"questions": [{**ids, "question": "what color?"}]}
    found = {"annotations": [{**ids, "answers": [{"answer": text} for text in answers]}]}
    return QuestionsData(write(folder / "q.json", asked), write(folder / "a.json", found))


def test_the_answer_is_chosen_by_its_share_among_the_people(folder: Path) -> None:
    source = QuestionsSource(vqa(folder, ["red"] * 7 + ["dark red"] * 3))
    found = Counter(source.sample(0, rng(i), i2t=True).turns[0].answer for i in range(400))
    assert 0.22 < found["dark red"] / 400 < 0.38
    sample = source.sample(0, rng(), i2t=True)
    assert sample.short_answers
    assert not sample.unanswerable
    assert sample.turns[0].question == "what color?"
    assert source.sizes().tolist() == [[6, 4]]


def test_questions_of_vizwiz_are_one_file(folder: Path) -> None:
    entries = [
        {"image": "red.png", "question": "what?", "answers": [{"answer": "unanswerable"}], "answerable": 0}
    ]
    source = QuestionsSource(QuestionsData(write(folder / "v.json", entries), "", unanswerable=True))
    sample = source.sample(0, rng(), i2t=True)
    assert sample.unanswerable
    assert sample.turns == (Turn("what?", "unanswerable"),)
    assert np.array_equal(source.sizes(), [[6, 4]])


def test_corrupt_questions_have_their_causes(folder: Path) -> None:
    assert cause_of(QuestionsSource(vqa(folder, [])), 0) == "no answer"
    assert cause_of(QuestionsSource(vqa(folder, ["red"], image_id=8)), 0) == "missing file"
    assert cause_of(QuestionsSource(vqa(folder, ["red"], image_id="x")), 0) == "no image"


def test_questions_without_their_answers_say_what_to_do(folder: Path) -> None:
    cfg = vqa(folder, ["red"])
    with pytest.raises(ValueError, match="set annotations"):
        QuestionsSource(QuestionsData(cfg.questions, ""))
    with pytest.raises(ValueError, match="under 'annotations'"):
        QuestionsSource(QuestionsData(cfg.questions, cfg.questions))
    with pytest.raises(ValueError, match=r"must hold \{image_id\}"):
        QuestionsSource(QuestionsData(cfg.questions, cfg.annotations, image_pattern="x.jpg"))
