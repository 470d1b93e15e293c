"""CIDEr against the COCO scorer's own figures, and captions against the world's truth."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ddit.eval.captioning import cider, is_cider_zero, read_captions, score_captions, tokenize_caption
from ddit.eval.items import Item
from ddit.world import PRESETS, list_captions, make_scene

REFERENCE = json.loads((Path(__file__).parent / "data" / "cider_reference.json").read_text())["captions"]


def test_captions_are_tokenized_as_by_the_coco_scorer() -> None:
    for entry in REFERENCE:
        assert " ".join(tokenize_caption(entry["caption"])) == entry["tokens"]


def test_cider_is_that_of_the_coco_scorer() -> None:
    scores = cider([e["caption"] for e in REFERENCE], [e["references"] for e in REFERENCE])
    assert scores == pytest.approx([e["cider"] for e in REFERENCE], abs=1e-8)
    assert len({round(score, 3) for score in scores}) > 5  # the cases differ in their scores


def test_cider_of_two_images_by_hand() -> None:
    """Every n-gram has idf log 2: equal captions give 10, disjoint ones 0; four words have no longer n-grams."""
    references = [["a red dog runs"], ["two cats sleep there"]]
    assert cider(["a red dog runs", "one bird"], references) == pytest.approx([10, 0])
    # 1-grams: 3 of 4 shared, cosine 3/sqrt(3*4); 2-grams 2/sqrt(2*3); 3-grams 1/sqrt(1*2); one bigram shorter
    cosines = [3 / 12**0.5, 2 / 6**0.5, 1 / 2**0.5, 0]
    expected = 10 * sum(cosines) / 4 * 2.718281828459045 ** (-1 / 72)
    assert cider(["a red dog", "one bird"], references)[0] == pytest.approx(expected)


def test_a_repeated_word_is_clipped() -> None:
    references = [["red dog"], ["blue cat"]]
    # 1-grams (1, 1) against (3, 0): clipped to 1, 1 / (sqrt 2 * 3); two bigrams against one
    expected = 10 / 4 * (1 / (2**0.5 * 3)) * 2.718281828459045 ** (-1 / 72)
    assert cider(["red red red", "x"], references)[0] == pytest.approx(expected)


def test_an_image_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="need references"):
        cider(["a dog"], [[]])


def test_captions_of_the_world_are_right_only_in_every_attribute() -> None:
    scenes = [make_scene(PRESETS["fixed"], "test", index) for index in range(40)]
    scene = next(s for s in scenes if s.kind == "two" and all(o.color for o in s.objects))
    single = next(s for s in scenes if s.kind == "single")
    texts = list_captions(scene)
    items = [
        Item(str(i), Path("p.png"), None, {"references": list_captions(of)}, of)
        for i, of in enumerate((scene, scene, single, scene))
    ]
    colorless = texts[0].replace(f"{scene.objects[0].color} ", "")
    swapped = texts[0].replace(str(scene.objects[0].color), "grey")
    result = score_captions(items, [texts[0], swapped, list_captions(single)[0], colorless])
    assert result.scores == [1, 0, 1, 0]
    figures = {figure.name: figure.value for figure in result.figures}
    assert figures["every attribute"] == 0.5
    assert figures["every attribute: two"] == pytest.approx(1 / 3)
    assert figures["every attribute: single"] == 1


def test_real_captions_have_cider_alone() -> None:
    items = [
        Item(str(i), Path("p.png"), None, {"references": [text]})
        for i, text in enumerate(("a dog", "two cats"))
    ]
    result = score_captions(items, ["a dog", "a dog"])
    assert [figure.name for figure in result.figures] == ["CIDEr"]
    assert result.scores[0] > result.scores[1] == 0


def test_cider_of_one_image_or_of_equal_references_is_zero_and_said() -> None:
    for references in ([["a red dog"]], [["a red dog", "one"], ["one", "a red dog"]]):
        assert is_cider_zero(references)
        items = [Item(str(i), Path("p"), None, {"references": texts}) for i, texts in enumerate(references)]
        result = score_captions(items, ["a red dog"] * len(items))
        assert result.figures[0].value == 0
        assert result.notes[0].startswith("CIDEr is 0 here whatever the captions say, by its rule")
    other = [["a red dog"], ["two cats"]]
    assert not is_cider_zero(other)
    items = [Item(str(i), Path("p"), None, {"references": texts}) for i, texts in enumerate(other)]
    assert score_captions(items, ["a red dog", "two cats"]).notes == ()


def test_a_fault_scores_nothing() -> None:
    items = [Item(str(i), Path("p"), None, {"references": [text]}, fault="gone" if i else "")
             for i, text in enumerate(("a dog", "two cats"))]  # fmt: skip
    assert score_captions(items, ["a dog", "two cats"]).scores == [pytest.approx(5), 0]


def test_captions_are_read_whatever_their_ids_are(tmp_path: Path) -> None:
    for name in ("val/1.png", "train/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images = [{"id": 1, "file_name": "val/1.png"}, {"id": "2", "file_name": "train\\1.png"},
              {"id": 3, "file_name": "val/1.png"}, {"id": 1, "file_name": "val/1.png"}]  # fmt: skip
    captions = [
        {"image_id": "1", "caption": "one"},
        {"image_id": 2, "caption": 2},
        {"image_id": 3, "caption": None},
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    items, notes = read_captions(tmp_path)
    assert [(item.id, item.truth["references"]) for item in items] == [("1", ["one"]), ("2", ["2"])]
    assert [item.image for item in items] == [tmp_path / "val/1.png", tmp_path / "train/1.png"]
    assert notes == (
        "1 image without a caption left out, as in the official script (3)",
        "1 image left out: its id came before (1)",
    )
