"""Folders of images: class folders, sidecars, names, and whatever else lies in a user's folder."""

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddit.cli import main
from ddit.config.data import FoldersData, TextData
from ddit.data.check import check_source
from ddit.data.samples import CorruptSample, Turn
from ddit.data.sources import FoldersSource, open_source
from ddit.data.sources.class_names import article_for, clean_name
from ddit.data.sources.guess import Hints, guess_source


def draw(path: Path, size: tuple[int, int] = (24, 20), seed: int = 0) -> Path:
    """An image of noise, so that no two seeds are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    form = {"jpg": "JPEG", "jpeg": "JPEG"}.get(path.suffix.lower().lstrip("."))
    Image.fromarray(values).resize(size).save(path, form)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(
        ["dog/1.png", "dog/2.png", "fire_truck/1.png", "n02123045_tabby/a/images/1.png"]
    ):
        draw(folder / name, seed=number)
    return folder


def open_folders(folder: Path, **settings) -> FoldersSource:
    source = open_source(FoldersData(str(folder), **settings))
    assert isinstance(source, FoldersSource)
    return source


def texts(source, index: int, *, i2t: bool, num: int = 60) -> set:
    drawn = [source.sample(index, random.Random(seed), i2t=i2t, with_image=False) for seed in range(num)]
    return {sample.turns[0] if i2t else sample.caption for sample in drawn}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("dog", "dog"),
        ("n02084071_dog", "dog"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02084071", "n02084071"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("fire-truck", "fire truck"),
        ("FireTruck", "Fire Truck"),
        ("BMWCar", "BMW Car"),
        ("iPod", "iPod"),
        ("7", "7"),
        ("8_ball", "8 ball"),
        ("_", "_"),
        ("Straßenbahn", "Straßenbahn"),
        ("großeStraße", "große Straße"),
        ("a\u0308pfel", "äpfel"),
        ("日本", "日本"),
        ("🙂", "🙂"),
    ],
)
def test_a_folders_name_becomes_words(folder: str, name: str) -> None:
    assert clean_name(folder) == name


def test_the_article_goes_by_the_sound() -> None:
    an = "airplane apple umbrella hour honest heir MRX X 8 80 11 18 undershirt uncle urn Äpfel igloo"
    a = "dog house horse unicorn uniform user university euro one ewe BMW U 70 utensil ukulele 日本 🙂"
    assert {word for word in (an + " " + a).split() if article_for(word) == "an"} == set(an.split())


def test_captions_and_questions_come_from_the_folders_names(photos: Path) -> None:
    source = open_folders(photos)
    assert [Path(source.name(i)).relative_to(photos).as_posix() for i in range(4)] == [
        "dog/1.png",
        "dog/2.png",
        "fire_truck/1.png",
        "n02123045_tabby/a/images/1.png",
    ]
    assert (source.classes, source.labels.tolist()) == (["a", "dog", "fire truck"], [1, 1, 2, 0])
    assert texts(source, 2, i2t=False) == {"a photo of a fire truck", "a fire truck", "fire truck"}
    turns = texts(source, 2, i2t=True)
    assert {turn.answer for turn in turns if turn.question} == {"fire truck"}
    assert {turn.question for turn in turns} == {None, "what is this?", "what does the image show?"}


def test_templates_and_the_share_of_questions_can_be_given(photos: Path) -> None:
    german = ("ein Foto: {name}",)
    source = open_folders(
        photos, templates=german, question_templates=("Was ist das?",), question_fraction=1.0
    )
    assert texts(source, 0, i2t=False) == {"ein Foto: dog"}
    assert texts(source, 0, i2t=True) == {Turn("Was ist das?", "dog")}
    assert source.sample(0, random.Random(0), i2t=True).short_answers
    none = open_folders(photos, question_fraction=0.0)
    assert {turn.question for turn in texts(none, 0, i2t=True)} == {None}
    quarter = open_folders(photos, question_fraction=0.25)
    asked = [
        quarter.sample(0, random.Random(s), i2t=True, with_image=False).turns[0].question for s in range(400)
    ]
    assert 70 <= sum(question is not None for question in asked) <= 130


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"templates": ("a photo",)}, r"a template holds \{name\} and may hold \{article\}, .*got 'a photo'"),
        ({"templates": ("{nam}",)}, "got '{nam}'"),
        ({"templates": ("{name",)}, "got '{name'"),
        ({"templates": ("{name:d}",)}, "got '{name:d}'"),
        ({"templates": ()}, "templates must hold one text"),
        ({"question_templates": (" ",)}, "question_templates must hold one text"),
    ],
)
def test_a_wrong_template_is_one_line(settings: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        FoldersData("x", **settings)
    assert "\n" not in str(caught.value)


def test_the_order_is_that_of_the_paths_wherever_the_folder_is(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind in "zab" for number in (2, 10, 1)]
    for copy, order in (("one", names), ("two", names[::-1])):
        for name in order:
            draw(tmp_path / copy / name)
    found = []
    for copy in ("one", "two"):
        source = open_folders(tmp_path / copy)
        found.append([os.path.relpath(source.name(i), tmp_path / copy) for i in range(len(source))])
    assert found[0] == found[1] == sorted(names)


# --- what lies in a folder ---


def test_other_files_and_empty_folders_are_left_out_and_counted(photos: Path) -> None:
    (photos / "cat").mkdir()
    (photos / "dog/.3.png").write_bytes(b"x")
    (photos / "dog/._1.png").write_bytes(b"x")
    (photos / ".cache").mkdir()
    (photos / "dog/notes.doc").write_text("x")
    (photos / "dog/1.txt").write_text("a sidecar that is not asked for")
    draw(photos / "loose.png")
    source = open_folders(photos)
    assert "cat" not in source.classes
    assert len(source) == 4
    left = {cause: left_out.num for cause, left_out in source.left_out().items()}
    assert left == {
        "hidden": 3,
        "no image by its suffix": 1,
        "folder without images": 1,
        "in no class folder": 1,
    }
    assert source.left_out()["in no class folder"].first == (str(photos / "loose.png"),)
    assert check_source(FoldersData(str(photos))).left_out == source.left_out()


def test_suffixes_in_any_case_and_of_any_format_are_images(tmp_path: Path) -> None:
    for number, name in enumerate(
        ["1.JPG", "2.Jpeg", "3.PNG", "4.webp", "5.GIF", "6.tiff", "7.bmp", "8.ppm"]
    ):
        draw(tmp_path / "dog" / name, seed=number)
    source = open_folders(tmp_path)
    assert len(source) == 8
    assert all(source.sample(i, random.Random(0), i2t=False).image is not None for i in range(8))


def test_links_are_followed_and_dead_ones_are_missing_files(photos: Path, tmp_path: Path) -> None:
    elsewhere = draw(tmp_path / "store/x.png", seed=9)
    (photos / "cat").mkdir()
    (photos / "cat/1.png").symlink_to(elsewhere)
    (photos / "cat/2.png").symlink_to(tmp_path / "nowhere.png")
    draw(tmp_path / "birds/1.png", seed=10)
    (photos / "bird").symlink_to(tmp_path / "birds")
    (photos / "dog/loop").symlink_to(photos)
    source = open_folders(photos)
    assert Counter(source.classes[label] for label in source.labels) == {
        "dog": 2, "cat": 2, "bird": 1, "fire truck": 1, "a": 1,
    }  # fmt: skip
    report = check_source(FoldersData(str(photos)))
    assert {cause: fault.first for cause, fault in report.corrupt.items()} == {
        "missing file": (str(photos / "cat/2.png"),)
    }


def test_one_percent_of_broken_images_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    for number in range(100):
        draw(tmp_path / f"{'dog' if number % 2 else 'cat'}/{number:03}.png", seed=number)
    (tmp_path / "cat/000.png").write_bytes(b"")
    (tmp_path / "cat/002.png").write_text("text")
    whole = (tmp_path / "cat/004.png").read_bytes()
    (tmp_path / "cat/004.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat/006.png").unlink()
    os.mkfifo(tmp_path / "cat/006.png")
    report = check_source(FoldersData(str(tmp_path)))
    assert {cause: fault.num for cause, fault in report.corrupt.items()} == {
        "empty file": 1, "not an image": 1, "truncated image": 1, "missing file": 1,
    }  # fmt: skip
    assert report.num_checked - report.num_corrupt == 96
    assert open_folders(tmp_path).sizes()[3].tolist() == [0, 0]
    assert len(open_folders(tmp_path).digests()) == 100


@pytest.mark.parametrize("size", [(20, 20), (2000, 1500), (16, 128), (128, 16), (250, 2000), (1, 1)])
def test_images_of_any_size_and_ratio_are_read_and_measured(size: tuple[int, int], tmp_path: Path) -> None:
    draw(tmp_path / "dog/1.jpg", size)
    source = open_folders(tmp_path)
    assert source.sizes().tolist() == [list(size)]
    image = source.sample(0, random.Random(0), i2t=True).image
    assert isinstance(image, Image.Image)
    assert image.size == size


def test_names_of_any_script_and_of_no_script(tmp_path: Path) -> None:
    for number, name in enumerate(["Käfer", "日本 犬", "🙂", "a'b\"c{d}", "new\nline", "x" * 200]):
        draw(tmp_path / name / f"{name[:20]}.png", seed=number)
    bad = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(bad)
    os.rename(draw(tmp_path / "x.png", seed=7), bad + b"/\xe9.png")
    source = open_folders(tmp_path)
    assert {"Käfer", "日本 犬", "🙂", "a'b\"c{d}", "new line"} < set(source.classes)
    for index in range(len(source)):
        sample = source.sample(index, random.Random(index), i2t=True)
        assert sample.image is not None
        (sample.turns[0].answer + source.name(index)).encode()
    assert check_source(FoldersData(str(tmp_path))).num_corrupt == 0


def test_sizes_are_measured_anew_when_an_image_changes(photos: Path) -> None:
    assert open_folders(photos).sizes()[0].tolist() == [24, 20]
    before = open_folders(photos).digests()
    assert photos.with_name("photos.sizes.npz").is_file()
    draw(photos / "dog/1.png", (30, 10), seed=50)
    assert open_folders(photos).sizes()[0].tolist() == [30, 10]
    assert (open_folders(photos).digests() != before).tolist() == [True, False, False, False]


def test_several_splits_are_not_mixed(tmp_path: Path) -> None:
    for number, name in enumerate(["train/dog/1.png", "train/cat/1.png", "test/dog/1.png"]):
        draw(tmp_path / name, seed=number)
    with pytest.raises(ValueError, match=r"holds the splits test, train: give the folder of one, '.*train'"):
        open_folders(tmp_path)
    assert open_folders(tmp_path / "train").classes == ["cat", "dog"]
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    (tmp_path / "test/dog").rmdir()
    assert open_folders(tmp_path).classes == ["cat", "dog"]


# --- sidecars ---


def test_text_files_beside_the_images_are_their_captions(tmp_path: Path) -> None:
    for number, name in enumerate(["1.png", "sub/2.JPG", "sub/3.png", "4.png", "5.png"]):
        draw(tmp_path / name, seed=number)
    (tmp_path / "1.txt").write_bytes("\ufeff ein roter Hund 🙂\n".encode())
    (tmp_path / "sub/2.TXT").write_text("a red dog")
    (tmp_path / "sub/3.caption").write_text("a car")
    (tmp_path / "4.txt").write_bytes(b"\xff\xfe\xfa")
    cfg = guess_source(str(tmp_path))
    assert cfg == FoldersData(str(tmp_path), captions="sidecar")
    source = open_source(cfg)
    assert [os.path.basename(source.name(i)) for i in range(5)] == [
        "1.png",
        "4.png",
        "5.png",
        "2.JPG",
        "3.png",
    ]
    assert texts(source, 0, i2t=False) == {"ein roter Hund 🙂"}
    assert texts(source, 3, i2t=True) == {Turn(None, "a red dog")}
    assert texts(source, 4, i2t=False) == {"a car"}
    for index, cause in ((1, "bad text"), (2, "no caption")):
        with pytest.raises(CorruptSample) as caught:
            source.sample(index, random.Random(0), i2t=True)
        assert caught.value.cause == cause
    (tmp_path / "5.txt").write_text(" \n")
    assert check_source(cfg).corrupt["no caption"].num == 1


# --- what is recognised ---


def test_class_folders_are_recognised(photos: Path) -> None:
    assert guess_source(str(photos)) == FoldersData(str(photos))
    (photos / "dog/1.txt").write_text("one of four has a caption")
    assert guess_source(str(photos)) == FoldersData(str(photos))
    given = guess_source(str(photos), Hints(fields=(("templates", '["{name}!"]'), ("part", "train"))))
    assert given == FoldersData(str(photos), templates=("{name}!",), part="train")


def test_what_is_no_source_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="holds no image with a caption: put images into a folder for each class"
    ):
        guess_source(str(tmp_path))
    draw(tmp_path / "1.png")
    with pytest.raises(
        ValueError, match="holds no image with a caption: put images into a folder for each class"
    ):
        guess_source(str(tmp_path))
    with pytest.raises(ValueError, match="holds no image with a caption"):
        open_folders(tmp_path)
    with pytest.raises(
        ValueError, match=r"no image in .* has a text file beside it: put the caption of 1.jpg into"
    ):
        open_folders(tmp_path, captions="sidecar")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        open_folders(tmp_path / "1.png")
    with pytest.raises(ValueError, match="is a URL, and a folder of images must be on this machine"):
        open_source(FoldersData("s3://bucket/photos"))
    (tmp_path / "1.png").rename(tmp_path / "1.dat")
    (tmp_path / "a.txt").write_text("text alone")
    assert guess_source(str(tmp_path)) == TextData(str(tmp_path))


# --- the report ---


def test_the_report_has_classes_texts_and_images_that_are_there_twice(photos: Path, tmp_path: Path) -> None:
    image = Image.open(photos / "dog/1.png")
    image.save(photos / "dog/copy.png", compress_level=1)  # other bytes, equal pixels
    (photos / "fire_truck/wrong.png").write_bytes((photos / "dog/2.png").read_bytes())
    image.resize((48, 40), Image.Resampling.BICUBIC).save(photos / "dog/near.jpg", quality=90)
    report = check_source(FoldersData(str(photos)))
    assert report.classes == {"a": 1, "dog": 4, "fire truck": 2}
    assert report.num_captions + report.num_questions == 7
    images = report.images
    assert images is not None
    assert (images.num_distinct, images.repeated.num, images.conflicting.num, images.near.num) == (5, 2, 1, 1)
    assert images.near.first == (f"{photos}/dog/near.jpg = {photos}/dog/1.png",)
    lines = "\n".join(report.lines())
    assert "classes      3: dog 4, fire truck 2, a 1" in lines
    assert "images       5 distinct" in lines
    assert (
        f"1  of them in another class than the earlier one: {photos}/fire_truck/wrong.png = {photos}/dog/2.png"
        in lines
    )
    assert "held out" not in lines
    json.dumps(report.to_json())


def test_the_command_checks_a_folder(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ddit", "data", "check", str(photos), "--set", "part=train", "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == {"a": 1, "dog": 2, "fire truck": 1}
    assert found["images"]["num_distinct"] == 4
    assert isinstance(found["num_held_out"], int)
