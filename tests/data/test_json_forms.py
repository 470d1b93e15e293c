"""COCO's captions, marks and separators in JSON, and LLaVA entries whose image is not where it is looked for."""

import codecs
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddit.config.data import JsonData, LlavaData, QuestionsData
from ddit.data.check import check_source
from ddit.data.samples import CorruptSample
from ddit.data.sources import JsonSource, LlavaSource, QuestionsSource, open_source
from ddit.data.sources.guess import guess_source
from ddit.data.sources.records import Records


def cause_of(source: Any, index: int, *, i2t: bool = True) -> str | None:
    try:
        source.sample(index, random.Random(0), i2t=i2t)
    except CorruptSample as error:
        return error.cause
    return None


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in {"1.png": (6, 4), "a/1.png": (7, 4), "b/1.png": (8, 4)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    return tmp_path


# --- COCO ---


def coco(**changes: Any) -> dict[str, Any]:
    images = [{"id": 1, "file_name": "a/1.png", "width": 7, "height": 4}, {"id": 2, "file_name": "b/1.png"}]
    captions = [(1, "one"), (2, "two"), (1, "eins"), (1, "un")]
    annotations = [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(captions)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations} | changes


@pytest.mark.parametrize("layout", ["line", "indented", "bom", "annotations first"])
def test_cocos_captions_are_recognised_and_read(layout: str, folder: Path) -> None:
    value, path = coco(), folder / "captions_train2017.json"
    if layout == "annotations first":
        value = dict(reversed(value.items()))
    text = json.dumps(value, indent=1 if layout == "indented" else None)
    path.write_bytes((codecs.BOM_UTF8 if layout == "bom" else b"") + text.encode())
    cfg = guess_source(str(path))
    assert isinstance(cfg, JsonData)
    source = open_source(cfg)
    assert len(source) == 2
    seen = Counter(source.sample(0, random.Random(i), i2t=False).caption for i in range(300))
    assert set(seen) == {"one", "eins", "un"}
    assert min(seen.values()) > 60
    sample = source.sample(1, random.Random(0), i2t=True)
    assert isinstance(sample.image, Image.Image)
    assert (sample.caption, sample.image.size) == ("two", (8, 4))
    assert source.sizes().tolist() == [[7, 4], [8, 4]]
    assert check_source(cfg).num_corrupt == 0


def test_a_large_file_of_cocos_form_is_recognised_though_its_captions_are_far_behind(folder: Path) -> None:
    images = [{"id": i, "file_name": "1.png", "coco_url": "x" * 100} for i in range(1000)]
    annotations = [{"image_id": i, "id": i, "caption": str(i)} for i in range(1000)]
    path = write(folder / "captions.json", coco(images=images, annotations=annotations))
    source = JsonSource(JsonData(path))  # named as plain JSON, with the keys of the published form
    assert source.sample(999, random.Random(0), i2t=False).caption == "999"
    assert isinstance(guess_source(path), JsonData)


def test_captions_without_an_image_and_images_without_captions_are_counted(folder: Path) -> None:
    captions = [
        {"image_id": 9, "caption": "x"},
        {"image_id": "1", "caption": "one"},
        {"image_id": 3, "caption": None},
    ]
    images = [*coco()["images"], {"id": 3, "file_name": "1.png"}]
    source = JsonSource(JsonData(write(folder / "captions.json", coco(images=images, annotations=captions))))
    assert [cause_of(source, i) for i in range(len(source))] == [None, "no caption", "no caption", "no image"]
    assert source.sizes().tolist() == [[7, 4], [8, 4], [6, 4], [0, 0]]


def test_other_files_of_coco_and_ambiguous_ones_are_one_clear_error(folder: Path) -> None:
    boxes = [{"image_id": 1, "bbox": [0, 0, 1, 1], "category_id": 3}]
    answers = {"annotations": [{"question_id": 1, "answers": []}]}
    for value, fault in (
        (coco(annotations=boxes), r"neither captions nor questions: of COCO's files give captions_\*\.json"),
        (answers, "holds annotations: give the file of questions, and this one as --annotations"),
    ):
        with pytest.raises(ValueError, match=fault):
            guess_source(write(folder / "x.json", value))
    twice = coco(images=[{"id": 1, "file_name": "1.png"}] * 2)
    with pytest.raises(ValueError, match="two images with the id 1"):
        JsonSource(JsonData(write(folder / "x.json", twice)))


def test_lines_that_have_cocos_keys_stay_lines(folder: Path) -> None:
    (folder / "x.json").write_text('{"images": ["1.png"], "annotations": [], "caption": "a"}\n' * 3)
    assert len(JsonSource(JsonData(str(folder / "x.json"), image_key="images"))) == 3


# --- marks, separators, and what follows ---


@pytest.mark.parametrize("is_list", [True, False])
def test_a_bom_is_no_part_of_the_data(is_list: bool, folder: Path) -> None:
    entries = [{"image_path": "1.png", "caption": f"é{i}"} for i in range(3)]
    text = json.dumps(entries, ensure_ascii=False) if is_list else "\n".join(map(json.dumps, entries))
    path = folder / ("x.json" if is_list else "x.JSONL")
    path.write_text(text, encoding="utf-8-sig")
    cfg = guess_source(str(path))
    assert isinstance(cfg, JsonData)
    records = Records(path)
    assert [records[i] for i in range(len(records))] == entries
    assert check_source(cfg).num_corrupt == 0


def test_a_bom_in_questions_and_configurations_is_read(folder: Path) -> None:
    asked = {"questions": [{"question_id": 1, "image_id": 1, "question": "a?", "answers": ["b"]}]}
    (folder / "q.json").write_text(json.dumps(asked), encoding="utf-8-sig")
    cfg = guess_source(str(folder / "q.json"))
    assert isinstance(cfg, QuestionsData)
    with pytest.raises(ValueError, match="set annotations"):
        QuestionsSource(cfg)
    (folder / "c.json").write_text('{"kind": "json", "path": "x.json"}', encoding="utf-8-sig")
    assert guess_source(str(folder / "c.json")) == JsonData("x.json")


def test_only_a_newline_ends_a_line(folder: Path) -> None:
    texts = ["a\u2028b", "a\x85b", "a\u2029b", "a\x1cb", "a\x0bb", "a\x0cb"]
    entries = [{"image_path": "1.png", "caption": text} for text in texts]
    for name, text in {
        "x.jsonl": "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries),
        "x.json": json.dumps(entries, ensure_ascii=False),
    }.items():
        (folder / name).write_bytes(text.encode())
        source = JsonSource(JsonData(str(folder / name)))
        assert [source.sample(i, random.Random(0), i2t=False).caption for i in range(len(source))] == texts


def test_what_follows_a_list_is_not_dropped(folder: Path) -> None:
    (folder / "x.json").write_text('[{"a": 1}]\n[{"a": 2}]')
    with pytest.raises(ValueError, match="not whole JSON: something follows the list"):
        Records(folder / "x.json")


def test_an_entry_nested_too_deeply_is_one_corrupt_sample(folder: Path) -> None:
    deep = '{"a": ' + "[" * 100_000 + '"]"' + "]" * 100_000 + "}"
    whole = json.dumps({"image_path": "1.png", "caption": "x"})
    for text in (f"[{whole}, {deep}, {whole}]", f"{whole}\n{deep}\n{whole}\n"):
        (folder / "x.json").write_text(text)
        source = JsonSource(JsonData(str(folder / "x.json")))
        assert [cause_of(source, i) for i in range(len(source))] == [None, "bad JSON", None]


def test_a_stated_size_beyond_any_image_is_not_believed(folder: Path) -> None:
    entries = [{"image_path": "1.png", "caption": "x", "width": 2**40, "height": 1}]
    assert JsonSource(JsonData(write(folder / "x.json", entries))).sizes().tolist() == [[6, 4]]


# --- images by their paths ---


def test_equal_names_in_two_folders_and_images_below_links_are_told_apart(folder: Path) -> None:
    (folder / "linked").symlink_to(folder / "b")
    paths = ["1.png", "a/1.png", "./b/../b/1.png", "linked/1.png", str(folder / "a/1.png")]
    entries = [{"image_path": path, "caption": "x"} for path in paths]
    source = JsonSource(JsonData(write(folder / "x.json", entries)))
    found = [source.sample(i, random.Random(0), i2t=False).image for i in range(len(source))]
    assert [image.size[0] for image in found if isinstance(image, Image.Image)] == [6, 7, 8, 8, 7]
    assert source.sizes()[:, 0].tolist() == [6, 7, 8, 8, 7]


# --- LLaVA ---


def talk(asked: str = "<image>\nwhat?", **entry: Any) -> dict[str, Any]:
    return {**entry, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "this"}]}


