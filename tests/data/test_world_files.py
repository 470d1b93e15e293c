"""The small world in foreign forms: each source reads what was written, and the texts are true of the images."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from ddit.config.data import HuggingFaceData, JsonData, LlavaData, QuestionsData, TarData, WorldData
from ddit.data.samples import Source
from ddit.data.sources import WorldSource, open_source
from ddit.data.sources.guess import Hints, guess_source
from ddit.data.world_files import FORMS, NUM_ANSWERS, WorldScenes, write_world
from ddit.world import PRESETS, caption_is_right, list_vocabulary, make_scene, render

NUM = 25
WORLD = PRESETS["fixed"]


def written(folder: Path, form: str, **options) -> str:
    return str(write_world(folder, WorldScenes(WORLD, "train", NUM, seed=3, **options), form))


def scene(index: int):
    return make_scene(WORLD, "train", index, seed=3)


def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture(autouse=True)
def cache_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets library copies parquet into a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def open_form(form: str, folder: Path, **options) -> Source:
    path = written(folder, form, **options)
    if form == "parquet":
        return open_source(HuggingFaceData(path, caption_key="caption"))
    return open_source({"json": JsonData, "tar": TarData}[form](path))


@pytest.mark.parametrize("form", ["json", "tar", "parquet"])
def test_captioned_forms_give_back_images_and_true_captions(form: str, tmp_path: Path) -> None:
    source = open_form(form, tmp_path)
    assert len(source) == NUM
    for index in range(NUM):
        sample = source.sample(index, rng(), i2t=True)
        assert np.array_equal(np.asarray(sample.image), render(scene(index)))
        assert caption_is_right(scene(index), sample.turns[0].answer)
        assert sample.caption == sample.turns[0].answer
    assert source.sizes().tolist() == [[64, 64]] * NUM


def test_jpeg_images_of_twice_the_size_look_the_same(tmp_path: Path) -> None:
    source = open_form("tar", tmp_path, jpeg=True, upscale=2)
    image = source.sample(1, rng(), i2t=False).image
    assert image.size == (128, 128)
    error = np.asarray(image.resize((64, 64)), float) - render(scene(1))
    assert np.abs(error).mean() < 6


def test_conversations_have_several_true_turns_and_some_no_image(tmp_path: Path) -> None:
    source = open_source(LlavaData(written(tmp_path, "llava")))
    samples = [source.sample(i, rng(), i2t=True) for i in range(len(source))]
    shown = [sample for sample in samples if sample.image is not None]
    assert len(shown) == NUM
    assert 0 < len(samples) - NUM < NUM / 2
    for index, sample in enumerate(shown):
        assert 2 <= len(sample.turns) <= 4
        assert np.array_equal(np.asarray(sample.image), render(scene(index)))
        for turn in sample.turns:
            assert turn.question is not None
            assert "<image>" not in turn.question
            if turn.question == "describe the picture.":
                assert caption_is_right(scene(index), turn.answer, complete=True)
    words = {
        w
        for s in samples
        for t in s.turns
        for w in f"{t.question} {t.answer}".replace("?", "").replace(".", "").split()
    }
    assert words <= set(list_vocabulary())


def test_questions_have_ten_answers_that_nearly_agree(tmp_path: Path) -> None:
    path = written(tmp_path, "questions")
    cfg = QuestionsData(path, str(tmp_path / "annotations.json"), images=str(tmp_path / "images"))
    source = open_source(cfg)
    assert len(source) == 2 * NUM
    for index in (0, 1, 2 * NUM - 1):
        sample = source.sample(index, rng(), i2t=True)
        assert sample.short_answers
        assert np.abs(np.asarray(sample.image, float) - render(scene(index // 2))).mean() < 4
    annotations = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    for entry in annotations:
        answers = [answer["answer"] for answer in entry["answers"]]
        assert len(answers) == NUM_ANSWERS
        assert answers.count(entry["multiple_choice_answer"]) >= NUM_ANSWERS - 1


def test_what_is_exported_twice_is_the_same(tmp_path: Path) -> None:
    for form in FORMS:
        first, second = (Path(written(tmp_path / name / form, form)) for name in "ab")
        if first.is_file():
            assert first.read_bytes() == second.read_bytes()
    one, other = (sorted((tmp_path / name / "tar").glob("*.tar")) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_parquet_of_questions_gives_short_answers(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    image = WorldScenes(WORLD, "train", 1).encode(scene(0))
    rows = {"image": [image, b"text"], "q": ["what?", "where?"], "a": ["a dog", "here"], "width": [64, 64]}
    parquet.write_table(arrow.table({**rows, "height": [64, 64]}), tmp_path / "x.parquet")
    cfg = HuggingFaceData(str(tmp_path), question_key="q", answer_key="a")
    source = open_source(cfg)
    assert source.sample(0, rng(), i2t=True).turns == (("what?", "a dog"),)
    assert source.sizes().tolist() == [[64, 64]] * 2
    with pytest.raises(Exception, match="not an image"):
        source.sample(1, rng(), i2t=True)
    with pytest.raises(Exception, match="no caption"):
        source.sample(0, rng(), i2t=False)
    with pytest.raises(ValueError, match=r"has no column nothing; it has image, q, a, width, height"):
        open_source(HuggingFaceData(str(tmp_path), caption_key="nothing"))
    with pytest.raises(ValueError, match="no parquet file"):
        open_source(HuggingFaceData(str(tmp_path / "*.pq"), caption_key="q"))
    with pytest.raises(ValueError, match="set caption_key"):
        open_source(HuggingFaceData(str(tmp_path)))


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("json", "json"),
        ("tar", "tar"),
        ("llava", "llava"),
        ("questions", "questions"),
        ("parquet", "huggingface"),
    ],
)
def test_the_kind_of_a_source_is_seen_from_its_path(form: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, form)
    hints = Hints(annotations=str(tmp_path / "annotations.json")) if form == "questions" else Hints()
    cfg = guess_source(path, hints)
    assert cfg.kind == kind
    assert len(open_source(cfg)) >= NUM


def test_a_sources_own_configuration_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text(
        json.dumps({"kind": "world", "num_scenes": 7, "world": {"max_objects": 2}})
    )
    cfg = guess_source(str(tmp_path / "source.json"))
    assert isinstance(cfg, WorldData)
    assert (cfg.num_scenes, cfg.world.max_objects) == (7, 2)
    (tmp_path / "source.json").write_text(json.dumps({"kind": "world", "scenes": 7}))
    with pytest.raises(ValueError, match="unknown key 'scenes'; did you mean num_scenes"):
        guess_source(str(tmp_path / "source.json"))
    (tmp_path / "source.json").write_text(json.dumps({"kind": "world", "num_scenes": "7"}))
    with pytest.raises(ValueError, match="num_scenes must be a whole number, got '7'"):
        guess_source(str(tmp_path / "source.json"))
    (tmp_path / "source.json").write_text(json.dumps({"kind": "word"}))
    with pytest.raises(ValueError, match=r"kind is 'word'; known: world, json, tar, .*; did you mean world"):
        guess_source(str(tmp_path / "source.json"))


def test_other_keys_than_the_published_ones_are_found(tmp_path: Path) -> None:
    (tmp_path / "meta.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a dog"}))
    cfg = guess_source(str(tmp_path / "meta.jsonl"))
    assert isinstance(cfg, JsonData)
    assert (cfg.image_key, cfg.caption_key) == ("file_name", "text")


def test_what_cannot_be_guessed_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_text("")
    for path, fault in {
        str(tmp_path): "holds no image with a caption: put images into a folder for each class",
        str(tmp_path / "x.bin"): "give --kind",
        "nowhere.json": "does not exist",
    }.items():
        with pytest.raises(ValueError, match=fault):
            guess_source(path)


def test_the_worlds_source_gives_scenes_of_its_seed_and_split() -> None:
    source = WorldSource(WorldData(WORLD, split="val", num_scenes=9, seed=5, question_fraction=0.5))
    assert len(source) == 9
    sample = source.sample(4, rng(), i2t=False)
    expected = make_scene(WORLD, "val", 4, seed=5)
    assert np.array_equal(np.asarray(sample.image), render(expected))
    assert caption_is_right(expected, sample.caption or "")
    turns = [source.sample(4, random.Random(i), i2t=True).turns[0] for i in range(200)]
    assert 0.35 < sum(turn.question is not None for turn in turns) / 200 < 0.65
