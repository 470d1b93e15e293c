"""`ddit fit` as it is run: killed at random and resumed, on the forms that data have, from nothing and from `mini`."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from ddit.files import read_json
from ddit.fit import fit
from ddit.model.folders import resolve
from ddit.model.loading import load_text_codec
from ddit.pipeline import Pipeline

pytestmark = pytest.mark.slow

HOURS = 0.004


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ddit", "fit", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=900)


def check_model(out: Path, prompt: str, question: str) -> None:
    """Whether the verbs take the model, and its words are known."""
    pipeline = Pipeline.from_pretrained(out / "model")
    image = pipeline.generate(prompt, num_steps=2)[0]
    assert isinstance(pipeline.caption([image], num_steps=2)[0], str)
    assert isinstance(pipeline.answer([image], [question], num_steps=2)[0], str)
    assert pipeline.text_codec.unknown_words(f"{prompt} {question}") == []


def test_killed_at_random_it_ends_all_the_same(listed: Path, tmp_path: Path) -> None:
    """A JSON list and questions, in German with emoji, images of 20 to 2,000 pixels and of 1:8."""
    out, rng = tmp_path / "out", random.Random(0)
    arguments = [listed / "captions.json", "--questions", listed / "questions.json", "--out", out]
    arguments += ["--hours", HOURS, "--preset", "xs", "--held-out", 0.1]
    for _ in range(4):
        with subprocess.Popen(
            command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(rng.uniform(8, 25))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(out / "model")
    check_model(out, "Ein schönes Bild in grün 🎨", "Welche Farbe ist links?")
    assert (out / "model" / "README.md").is_file()
    again = run(*arguments)
    assert again.returncode == 0
    assert "finished before" in again.stderr
    other = run(*arguments, "--size", 64)
    assert (other.returncode, len(other.stderr.splitlines())) == (1, 1)


def test_one_that_is_asked_to_stop_says_so_and_goes_on(classes: Path, tmp_path: Path) -> None:
    arguments = [classes, "--out", tmp_path / "out", "--hours", 10 * HOURS, "--preset", "xs"]
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "out" / "runs" / "xs-image" / "log.jsonl").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said[-2000:]
    assert "stopped by a signal" in said.splitlines()[-1]


def test_a_tar_with_captions_and_questions_in_two_files(classes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    asked, answered = [], []
    with tarfile.open(data / "some.tar", "w") as tar:
        for number, path in enumerate(sorted(classes.rglob("*.png"))):
            content = b"broken" if number == 5 else path.read_bytes()
            for name, value in (
                (f"{number}.png", content),
                (f"{number}.txt", f"it is {path.parent.name}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(value)
                tar.addfile(member, io.BytesIO(value))
            shutil.copy(path, data / "images" / f"{number}.png")
            asked.append({"question_id": number, "image_id": number, "question": "which colour is it?"})
            answers = [{"answer": path.parent.name}] * 10
            answered.append({"question_id": number, "image_id": number, "answers": answers})
    (data / "q.json").write_text(json.dumps({"questions": asked}))
    (data / "a.json").write_text(json.dumps({"annotations": answered}))
    out = tmp_path / "out"
    done = run(
        data / "some.tar", "--questions", data / "q.json", "--annotations", data / "a.json", "--out", out,
        "--hours", HOURS, "--preset", "xs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 samples cannot be used, and are skipped" in done.stderr
    check_model(out, "it is grün", "which colour is it?")


def test_class_folders_with_text_alone_from_python(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(
        "\n".join(f"Blau ist eine Farbe, und {n} eine Zahl." for n in range(200))
    )
    said: list[str] = []
    model = fit(
        classes, tmp_path / "out", hours=HOURS, preset="xs", text_alone=[str(tmp_path / "text.txt")], say=said.append
    )  # fmt: skip
    check_model(model.parent, "a photo of a rot", "what is this?")
    figures = read_json(tmp_path / "out" / "runs" / "xs-final" / "best.json")["figures"]
    assert {"flow_loss", "question_nelbo", "caption_nelbo", "text_nelbo"} <= figures.keys()


def test_mini_is_tuned_and_knows_the_words(classes: Path, tmp_path: Path) -> None:
    model = fit(classes, tmp_path / "out", base="mini", hours=HOURS, say=lambda line: None)
    check_model(model.parent, "a photo of a rot", "what is this?")
    before, after = (load_text_codec(folder) for folder in (resolve("mini"), model))
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert after.unknown_words("rot, grün, blau") == []
    ids = before.tokenize(["a photo of a red car"], 16)
    torch.testing.assert_close(after.states(ids), before.states(ids))
