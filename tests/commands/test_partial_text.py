"""Texts while they are sampled: blanks for what is masked, a line for every change."""

import io
from itertools import pairwise

import pytest
import torch
from tiny_models import tiny_pipeline

from ddit.commands.partial_text import CLEAR_LINE, partial_text, print_steps, rewrite_line
from ddit.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def test_masked_tokens_are_blanks_and_the_text_ends_at_its_end(pipeline: Pipeline):
    codec = pipeline.text_codec
    mask, eos = codec.mask_token_id, codec.eos_token_id
    a, dog = codec.token_ids("a dog")
    ids = torch.tensor([dog, a, mask, mask, dog, mask, eos, mask, eos])
    shown = torch.ones(9, dtype=torch.bool)
    shown[0] = False
    assert partial_text(codec, ids, shown) == "a _ _ dog _"
    assert partial_text(codec, torch.tensor([mask, a]), shown[1:3]) == "_ a"
    assert partial_text(codec, torch.tensor([eos]), shown[1:2]) == ""


def test_the_last_line_of_each_text_is_the_text(pipeline: Pipeline):
    out = io.StringIO()
    questions = ["is there a dog", "what color is the car"]
    answers = pipeline.answer(None, questions, on_step=print_steps(pipeline.text_codec, out))
    lines = [line.split(maxsplit=2) for line in out.getvalue().splitlines()]
    for number, answer in enumerate(answers, start=1):
        own = [line[2] if len(line) > 2 else "" for line in lines if int(line[1]) == number]
        assert own[-1] == answer
        assert len(own) > 1
        assert all(before != after for before, after in pairwise(own))


def test_infilling_shows_what_was_given_too(pipeline: Pipeline):
    out = io.StringIO()
    callback = print_steps(pipeline.text_codec, out, pipeline.style.caption_prefix)
    (filled,) = pipeline.infill(None, "the ___ is red", on_step=callback)
    assert out.getvalue().splitlines()[-1].split(maxsplit=2)[2] == filled


def test_a_terminals_line_is_replaced(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "8")
    out = io.StringIO()
    pipeline.caption(None, on_step=rewrite_line(pipeline.text_codec, out))
    states = out.getvalue().split(CLEAR_LINE)[1:]
    assert len(states) > 1
    assert all(len(state) <= 7 for state in states)
