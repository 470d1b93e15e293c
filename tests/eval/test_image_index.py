"""Images are found by their path, also behind links and in other folders, and never one for another."""

import os
from pathlib import Path

import pytest

from ddit.eval.image_index import ImageIndex


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        (["a.png"], "a.png", "a.png"),
        (["a.png"], "a", "a.png"),
        (["a.JPG"], "a.png", "a.JPG"),
        (["val/a.png"], "a.png", "val/a.png"),
        (["val/a.png", "train/a.png"], "val/a.png", "val/a.png"),
        (["val/a.png", "train/a.png"], "val\\a.png", "val/a.png"),
        (["val/a.png", "train/a.png"], "./val/a", "val/a.png"),
        (["x/val/a.png", "x/train/a.png"], "coco/val/a.png", "x/val/a.png"),
        (["a.png", "thumbs/a.png"], "a.png", "a.png"),
        (["a.jpg", "thumbs/a.jpg"], "a.png", "a.jpg"),
        (["a.jpg", "a.png"], "a", "a.jpg"),
        (["a.png"], "http://images.cocodataset.org/val2014/a.png", "a.png"),
        (["a.png"], "/somewhere/else/a.png", "a.png"),
        (["1.5.png"], "1.5", "1.5.png"),
        (["1.png"], "1.5", None),
        (["train/a.png"], "val/a.png", None),
        (["b.png"], "a.png", None),
        (["a.txt", "._a.png", "__MACOSX/a.png"], "a.png", None),
        (["cafe\u0301.png"], "caf\u00e9.png", "cafe\u0301.png"),
    ],
)
def test_a_name_finds_its_image(tmp_path: Path, files: list[str], name: str, found: str | None) -> None:
    index = ImageIndex(touch(tmp_path, *files))
    path = index.find(name)
    assert path == tmp_path / found if found else not path.exists()
    if found is None:
        with pytest.raises(ValueError, match=r"no image .* in .*: give the right folder as --images"):
            index.check()


def test_images_behind_links_are_found_and_circles_end(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "own.png")
    touch(tmp_path / "real", "val/a.png")
    os.symlink("../real/val", images / "val")
    os.symlink("..", images / "circle")
    os.symlink("nowhere.png", images / "dangling.png")
    index = ImageIndex(images)
    assert index.find("a.png").samefile(tmp_path / "real" / "val" / "a.png")
    assert index.find("val/a.png") == images / "val" / "a.png"
    assert not index.find("dangling.png").exists()
    index.check()


def test_a_folder_is_known_by_its_own_name_before_those_of_links(tmp_path: Path) -> None:
    touch(tmp_path, "val/a.png")
    os.symlink("val", tmp_path / "a")
    index = ImageIndex(tmp_path)
    assert index.find("coco/val/a.png") == tmp_path / "val" / "a.png"
    assert index.find("a/a.png").samefile(tmp_path / "val" / "a.png")


def test_one_image_by_two_links_is_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "b/a.png")
    os.symlink("b/a.png", tmp_path / "z.png")
    (tmp_path / "c").mkdir()
    os.symlink("../b/a.png", tmp_path / "c" / "a.png")
    assert ImageIndex(tmp_path).find("a.png").samefile(tmp_path / "b" / "a.png")


def test_what_may_mean_two_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'a.png' may be '.*/train/a.png' or '.*/val/a.png': name the images with"
    ):
        ImageIndex(touch(tmp_path, "val/a.png", "train/a.png")).find("a.png")


def test_two_names_for_one_image_are_refused(tmp_path: Path) -> None:
    index = ImageIndex(touch(tmp_path, "a.png"))
    assert index.find("val/a.png") == index.find("val/a.png") == tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"'val/a.png' and 'train/a.png' would both be"):
        index.find("train/a.png")


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder of images"):
        ImageIndex(tmp_path / "none")
