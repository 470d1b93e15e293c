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

from benchmarks.public import cifar10_classifier, curves, nlvr
from benchmarks.public.common import Question, write_questions
from benchmarks.public.easy_vqa import read_questions
from benchmarks.public.lmms_easy_vqa import write_vizwiz
from ddit.data.sources import open_source
from ddit.data.sources.guess import guess_source
from ddit.eval.intervals import wilson
from ddit.eval.items import Figure
from ddit.eval.vqa import read_vizwiz, score_vizwiz

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


def test_a_sentence_is_trained_on_or_held_out() -> None:
    examples = [
        nlvr.Example("dev", f"{n}-{i}", f"sentence {n}", "true") for n in range(1000) for i in range(2)
    ]
    trained, held_out = nlvr.hold_out(examples)
    assert len(trained) + len(held_out) == len(examples)
    assert 60 <= len({one.sentence for one in held_out}) <= 140
    assert not {one.sentence for one in trained} & {one.sentence for one in held_out}


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
    limits = wilson(6 / 18, 3)
    assert found == [
        Figure("dev: accuracy", 6 / 18, 18, {"majority": 2 / 3}, is_share=False, limits=limits),
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

    for _ in range(2):  # the files are there when it is run again
        write_vizwiz(tmp_path / "out", tmp_path / "images", read_questions(tmp_path))
    items = read_vizwiz(tmp_path / "out" / "vizwiz", tmp_path / "out" / "images").items
    assert [(one.question, one.truth["answer"]) for one in items] == [
        ("what color is it?", "red"),
        ("is it red?", "no"),
    ]
    score = score_vizwiz(items, ["Red.", "yes"])
    assert next(one.value for one in score.figures if one.name == "accuracy") == 0.5


def test_curves_join_the_stages_of_a_fit(tmp_path: Path) -> None:
    lines = {
        "image": [(60, "flow_loss", 1.5)],
        "joint": [(30, "flow_loss", 1.25), (60, "question_exact", 0.5)],
    }
    for stage, events in lines.items():
        folder = tmp_path / "runs" / f"xs-{stage}"
        folder.mkdir(parents=True)
        texts = (
            json.dumps({"step": i, name: value, "seconds": s}) for i, (s, name, value) in enumerate(events)
        )
        (folder / "log.jsonl").write_text("".join(f"{text}\n" for text in texts))
    assert curves.read_fit(tmp_path) == {
        "question_exact": [(2.0, 0.5)],
        "flow_loss": [(1.0, 1.5), (1.5, 1.25)],
    }
    curves.main([f"one={tmp_path}", f"one={tmp_path}", "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="has no log of a transformer's run"):
        curves.read_fit(tmp_path / "none")


def test_the_plain_classifier_reads_the_folders_of_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        for channel, name in enumerate(("red", "green")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    monkeypatch.setattr(cifar10_classifier, "WIDTH", 8)
    monkeypatch.setattr("sys.argv", ["cifar10_classifier", str(tmp_path), "--minutes", "0.05"])
    cifar10_classifier.main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| CIFAR-10 | 0 | class by a plain classifier | 1.0000 |")
    assert "| 40 |" in row
