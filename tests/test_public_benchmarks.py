"""The scripts of the public data sets: what they make of each set's files, and NLVR's official rule."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.public import nlvr
from benchmarks.public.common import Question, write_questions
from benchmarks.public.easy_vqa import read_questions
from ddit.data.sources import open_source
from ddit.data.sources.guess import guess_source
from ddit.eval.items import Figure

EXAMPLES = [
    nlvr.Example("dev", "7-0", "there is a box", "true"),
    nlvr.Example("dev", "7-2", "there is a box", "false"),
    nlvr.Example("dev", "31-1", "all are blue", "true"),
]


def right() -> dict[str, str]:
    return {name: one.label.upper() for one in EXAMPLES for name in one.images}


def test_consistency_is_of_sentences_all_of_whose_images_are_right() -> None:
    assert nlvr.score(right(), EXAMPLES) == (1.0, 18, 1.0, 2)
    one_wrong = {**right(), "dev-7-2-5.png": "true"}
    assert nlvr.score(one_wrong, EXAMPLES) == (17 / 18, 18, 0.5, 2)
    all_true = dict.fromkeys(right(), "true")
    assert nlvr.score(all_true, EXAMPLES) == (12 / 18, 18, 0.5, 2)
    with pytest.raises(ValueError, match=r"1 predictions are missing, the first that of dev-31-1-0\.png"):
        nlvr.score({name: text for name, text in right().items() if name != "dev-31-1-0.png"}, EXAMPLES)


@pytest.mark.skipif("NLVR" not in os.environ, reason="NLVR names no copy of the set")
def test_the_scores_are_those_of_the_official_script(tmp_path: Path) -> None:
    copy = Path(os.environ["NLVR"])
    examples = nlvr.read_examples(copy / "dev" / "dev.json")
    rng = np.random.default_rng(0)
    wrong = {"true": "false", "false": "true"}
    said = {
        name: wrong[one.label] if rng.random() < 0.05 else one.label
        for one in examples
        for name in one.images
    }
    (tmp_path / "said.csv").write_text("".join(f"{name},{text}\n" for name, text in said.items()))
    script = [sys.executable, str(copy / "metrics_images.py"), str(tmp_path / "said.csv")]
    printed = subprocess.run(
        [*script, str(copy / "dev" / "dev.json")], check=True, capture_output=True, text=True
    ).stdout
    precision, consistency = (float(value) for value in re.findall(r"=([\d.]+)", printed))
    found = nlvr.score(said, examples)
    assert (found.precision, found.consistency) == (precision, consistency)
    assert 0.1 < consistency < 0.9


def test_boxes_are_folded_into_a_square() -> None:
    image = Image.new("RGB", (400, 100), "black")
    for number, color in enumerate(("red", "lime", "blue")):
        image.paste(Image.new("RGB", (100, 100), color), (150 * number, 0))
    folded = nlvr.fold_boxes(image)
    assert folded.size == (200, 200)
    corners = [folded.getpixel(place) for place in ((0, 0), (199, 99), (0, 199), (199, 199))]
    assert corners == [(255, 0, 0), (0, 255, 0), (0, 0, 255), nlvr.GREY]


def test_nlvr_reads_its_files_and_names_a_missing_image(tmp_path: Path) -> None:
    lines = [{"sentence": "a", "identifier": "7-0", "label": "True", "structured_rep": []}]
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = nlvr.read_examples(tmp_path / "dev.json")
    assert found == [nlvr.Example("dev", "7-0", "a", "true")]
    folder = tmp_path / "dev" / "images" / "3"
    folder.mkdir(parents=True)
    for order in range(5):
        Image.new("RGB", (400, 100)).save(folder / f"dev-7-0-{order}.png")
    with pytest.raises(ValueError, match=r"no image dev-7-0-5\.png"):
        nlvr.write_images(tmp_path, tmp_path / "out", found)
    Image.new("RGB", (400, 100)).save(folder / "dev-7-0-5.png")
    nlvr.write_images(tmp_path, tmp_path / "out", found)
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_nlvr_figures_are_of_what_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    class Answered:
        answers = ["True."] * 12 + ["no idea"] * 6

    def ask(model: Path, questions: list[Question], images: Path) -> type[Answered]:
        asked.extend(questions)
        return Answered

    monkeypatch.setattr(nlvr, "ask", ask)
    found = nlvr.evaluate(tmp_path, tmp_path, EXAMPLES)
    assert asked[0] == Question("dev-7-0-0.png", "there is a box", "true")
    assert found == [
        Figure("dev: accuracy", 6 / 18, 18, {"majority": 2 / 3}),
        Figure("dev: consistency", 0.0, 2),
    ]
    assert (tmp_path / "dev.csv").read_text().splitlines()[11:13] == [
        "dev-7-2-5.png,true",
        "dev-31-1-0.png,false",
    ]


def test_easy_vqa_and_what_nlvr_writes_are_sources_of_questions(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), ("red", "blue")[number]).save(tmp_path / "images" / f"{number}.png")
    entries = [["what color is it?", "red", 0], ["is it red?", "no", 1]]
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    written = write_questions(tmp_path / "nlvr.json", read_questions(tmp_path))
    for path in (str(tmp_path / "questions.json"), written):
        source = open_source(guess_source(path))
        assert len(source) == 2
        sample = source.sample(1, random.Random(0), i2t=True)
        assert sample.turns == (("is it red?", "no"),)
        assert isinstance(sample.image, Image.Image)
        assert sample.image.getpixel((0, 0)) == (0, 0, 255)
