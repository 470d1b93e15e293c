"""GenEval's rules on hand-made detections, its folder, its prompt file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ddit.eval.geneval import (
    WorldJudge,
    read_prompts,
    score_images,
    tally_categories,
    unknown_names,
    write_grid,
    write_metadata,
)
from ddit.world import PRESETS, Detection, Prompt, check_detections, make_prompts, make_scene, render

DOGS = Prompt(
    "a photo of two dogs", "counting", [{"class": "dog", "count": 2}], [{"class": "dog", "count": 3}]
)
LEFT = Prompt(
    "a photo of a dog left of a cat",
    "position",
    [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
)
BOUND = Prompt(
    "a photo of a red dog and a blue cat",
    "color_attr",
    [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
)


def seen(
    name: str, x: float = 32, y: float = 32, *, size: float = 10, color: str | None = None, score: float = 0.9
):
    half = size / 2
    return Detection(name, color, (x - half, y - half, x + half, y + half), score)


@pytest.mark.parametrize(("number", "right"), [(0, False), (1, False), (2, True), (3, False), (4, False)])
def test_counting_is_exact(number: int, right: bool) -> None:
    assert check_detections(DOGS, [seen("dog", 10 * i) for i in range(number)]) == right


@pytest.mark.parametrize(
    ("x", "y", "right"),
    [
        (-10, 0, True),
        (10, 0, False),
        (0, -10, False),
        # the margin is a tenth of both boxes: 2 pixels here; less than that is no relation at all
        (-2, 0, False),
        (-2.1, 0, False),  # 0.1 beyond the margin, but under half of the offset
        (-4.1, 0, True),  # 2.1 of 4.1
        (-10, 15, False),  # 8 of 18 along x: it is "below"
        (-15, 10, True),  # both axes hold: 13 of 18 along x
    ],
)
def test_positions_go_by_the_centres_with_the_official_margin(x: float, y: float, right: bool) -> None:
    assert check_detections(LEFT, [seen("cat", 30, 30), seen("dog", 30 + x, 30 + y)]) == right


def test_colours_are_bound_to_their_object() -> None:
    assert check_detections(BOUND, [seen("dog", color="red"), seen("cat", color="blue")])
    assert not check_detections(BOUND, [seen("dog", color="blue"), seen("cat", color="red")])
    assert not check_detections(BOUND, [seen("dog", color="red"), seen("cat", color=None)])


def test_of_several_the_most_confident_counts() -> None:
    cat = seen("cat", color="blue")
    for green, red in ((0.5, 0.8), (0.8, 0.5)):
        dogs = [seen("dog", color="green", score=green), seen("dog", color="red", score=red)]
        assert check_detections(BOUND, [*dogs, cat]) == (red > green)


def test_overall_is_the_mean_of_the_categories_not_of_the_images() -> None:
    figures = tally_categories(["colors"] * 4 + ["position"], [True, True, True, True, False])
    assert [(figure.name, figure.value) for figure in figures] == [
        ("overall", 0.5),
        ("colors", 1.0),
        ("position", 0.0),
    ]


def test_a_rendered_scene_scores_as_it_should() -> None:
    scene = next(s for s in (make_scene(PRESETS["fixed"], "test", i) for i in range(50)) if s.kind == "count")
    group = scene.groups[0]
    image = Image.fromarray(render(scene))
    right = Prompt("?", "counting", [{"class": group.class_name, "count": group.count}])
    wrong = Prompt("?", "counting", [{"class": group.class_name, "count": group.count + 1}])
    large = image.resize((256, 256), Image.Resampling.BICUBIC)  # a larger model's image is resized
    assert [score.correct for score in score_images([right, wrong, right], [image, image, large])] == [
        True,
        False,
        True,
    ]


def test_the_folder_is_the_official_one(tmp_path: Path) -> None:
    samples = write_metadata(tmp_path, 3, LEFT)
    assert samples == tmp_path / "00003" / "samples"
    assert json.loads((tmp_path / "00003" / "metadata.jsonl").read_text()) == {
        "tag": "position",
        "include": LEFT.include,
        "prompt": LEFT.text,
    }
    for number in range(4):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(samples / f"{number:04d}.png")
    write_grid(tmp_path, 3)
    grid = Image.open(tmp_path / "00003" / "grid.png")
    assert grid.size == (16, 12)
    assert [grid.getpixel(corner) for corner in ((0, 0), (8, 0), (0, 6), (8, 6))] == [
        (n, 0, 0) for n in range(4)
    ]


def test_prompts_are_read_as_they_were_written(tmp_path: Path) -> None:
    prompts = make_prompts(PRESETS["fixed"], 5)
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(prompt.to_json()) + "\n" for prompt in prompts))
    assert read_prompts(path) == prompts
    assert not any(unknown_names(WorldJudge(), prompt) for prompt in prompts)
    bench = {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    }
    path.write_text(json.dumps(bench) + "\n")
    assert unknown_names(WorldJudge(), read_prompts(path)[0]) == ["bench"]
    path.write_text(json.dumps({**bench, "tag": "beauty"}) + "\n")
    with pytest.raises(ValueError, match=r"tag must be one of single_object, .*, got 'beauty'"):
        read_prompts(path)


@pytest.mark.parametrize(
    "clause",
    [
        {"class": "dog"},
        {"class": "dog", "count": 0},
        {"class": "dog", "count": "1"},
        {"class": "dog", "count": 1, "color": 1},
        {"class": "dog", "count": 1, "position": ["left of", 1]},
        {"class": "dog", "count": 1, "position": "left of"},
        "dog",
    ],
)
def test_a_clause_of_another_form_is_refused_before_anything_is_generated(
    tmp_path: Path, clause: object
) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    include = [{"class": "cat", "count": 1}, clause]
    path.write_text("\ufeff" + json.dumps({"tag": "position", "include": include, "prompt": "a photo"}))
    with pytest.raises(ValueError, match="a clause must have class, count"):
        read_prompts(path)
