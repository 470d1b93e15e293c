"""`ddit chat`: from a pipe a line an answer, at a terminal words as they are sampled, and no mistake ends it."""

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.cli import main
from ddit.commands.chat import Chat, Quit
from ddit.pipeline import Pipeline

QUESTION = "what color is the car?"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    Image.new("RGB", (32, 32), "red").save(paths[0])
    Image.radial_gradient("L").convert("RGB").save(paths[1])
    return paths


@pytest.fixture
def talk(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Says lines to `ddit chat` through a pipe: exit code, answers, faults."""
    monkeypatch.setattr("ddit.commands.chat.load", lambda *_, **__: pipeline)

    def call(lines: list[str], *arguments: object) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["ddit", "chat", *map(str, arguments)])
        data = "\n".join([*lines, ""]).encode(errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return call


def test_every_line_is_answered_as_plain_calls_would(talk, pipeline: Pipeline, images: list[Path]):
    red, blue = images
    lines = [QUESTION, "", "the ___ is red", "/caption", "/seed 5", "/caption", f"/image '{blue}'", QUESTION]
    code, answers, faults = talk(lines, red, "--seed", 2)
    assert (code, faults) == (0, [])
    assert answers == [
        *pipeline.answer(red, QUESTION, seed=2),
        *pipeline.infill(red, "the ___ is red", seed=2),
        *pipeline.caption(red, seed=2),
        *pipeline.caption(red, seed=5),
        *pipeline.answer(blue, QUESTION, seed=5),
    ]


def test_a_model_that_writes_in_blocks_sees_the_earlier_turns_about_the_image(
    talk, images: list[Path], monkeypatch: pytest.MonkeyPatch
):
    blocks = tiny_pipeline(image_attends_text=False, text_block_size=3)
    blocks.settings = replace(blocks.settings, text_length=60)
    monkeypatch.setattr("ddit.commands.chat.load", lambda *_, **__: blocks)
    questions = ["what color is the car", "is there a dog", "how many"]
    _, answers, _ = talk([*questions, f"/image {images[1]}", questions[2]], images[0], "--length", 4)
    turns = [*zip(questions, answers, strict=False)]
    for number in range(3):
        told = blocks.answer(images[0], questions[number], history=[turns[:number]], length=4)
        assert answers[number] == told[0]
    assert answers[3] == blocks.answer(images[1], questions[2], length=4)[0]
    assert answers[2] != blocks.answer(images[0], questions[2], length=4)[0]


def test_the_image_is_encoded_once(
    talk, pipeline: Pipeline, images: list[Path], monkeypatch: pytest.MonkeyPatch
):
    calls = []
    encode = pipeline.image_codec.encode
    monkeypatch.setattr(pipeline.image_codec, "encode", lambda pixels: calls.append(1) or encode(pixels))
    talk([QUESTION, "/caption", "is there a dog"], images[0])
    assert len(calls) == 1
    talk([QUESTION, f"/image {images[1]}", QUESTION], images[0])
    assert len(calls) == 3


def test_mistakes_end_nothing_and_every_question_keeps_its_line(talk, pipeline: Pipeline, images: list[Path]):
    lines = ["/sed 3", "/seed x", "/image nowhere.png", "/image", "<extra_id_0>", QUESTION]
    code, answers, faults = talk(lines, images[0])
    assert code == 1
    assert answers == ["", *pipeline.answer(images[0], QUESTION)]
    assert len(faults) == 5
    assert "unknown command '/sed'" in faults[0]
    assert faults[0].endswith("did you mean /seed?")
    assert "needs a whole number of at least 0, got 'x'" in faults[1]
    assert "no such image: 'nowhere.png'" in faults[2]
    assert "/image needs the path" in faults[3]
    assert "reserved token <extra_id_0>" in faults[4]


def test_quit_leaves_and_help_goes_to_stderr(talk, images: list[Path]):
    code, answers, said = talk(["/help", "/quit", QUESTION], images[0])
    assert (code, answers) == (0, [])
    assert any("/image PATH" in line for line in said)


def test_json_names_the_question(talk, images: list[Path]):
    _, lines, _ = talk([QUESTION, "the ___"], images[0], "--json")
    asked, filled = map(json.loads, lines)
    assert asked["question"] == QUESTION
    assert set(asked) == {"image", "seed", "question", "answer"}
    assert filled["text"] == "the ___"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_line_that_is_no_text_ends_nothing(talk, images: list[Path], options: tuple[str, ...]):
    code, answers, said = talk([QUESTION, os.fsdecode(b"is it a caf\xe9?"), QUESTION], images[0], *options)
    assert code == 1
    assert len(answers) == 3
    assert answers[0] == answers[2]
    assert answers[1] == "" or "lone surrogate" in json.loads(answers[1])["error"]
    assert sum("lone surrogate (\\udce9)" in line for line in said) == 1


def test_an_image_that_cannot_be_read_leaves_the_old_one(pipeline: Pipeline, images: list[Path]):
    chat = Chat(pipeline, images[0], seed=0, options={})
    before = chat.encoded
    with pytest.raises(ValueError, match="no such image"):
        chat.run_command("/image gone.png")
    assert (chat.encoded, chat.image) == (before, images[0])
    with pytest.raises(Quit):
        chat.run_command("/quit")


@pytest.mark.slow
@pytest.mark.parametrize("leave", [b"\x04", b"\x03"], ids=["ctrl-d", "ctrl-c"])
def test_at_a_terminal_it_answers_and_leaves_cleanly(images: list[Path], tmp_path: Path, leave: bytes):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "ddit", "chat", str(images[0]), "-m", str(tmp_path / "model")]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=_own_terminal)  # fmt: skip
    os.close(slave)
    try:
        _read_until(master, b"> ")
        os.write(master, b"what color\n")
        shown = _read_until(master, b"\n> ")
        assert _press_until_it_ends(process, master, leave) == 0
        assert b"\r\x1b[K" in shown
        assert b"Traceback" not in shown
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _own_terminal() -> None:
    """Makes the new session's terminal that of stdin, so that Ctrl-C reaches it, and is heard."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _press_until_it_ends(process: subprocess.Popen, master: int, key: bytes) -> int:
    """Presses again after a while: Python's readline misses a signal that falls between its prompt and its wait."""
    for _ in range(6):
        os.write(master, key)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=15)
    pytest.fail(f"{key!r} does not end the chat")


def _read_until(master: int, mark: bytes, seconds: float = 90) -> bytes:
    found, end = b"", time.monotonic() + seconds
    while mark not in found.replace(b"\r\n", b"\n"):
        assert time.monotonic() < end, found
        if select.select([master], [], [], 1)[0]:
            found += os.read(master, 4096)
    return found
