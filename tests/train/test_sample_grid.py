"""Sample grids and tables: they show what the model generates, whatever its size and the texts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from ddit import prompts
from ddit.data.samples import Turn
from ddit.images import read_image, to_tensor
from ddit.inference.image_grid import GAP
from ddit.pipeline import Pipeline
from ddit.prompts import TokenizedPrompt
from ddit.settings import ImageSampling, TextSampling, UnmaskingRule
from ddit.train.sample_grid import TableRow, generate_images, sample_texts, save_grid, save_table

SAMPLING = ImageSampling(num_steps=3, guidance_scale=2.0, shift=2.0)
TURNS = [
    Turn("how many dog", "two"),
    Turn(None, "a red dog"),
    Turn("is there a car", "red"),
    Turn(None, "a car"),
]


@pytest.fixture
def pipeline() -> Pipeline:
    pipeline = tiny_pipeline()
    sampling = TextSampling(rule=UnmaskingRule(order="confidence", temperature=0.0))
    pipeline.settings = dataclasses.replace(pipeline.settings, text_sampling=sampling)
    return pipeline


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in TURNS]


def training_texts(pipeline: Pipeline, turns: list[Turn]) -> TokenizedPrompt:
    return prompts.training_conversation(
        pipeline.text_codec, [[turn] for turn in turns], 12, style=pipeline.style
    )


def test_generating_in_parts_gives_the_same_images_of_any_shape(pipeline: Pipeline) -> None:
    def generate(size: int | tuple[int, int], batch_size: int) -> torch.Tensor:
        return generate_images(
            pipeline.transformer, pipeline.image_codec, pipeline.text_codec, ["a dog", "a red car", "a car"],
            sampling=SAMPLING, style=pipeline.style, length=10, latent_size=size, batch_size=batch_size,
        )  # fmt: skip

    whole = generate(4, 8)
    unit = pipeline.image_codec.downsample
    assert whole.shape == (3, 3, 4 * unit, 4 * unit)
    assert (generate(4, 2) - whole).abs().max() < 1e-3
    assert generate((4, 8), 8).shape == (3, 3, 4 * unit, 8 * unit)


@pytest.mark.parametrize(("side", "shown"), [(16, 128), (64, 128), (200, 200), (512, 256)])
def test_a_grid_shows_each_image_at_a_comfortable_size(tmp_path: Path, side: int, shown: int) -> None:
    pixels = torch.full((9, 3, side, side), -1.0)
    pixels[8, 0] = 1.0
    save_grid(tmp_path / "samples" / "s.png", pixels, [f"Bücher und 書 number {i}" for i in range(9)])
    grid = read_image(tmp_path / "samples" / "s.png")
    assert grid.width == 8 * (shown + GAP) + GAP
    middle = GAP + shown // 2
    assert grid.getpixel((middle, middle)) == (0, 0, 0)
    assert grid.getpixel((middle, grid.height // 2 + middle)) == (255, 0, 0)


def test_the_table_has_the_texts_of_the_pipeline(pipeline: Pipeline, images: list[Image.Image]) -> None:
    latents = pipeline.image_codec.encode(to_tensor(images))
    found = sample_texts(
        pipeline.transformer, pipeline.text_codec, latents, training_texts(pipeline, TURNS), TURNS,
        pipeline.settings, batch_size=1,
    )  # fmt: skip
    assert [row.image for row in found] == [0, 1, 2, 3]
    for image, turn, row in zip(images, TURNS, found, strict=True):
        texts = pipeline.caption(image) if turn.question is None else pipeline.answer(image, turn.question)
        assert row.answer == texts[0]
        assert (row.question, row.truth) == turn


def test_a_row_without_an_image_is_answered_from_the_null_image(
    pipeline: Pipeline, images: list[Image.Image]
) -> None:
    latents = pipeline.image_codec.encode(to_tensor(images))
    found = sample_texts(
        pipeline.transformer, pipeline.text_codec, latents, training_texts(pipeline, TURNS), TURNS,
        pipeline.settings, null_rows=torch.tensor([True, False, True, False]),
    )  # fmt: skip
    answers = pipeline.answer(None, [turn.question for turn in TURNS if turn.question is not None])
    assert [found[0].answer, found[2].answer] == answers


def test_only_the_first_turn_of_a_conversation_is_shown_to_the_model(
    pipeline: Pipeline, images: list[Image.Image]
) -> None:
    latents = pipeline.image_codec.encode(to_tensor(images[:1]))
    answers = set()
    for second in ("a car", "blue"):
        turns = [TURNS[0], Turn("is it", second)]
        texts = prompts.training_conversation(pipeline.text_codec, [turns], 24, style=pipeline.style)
        assert len(texts.answer_mask[0].int().diff().nonzero()) > 1
        found = sample_texts(
            pipeline.transformer, pipeline.text_codec, latents, texts, [TURNS[0]], pipeline.settings
        )
        answers.add(found[0].answer)
    assert len(answers) == 1


def test_right_is_the_same_words_and_captions_are_compared_by_them() -> None:
    assert TableRow(0, "how many?", "Two.", "two").is_right
    assert not TableRow(0, "how many?", "twofold", "two").is_right
    caption = TableRow(0, None, "a red cat", "a red dog, and a dog")
    assert caption.shared == 0.5  # a, red of a, red, dog, and
    assert TableRow(0, None, "", "").shared == 0.0


def test_the_table_is_written_as_markdown_and_json_lines_with_thumbnails(tmp_path: Path) -> None:
    rows = [
        TableRow(0, "how many?", "two", "Two"),
        TableRow(1, "a | b?", "no", "yes"),
        TableRow(1, None, "a red\ncat", "a red dog"),
    ]
    pixels = {0: torch.zeros(3, 64, 64), 1: torch.ones(3, 64, 64)}
    save_table(tmp_path / "samples" / "0000500.md", rows, pixels=pixels)
    text = (tmp_path / "samples" / "0000500.md").read_text()
    assert "step 500" in text
    assert "1 of 2 answers are right" in text
    assert "67% of the truth's words" in text
    assert "| ![0](images/0.png) | how many? | two | Two | yes |" in text
    assert "| ![1](images/1.png) | a \\| b? | no | yes | no |" in text
    assert "| ![1](images/1.png) | *caption* | a red cat | a red dog | 67% |" in text
    assert read_image(tmp_path / "samples" / "images" / "1.png").size == (128, 128)
    lines = [json.loads(line) for line in (tmp_path / "samples" / "0000500.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "image": 1,
        "question": "a | b?",
        "answer": "no",
        "truth": "yes",
        "right": False,
        "shared": 0.0,
    }
