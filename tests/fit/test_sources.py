"""What `ddit fit` makes of the sources that it is given: their kinds, their parts, and what it finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddit.config.data import FoldersData, QuestionsData, TextData
from ddit.data.sources import open_source
from ddit.fit.plan import Findings, FitOptions, Request
from ddit.fit.sources import TEXT_ALONE_SHARE, Named, divide, find_sources, read_sources


def request(*sources: Path, **options: object) -> Request:
    return Request(tuple(map(str, sources)), "out", options=FitOptions(**options))  # pyright: ignore[reportArgumentType]


def findings(asked: Request) -> tuple[list[Named], list[Named], Findings]:
    trained, judged, num_images, num_held_out = divide(find_sources(asked), asked)
    return trained, judged, read_sources(trained, judged, num_images, num_held_out)


def digests(sources: list[Named]) -> set[int]:
    return {int(value) for source in sources for value in open_source(source.config).digests()}


def test_an_image_is_on_one_side_in_all_sources(listed: Path) -> None:
    asked = request(listed / "captions.json", questions=(str(listed / "questions.json"),), held_out=("10%",))
    trained, judged, found = findings(asked)
    assert [source.role for source in trained] == ["images", "questions"]
    assert isinstance(trained[1].config, QuestionsData)
    assert not digests(trained) & digests(judged)
    assert len(digests(judged)) == found.num_held_out_images == 6
    assert (found.num_images, found.num_captions, found.num_questions) == (60, 60, 60)
    assert [source.num_held_out for source in found.sources] == [6, 6]


def test_the_share_holds_exactly_and_at_least_one_is_held_out(classes: Path) -> None:
    for share, count in ((0.001, 1), (0.25, 12), (0.999, 47)):
        _, judged, _ = findings(request(classes, held_out=(str(share),)))
        assert len(digests(judged)) == count


def test_sources_may_be_held_out(classes: Path, listed: Path) -> None:
    trained, judged, found = findings(request(classes, held_out=(str(listed / "captions.json"),)))
    assert trained[0].config.part == judged[0].config.part == "all"
    assert found.held_out[0].num_captions == 60
    assert found.num_held_out_images == 60


def test_templates_and_text_alone(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("ein Bild in {name}\n\n{name}\n")
    (tmp_path / "text.txt").write_text("\n".join(f"Zeile {number}" for number in range(100)))
    asked = request(
        classes, templates=str(tmp_path / "templates.txt"), text_alone=(str(tmp_path / "text.txt"),)
    )
    folder, text = find_sources(asked)
    assert isinstance(folder.config, FoldersData)
    assert folder.config.templates == ("ein Bild in {name}", "{name}")
    assert isinstance(text.config, TextData)
    share = text.config.weight / (text.config.weight + folder.config.weight)
    assert share == pytest.approx(TEXT_ALONE_SHARE)


def test_broken_files_are_counted(classes: Path, tmp_path: Path) -> None:
    shutil.copytree(classes, tmp_path / "some")
    for number in (3, 4):
        (tmp_path / "some" / "rot" / f"{number}.png").write_bytes(b"no image")
    _, _, found = findings(request(tmp_path / "some"))
    assert found.num_corrupt == 2
    assert sum(found.sources[0].corrupt.values()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": ("0",)}, r"--held-out takes a share above 0 and below 1, or sources, got 0"),
        ({"held_out": ("0.1", "0.2")}, r"or sources, got 0\.1 0\.2"),
        ({"held_out": ("nowhere",)}, r"'nowhere' does not exist"),
        ({"templates": "nowhere.txt"}, r"nowhere\.txt' does not exist"),
        ({"annotations": ("a.json",)}, r"0 --questions and 1 --annotations: give one for each"),
    ],
)
def test_wrong_options_are_one_clear_line(classes: Path, options: dict[str, object], message: str) -> None:
    asked = request(classes, **options)
    with pytest.raises(ValueError, match=message) as caught:
        divide(find_sources(asked), asked)
    assert "\n" not in str(caught.value)


def test_templates_need_class_folders_and_text_alone_needs_text(
    classes: Path, listed: Path, tmp_path: Path
) -> None:
    (tmp_path / "templates.txt").write_text("{name}")
    with pytest.raises(ValueError, match="no SOURCE is one"):
        find_sources(request(listed / "captions.json", templates=str(tmp_path / "templates.txt")))
    with pytest.raises(ValueError, match=r"takes text without images, and .* is of kind folders"):
        find_sources(request(classes, text_alone=(str(classes),)))


def test_too_few_images_and_nothing_usable_are_refused(classes: Path, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "few" / "a").mkdir(parents=True, exist_ok=True)
        shutil.copy(classes / "rot" / f"{number}.png", tmp_path / "few" / "a")
    with pytest.raises(ValueError, match="there are 10 images, and a model needs 16 at least"):
        findings(request(tmp_path / "few"))
    rng = np.random.default_rng(0)
    (tmp_path / "broken" / "a").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "broken" / "a" / f"{number}.png").write_bytes(rng.bytes(50))
    with pytest.raises(ValueError, match=r"no sample of '.*broken' can be used \(not an image: 20\)"):
        findings(request(tmp_path / "broken"))


def test_easy_vqas_list_of_questions_is_known_by_itself(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(20):
        shutil.copy(listed / f"{number}.png", tmp_path / "images" / f"{number}.png")
    entries = [["what is it?", "an image", number] for number in range(20)]
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    (source,) = find_sources(request(tmp_path / "questions.json"))
    assert isinstance(source.config, QuestionsData)
    assert (source.role, source.config.image_pattern) == ("questions", "{image_id}.png")
    assert source.config.images == str(tmp_path / "images")