LOST = {
    "images": talk(images=["1.png"]),
    "null": talk(image=None),
    "empty": talk(image=""),
    "empty list": talk(image=[]),
    "list of nothing": talk(image=[""]),
    "another key": talk(image_path="1.png"),
    "video": talk(video="1.mp4"),
    "missing": talk(),
    "bytes": talk(image={"bytes": "x"}),
    "another key without a tag": talk("what?", images=["1.png"]),
    "video without a tag": talk("what?", video="1.mp4"),
    "a video's tag": talk("<video>\nwhat?"),
    "tag in a later turn": {"conversations": [*talk("a?")["conversations"], *talk()["conversations"]]},
}


@pytest.mark.parametrize("case", LOST)
def test_an_entry_that_asks_about_an_image_and_has_none_is_counted(case: str, folder: Path) -> None:
    source = LlavaSource(LlavaData(write(folder / "x.json", [LOST[case]])))
    assert cause_of(source, 0) == "no image"
    with pytest.raises(CorruptSample, match="no image"):  # as with cached latents, where no image is opened
        source.sample(0, random.Random(0), i2t=True, with_image=False)
    assert source.sizes().tolist() == [[0, 0]]


def test_a_list_of_one_image_is_that_image_and_more_are_counted(folder: Path) -> None:
    entries = [talk(image=["a/1.png"]), talk("what?", image="b/1.png"), talk(image=["1.png", "a/1.png"])]
    source = LlavaSource(LlavaData(write(folder / "x.json", entries)))
    assert [cause_of(source, i) for i in range(3)] == [None, None, "several images"]
    assert source.sizes()[:, 0].tolist() == [7, 8, 0]
    with_key = LlavaSource(
        LlavaData(write(folder / "y.json", [talk(images=["a/1.png"])]), image_key="images")
    )
    assert cause_of(with_key, 0) is None


