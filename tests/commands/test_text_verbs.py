"""`ddit caption`, `ask` and `infill`, on a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Run

from ddit.images import read_image
from ddit.pipeline import Pipeline


def test_caption(run: Run, model: Path, image: Path):
    alone = run("caption", image, "-m", model)
    assert alone.code == 0
    assert len(alone.out.splitlines()) == 1
    both = run("caption", image, image, "-m", model)
    assert both.out.splitlines()[0] == f"{image}\t{alone.out.strip()}"
    as_json = run("caption", image, "-m", model, "--json")
    assert json.loads(as_json.out) == {"image": str(image), "caption": alone.out.strip()}


def test_a_detailed_caption_answers_its_question_or_is_refused_in_a_line(
    run: Run, model: Path, image: Path, monkeypatch: pytest.MonkeyPatch
):
    fault = run("caption", image, "-m", model, "--detailed").fault
    assert fault == "the model writes no detailed captions: it does not know 'Describe the image in detail.'"
    monkeypatch.setattr("ddit.prompts.DETAILED_QUESTION", "what is there of the photo")
    asked = run("ask", image, "what is there of the photo", "-m", model, "--num-steps", 4)
    assert run("caption", image, "-m", model, "--detailed").out == asked.out


def test_of_several_images_those_that_can_be_read_are_captioned(
    run: Run, model: Path, image: Path, tmp_path: Path
):
    torn, gone = tmp_path / "torn.png", tmp_path / "gone.png"
    torn.write_bytes(image.read_bytes()[:60])
    alone = run("caption", image, "-m", model).out
    result = run("caption", torn, image, gone, "-m", model)
    assert result.code == 1
    assert result.out == f"{image}\t{alone}"
    said = [line for line in result.err.splitlines() if line.startswith("ddit: ")]
    assert [line.split("'")[1] for line in said] == [str(torn), str(gone)]
    as_json = [
        json.loads(line) for line in run("caption", torn, image, "-m", model, "--json").out.splitlines()
    ]
    assert [sorted(entry) for entry in as_json] == [["error", "image"], ["caption", "image"]]
    assert "is a broken image" in as_json[0]["error"]
    none = run("caption", torn, gone, "-m", "no-such-model")  # which is not loaded
    assert (none.code, none.out, len(none.err.splitlines())) == (1, "", 2)


def test_captions_in_a_grid_and_step_by_step(run: Run, model: Path, image: Path, tmp_path: Path):
    grid = tmp_path / "grid.png"
    result = run("caption", image, "-m", model, "--grid", grid, "--watch")
    assert read_image(grid).size[0] == 120 + 16  # 40 pixels, enlarged three times
    steps = [line for line in result.err.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]
    assert steps[-1].endswith(result.out.strip())
    filled = run("infill", image, "the ___ is red", "-m", model, "--watch")
    assert filled.err.rstrip().endswith(filled.out.strip())


def test_a_grid_of_captions_is_overwritten_on_request_alone(
    run: Run, model: Path, image: Path, tmp_path: Path
):
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"mine")
    words = ("caption", image, "--grid", grid)
    assert run(*words, "-m", "never/loaded").fault == f"'{grid}' exists: give --overwrite"
    assert grid.read_bytes() == b"mine"
    assert run(*words, "-m", model, "--overwrite").code == 0
    assert read_image(grid).width > 100


def test_an_image_that_is_missing_gets_the_nearest_file(run: Run, model: Path, image: Path):
    fault = run("caption", image.with_name("imag.png"), "-m", model).fault
    assert fault.endswith("; did you mean image.png?")
    fault = run("ask", image, "is it?", "--order", "entropi", "-m", model).fault
    assert fault.endswith("; did you mean entropy?")


def test_a_path_that_is_no_text_is_printed_as_it_was_given(model: Path, image: Path, tmp_path: Path):
    strange = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    shutil.copy(image, strange)
    command = [sys.executable, "-m", "ddit", "caption", strange, strange, "-m", model]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    plain = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    assert all(line.startswith(strange + b"\t") for line in plain.splitlines())
    as_json = subprocess.run([*command, "--json"], check=True, capture_output=True, env=environment).stdout
    assert json.loads(as_json.splitlines()[0])["image"] == os.fsdecode(strange)


def test_an_argument_that_is_no_text_is_one_line(run: Run, model: Path, image: Path):
    fault = run("ask", image, os.fsdecode(b"is it a caf\xe9?"), "-m", model).fault
    assert "holds a lone surrogate (\\udce9), which is no character (the byte 0xe9, not UTF-8)" in fault


def test_ask(run: Run, model: Path, image: Path):
    result = run("ask", image, "is there a dog?", "what color is the cat?", "-m", model, "--json")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["question"] for answer in answers] == ["is there a dog?", "what color is the cat?"]
    assert run("ask", image, "is there a dog?", "-m", model).out.strip() == answers[0]["answer"]


def test_infill(run: Run, model: Path, image: Path):
    result = run("infill", image, "the ___ is red", "-m", model)
    assert result.out.startswith("the")
    assert result.out.endswith(" is red\n")
    values = json.loads(run("infill", image, "the ___ is red", "-m", model, "--json").out)
    assert values["filled"] == result.out.strip()


def test_text_verbs_load_and_read_as_image_verbs_do(run: Run, model: Path, image: Path):
    pipeline = Pipeline.from_pretrained(model)
    size = ("--height", 16, "--width", 24, "--batch-size", 1, "--seed", 3, "-m", model)
    asked = pipeline.answer(image, "is there a dog?", height=16, width=24, seed=3)
    assert run("ask", image, "is there a dog?", *size).out.splitlines() == asked
    captions = pipeline.caption([image, image], height=16, width=24, seed=3)
    lines = run("caption", image, image, *size).out.splitlines()
    assert [line.partition("\t")[2] for line in lines] == captions
    plain = run("rank", image, "a dog", "a cat", "-m", model).out
    assert run("rank", image, "a dog", "a cat", "-m", model, "--offload").out == plain
    assert run("infill", image, "the ___ is red", "-m", model, "--int8", "--offload").code == 0


def test_mask_embedding(run: Run, model: Path, image: Path, tmp_path: Path):
    torch.save(torch.ones(24), tmp_path / "mask.pth")
    assert run("caption", image, "--mask-embedding", tmp_path / "mask.pth", "-m", model).code == 0
