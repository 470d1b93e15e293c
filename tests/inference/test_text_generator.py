"""Texts through the pipeline: its options reach it, batches are single calls, an image is encoded once."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.pipeline import Pipeline
from ddit.settings import ORDERS, TextOptions, TextSampling, UnmaskingRule

QUESTIONS = ["is there a cat?", "what color is the dog?", "how many?", "is there a cat?", "what is there"]
FAST = {
    "order": "threshold", "threshold": 0.3, "length": 5, "text_guidance_scale": 1.5, "image_refresh": 2,
    "text_refresh": 3, "block_size": 3, "commit_above": 0.8, "top_p": 0.9, "num_steps": 6, "temperature": 0.7,
}  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["joint", "isolated"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return tiny_pipeline(image_attends_text=request.param)


def noise_images(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


# --- batches ---


@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_batch_with_everything_kept_and_guided_is_the_single_calls(
    pipeline: Pipeline, batch_size: int
) -> None:
    images = [noise_images(3)[i] for i in (0, 1, 0, 2, 1)]
    batch = pipeline.answer(images, QUESTIONS, seed=5, batch_size=batch_size, **FAST)
    singles = [pipeline.answer(images[i], QUESTIONS[i], seed=5 + i, **FAST)[0] for i in range(5)]
    assert batch == singles
    assert len(set(batch)) > 1


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_works_through_the_pipeline(pipeline: Pipeline, order) -> None:
    assert len(pipeline.caption(noise_images(2), order=order, num_steps=3, temperature=0.5)) == 2


def test_an_image_given_several_times_is_encoded_and_read_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, read, shown = [], [], pipeline.transformer.image_kv
    encode = pipeline.image_codec.encode
    monkeypatch.setattr(pipeline.image_codec, "encode", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(
        pipeline.transformer, "image_kv", lambda x: read.append(0 if x is None else len(x)) or shown(x)
    )
    first, second = noise_images(2)
    said = pipeline.answer([first, second, first.copy(), first, second], QUESTIONS, batch_size=2, **FAST)
    assert sum(encoded) == 2
    assert read == (
        [] if pipeline.transformer.config.image_attends_text else [2, 0]
    )  # and the null image once
    encoded.clear()
    assert pipeline.answer(first, QUESTIONS, batch_size=1, **FAST)[0] == said[0]
    assert encoded == [1]


def test_images_that_come_back_later_are_still_there_and_others_are_dropped(monkeypatch) -> None:
    pipeline = tiny_pipeline(image_attends_text=False)
    encoded, encode = [], pipeline.image_codec.encode
    monkeypatch.setattr(pipeline.image_codec, "encode", lambda x: encoded.append(len(x)) or encode(x))
    a, b, c, d = noise_images(4)
    images = [a, b, c, a, d, a]
    batch = pipeline.caption(images, seed=1, batch_size=1)
    assert encoded == [1] * 4
    assert batch == [pipeline.caption(image, seed=1 + i)[0] for i, image in enumerate(images)]


# --- windows ---


def test_rows_have_the_length_of_their_task_and_those_of_one_length_go_together(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, states = [], pipeline.text_codec.states
    monkeypatch.setattr(
        pipeline.text_codec, "states", lambda ids: shapes.append(tuple(ids.shape)) or states(ids)
    )
    pipeline.caption(None, length=3, num_steps=1)
    prefix = len(pipeline.text_codec.token_ids(pipeline.style.caption_prefix))
    assert shapes == [(1, prefix + 3)]
    shapes.clear()
    pipeline.answer(None, ["a cat", "a red dog", "the car"], length=2, num_steps=1, order="confidence")
    template = len(pipeline.text_codec.token_ids("Q: A:"))
    assert shapes == [(2, template + 4), (1, template + 5)]
    shapes.clear()
    pipeline.infill(None, "a ___ dog", length=1, num_steps=1)
    assert shapes[0] == (1, prefix + 4)
    shapes.clear()
    pipeline.caption(None, num_steps=1)
    assert shapes[0] == (1, pipeline.settings.text_length)


def test_an_answer_is_never_longer_than_its_window(pipeline: Pipeline) -> None:
    for text in pipeline.answer(None, QUESTIONS, length=2, temperature=1.5, order="random"):
        assert len(pipeline.text_codec.token_ids(text)) <= 2
    filled = pipeline.infill(noise_images(1), ["a ___ dog", "the ___ cat is ___"], length=1)
    assert [text.lower().startswith(word) for text, word in zip(filled, ["a", "the"], strict=True)] == [
        True,
        True,
    ]


def test_a_window_larger_than_the_models_length_is_allowed(pipeline: Pipeline) -> None:
    assert pipeline.caption(None, length=20, num_steps=4)


# --- options ---


def test_an_option_is_the_models_unless_it_is_given(pipeline: Pipeline) -> None:
    own = TextSampling(rule=UnmaskingRule(order="margin", threshold=0.4))
    settings = dataclasses.replace(pipeline.settings, text_sampling=own, answer_length=7)
    options = settings.text_options("answer", {"threshold": 0.6, "order": None, "num_steps": 9})
    rule = UnmaskingRule(order="margin", threshold=0.6)
    assert options == TextOptions(sampling=TextSampling(rule=rule), num_steps=9, length=7)
    with pytest.raises(TypeError, match="unknown option 'treshold'; did you mean threshold"):
        pipeline.caption(None, treshold=0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"image_refresh": -1}, "image_refresh must be at least 0, got -1"),
        ({"text_refresh": 1.5}, "text_refresh must be a whole number, got 1.5"),
        ({"text_guidance_scale": -1}, "text_guidance_scale must be at least 0, got -1"),
        ({"order": "sideways"}, "order must be random, .* got 'sideways'"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(
    pipeline: Pipeline, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.caption(None, **options)


def test_a_guidance_scale_of_one_never_asks_the_null_image(pipeline: Pipeline) -> None:
    plain = pipeline.caption(noise_images(2))
    with torch.no_grad():
        kept = pipeline.transformer.null_image_embd.clone()
        pipeline.transformer.null_image_embd.fill_(torch.nan)
        assert pipeline.caption(noise_images(2), text_guidance_scale=1.0) == plain
        pipeline.transformer.null_image_embd.copy_(kept)
    assert pipeline.caption(noise_images(2), text_guidance_scale=3.0) != plain
