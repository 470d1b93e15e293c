"""An image that was encoded before: encoded once, and the texts about it are those of plain calls."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.pipeline import Pipeline

QUESTIONS = ["is there a dog?", "what color is the cat?", "how many car"]


def noise_image(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture(params=[True, False], ids=["joint", "isolated"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return tiny_pipeline(image_attends_text=request.param)


@pytest.fixture
def encodings(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images in every run of the autoencoder's encoder."""
    counts: list[int] = []
    encode = pipeline.image_codec.encode

    def counted(pixels: torch.Tensor, **options):
        counts.append(len(pixels))
        return encode(pixels, **options)

    monkeypatch.setattr(pipeline.image_codec, "encode", counted)
    return counts


def test_several_questions_encode_the_image_once(pipeline: Pipeline, encodings: list[int]):
    image = noise_image(0)
    plain = [pipeline.answer(image, question)[0] for question in QUESTIONS]
    assert encodings == [1] * len(QUESTIONS)
    encodings.clear()
    encoded = pipeline.encode_image(image)
    assert [pipeline.answer(encoded, question)[0] for question in QUESTIONS] == plain
    assert pipeline.answer(encoded, QUESTIONS) == pipeline.answer([image], QUESTIONS)
    assert encodings == [1, 1]  # the second one for the plain call above


def test_captions_and_blanks_equal_those_of_plain_calls(pipeline: Pipeline):
    image = noise_image(1)
    encoded = pipeline.encode_image(image)
    assert pipeline.caption(encoded, seed=3) == pipeline.caption(image, seed=3)
    assert pipeline.infill(encoded, "the ___ is ___") == pipeline.infill(image, "the ___ is ___")


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_known_and_new_images_may_be_mixed(pipeline: Pipeline, encodings: list[int], batch_size: int):
    images = [noise_image(seed) for seed in range(4)]
    plain = pipeline.caption([*images, images[0]], batch_size=batch_size)
    encodings.clear()
    mixed = [pipeline.encode_image(images[0]), images[1], pipeline.encode_image(images[2]), images[3]]
    assert sum(encodings) == 2
    assert pipeline.caption([*mixed, mixed[0]], batch_size=batch_size) == plain
    assert sum(encodings) == 4


def test_the_image_matters(pipeline: Pipeline):
    texts = [pipeline.caption(pipeline.encode_image(noise_image(seed)))[0] for seed in range(6)]
    assert len(set(texts)) > 1


def test_an_image_of_another_size_is_refused(pipeline: Pipeline):
    encoded = pipeline.encode_image(noise_image(0), height=16, width=24)
    assert pipeline.caption(encoded, height=16, width=24)
    with pytest.raises(ValueError, match="encoded at 24x16, not 32x32"):
        pipeline.caption(encoded)
    with pytest.raises(ValueError, match="height 33 is not a multiple"):
        pipeline.encode_image(noise_image(0), height=33)
