"""Soft-TIFA and VQAScore: the probabilities are the scorer's, the means the benchmark's."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_pipeline
from typer.testing import CliRunner

from ddit.cli import app
from ddit.eval.answer_scores import (
    Atom,
    AtomPrompt,
    answer_probabilities,
    read_atoms,
    read_images,
    soft_tifa,
    vqa_score,
)
from ddit.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:the model does not know", "ignore:the text has")

ENTRY = {
    "prompt": "two red dogs",
    "atom_count": 3,
    "vqa_list": [["How many dogs is there", "two"], ["is the dog red", "Yes"]],
    "skills": ["count", "attribute"],
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{color}.png" for color in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (32, 32), path.stem).save(path)
    return paths


def test_the_answers_that_count() -> None:
    assert Atom("How many dogs?", "two", "count").answers == ("two", "Two", "2")
    assert Atom("Are there dogs?", "Yes", "object").answers == ("Yes", "yes")


def test_a_probability_is_that_of_all_ways_to_answer(pipeline: Pipeline, images: list[Path]) -> None:
    found = answer_probabilities(
        pipeline, images, ["is there a dog", "how many"], [("yes", "no", "yes"), ("two",)]
    )
    expected = []
    for image, question, texts in (
        (images[0], "is there a dog", ["yes", "no"]),
        (images[1], "how many", ["two"]),
    ):
        scores = pipeline.score(image, texts, questions=question)
        expected.append(sum(math.exp(score.log_prob) for score in scores))
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(0 < value < 1 for value in found)


def test_soft_tifa_is_the_mean_over_images_of_the_means_over_parts(
    pipeline: Pipeline, images: list[Path]
) -> None:
    prompt = AtomPrompt(
        "two red dogs",
        [Atom("How many dogs is there", "two", "count"), Atom("is the dog red", "Yes", "attribute")],
    )
    scored = soft_tifa(pipeline, [prompt], {"two red dogs": images})
    each = [soft_tifa(pipeline, [prompt], {"two red dogs": [image]}).scores[0] for image in images]
    figures = {figure.name: figure for figure in scored.figures}
    assert scored.scores[0] == pytest.approx(
        [sum(column) / 2 for column in zip(*each, strict=True)], rel=1e-4
    )
    assert figures["Soft-TIFA AM"].value == pytest.approx(sum(map(sum, each)) / 4, rel=1e-4)
    gm = sum(math.sqrt(a * b) for a, b in each) / 2
    assert (figures["Soft-TIFA GM"].value, figures["Soft-TIFA GM"].num) == (pytest.approx(gm, rel=1e-4), 2)
    assert figures["count"].value == pytest.approx((each[0][0] + each[1][0]) / 2, rel=1e-4)


def test_vqascore_asks_for_the_whole_prompt(pipeline: Pipeline, images: list[Path]) -> None:
    scored = vqa_score(pipeline, {"a dog": images[:1]})
    question = pipeline.style.short_answer('Does this image show "a dog"?')
    (expected,) = answer_probabilities(pipeline, images[:1], [question], [("Yes", "yes")])
    assert scored.scores == [[pytest.approx(expected)]]
    assert [(figure.name, figure.num) for figure in scored.figures] == [("VQAScore", 1)]


def test_the_commands_write_the_official_lists(
    images: list[Path], pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    data, found, out = (tmp_path / name for name in ("data.jsonl", "images.json", "scores.json"))
    data.write_text(json.dumps(ENTRY) + "\n")
    found.write_text(json.dumps({"two red dogs": images[0].name}))
    common = ["--model", tmp_path / "model", "-o", out, "--json", "--overwrite"]
    for command, parts in (
        (["soft-tifa", found, "--data", data, *common], 2),
        (["vqascore", found, *common], 1),
    ):
        result = CliRunner().invoke(app, ["score-images", *map(str, command)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        (scores,) = json.loads(out.read_text())
        assert len(scores) == parts
        assert json.loads(result.stdout.splitlines()[-1])["figures"][0]["num"] == 1


def test_mistakes_are_named(tmp_path: Path, pipeline: Pipeline) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**ENTRY, "skills": ["count"]}))
    with pytest.raises(ValueError, match=r"vqa_list must hold \[question, answer\]"):
        read_atoms(path)
    path.write_text(json.dumps({"two red dogs": "gone.png"}))
    with pytest.raises(ValueError, match=r"no image .*gone\.png"):
        read_images(path)
    with pytest.raises(ValueError, match="is neither a folder nor a JSON file"):
        read_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="1 of 1 prompts have no image, such as 'a dog'"):
        soft_tifa(pipeline, [AtomPrompt("a dog", [])], {})
