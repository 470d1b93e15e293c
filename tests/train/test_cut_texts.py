"""A text that is too long for the run loses its end; each is counted, and the run's log has their share."""

import dataclasses
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_text_codec

from ddit.config.data import JsonData, TarData
from ddit.config.runs import DualRun
from ddit.data.samples import Sample, Turn
from ddit.prompts import MINI, PUBLISHED, PromptStyle
from ddit.train.batch import caption_ids, conversation_ids, is_caption_cut, is_conversation_cut
from ddit.train.log import LOG_FILE, read_log
from ddit.train.loop import train

CODEC = tiny_text_codec()
LENGTH = 12


def words(count: int) -> str:
    return " ".join(["dog"] * count)


def caption_is_cut(count: int, style: PromptStyle) -> bool:
    sample = Sample(None, words(count), ())
    return is_caption_cut(CODEC, sample, caption_ids(CODEC, sample, LENGTH, style), style)


def conversation_is_cut(turns: list[Turn], style: PromptStyle, length: int) -> bool:
    sample = Sample(None, None, tuple(turns))
    return is_conversation_cut(CODEC, sample, *conversation_ids(CODEC, sample, length, style), style)


@pytest.mark.parametrize("style", [MINI, PUBLISHED])
def test_a_prompt_is_cut_from_the_length_on(style: PromptStyle) -> None:
    assert [count for count in range(1, 30) if caption_is_cut(count, style)] == list(range(LENGTH, 30))


@pytest.mark.parametrize("style", [MINI, PUBLISHED])
def test_a_caption_to_write_is_cut_where_it_does_not_fit_behind_its_prefix(style: PromptStyle) -> None:
    length = 24
    room = length - 1 - len(CODEC.token_ids(style.caption_prefix))
    found = [n for n in range(1, 60) if conversation_is_cut([Turn(None, words(n))], style, length)]
    assert found == list(range(room + 1, 60))


@pytest.mark.parametrize("style", [MINI, PUBLISHED])
def test_a_question_or_an_answer_that_loses_its_end_is_cut(style: PromptStyle) -> None:
    length = 48
    around = sum(len(CODEC.token_ids(part)) for part in style.question_template.split("{question}"))
    for asked in range(1, 60):
        for answered in (1, 2, 5, 20, 40):
            fits = asked <= length - around - style.min_answer_tokens and around + asked + answered <= length
            turns = [Turn(words(asked), words(answered))]
            assert conversation_is_cut(turns, style, length) != fits, (asked, answered)


def test_a_conversation_that_loses_a_turn_is_cut() -> None:
    turns = [Turn("what", "dog"), Turn("where", "car"), Turn(None, "a dog")]
    ids, _ = conversation_ids(CODEC, Sample(None, None, tuple(turns)), 60, MINI)
    num_tokens = int((ids != CODEC.eos_token_id).nonzero().max()) + 1
    found = [length for length in range(9, 40) if conversation_is_cut(turns, MINI, length)]
    assert found == list(range(9, num_tokens + 1))


@pytest.mark.slow
def test_a_run_says_and_logs_the_share_of_cut_texts_and_names_what_a_source_leaves_out(
    plain: DualRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    entries = [{"image_path": "a.png", "caption": words(count)} for count in (2, 100)]
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    (tmp_path / "a.txt").write_text("a dog")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "a.txt", "metadata.json", "a.txt"):
            tar.add(tmp_path / name, "b.heic" if name == "metadata.json" else name)
    for name, source in (
        ("long", JsonData(str(tmp_path / "metadata.json"))),
        ("tar", TarData(str(tmp_path / "a.tar"))),
    ):
        data = dataclasses.replace(plain.data, t2i=(source,), i2t=())
        out = train(
            dataclasses.replace(
                plain, out=str(tmp_path / name), data=data, objective=_without_alignment(plain)
            )
        )
        shares = [event["cut"] for event in read_log(out / LOG_FILE) if "cut" in event]
        said = capsys.readouterr().err
        if name == "long":
            assert shares
            assert shares == pytest.approx([0.5] * len(shares), abs=0.25)
            assert said.count("texts are cut: ") == 1
            assert "are longer than data.t2i_length=" in said
        else:
            assert not shares
            assert "texts are cut" not in said
            assert "a.tar:a leaves out files or members (unknown suffix): 1" in said
            assert (
                "a.tar:a leaves out files or members (replaced by a later member of the same name): 1" in said
            )


def _without_alignment(run: DualRun):
    return dataclasses.replace(run.objective, alignment_weight=0.0)