def test_text_alone_stays_usable(folder: Path) -> None:
    entries = [talk("two and two?"), talk("a?", image=None), talk("b?", image="", images=[], video=None)]
    entries.append(
        {"conversations": [{"from": "human", "value": "svg?"}, {"from": "gpt", "value": "use <image>"}]}
    )
    report = check_source(LlavaData(write(folder / "x.json", entries)))
    assert (report.num_corrupt, report.num_without_image) == (0, 4)


@pytest.mark.slow
def test_no_damage_to_json_raises_anything_but_one_line_or_a_cause(folder: Path) -> None:
    entries = [
        {"image_path": "1.png", "caption": ["é", "x"], "width": 6, "height": 4},
        talk(image="1.png"),
    ] * 3
    texts = [json.dumps(entries, ensure_ascii=False), "\n".join(map(json.dumps, entries)), json.dumps(coco())]
    rng = random.Random(0)
    num_opened = 0
    for number in range(3000):
        damaged = bytearray(texts[number % 3].encode())
        for _ in range(rng.choice((1, 1, 3, 20))):
            damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), *b'[]{}",:\\'))
        path = folder / f"{number}.json"
        path.write_bytes(damaged)
        for make in (
            lambda path=path: JsonSource(JsonData(path)),
            lambda path=path: LlavaSource(LlavaData(path)),
        ):
            try:
                source = make(str(path))
            except ValueError as error:
                if "\n" in str(error):
                    pytest.fail(f"more than one line: {error}")
                continue
            num_opened += 1
            for index in range(len(source)):
                cause_of(source, index)
            source.sizes()
    assert num_opened > 1000
