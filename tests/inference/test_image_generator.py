"""In-painting and variation with a pipeline: what is kept, what is drawn, batches, limits."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.images import to_images, to_tensor
from ddit.inference.batching import Step
from ddit.inference.editing import box_mask
from ddit.pipeline import Pipeline

PROMPTS = ["a photo of the red dog", "a cat", "two car"]
SIDE, CELL = 32, 4
WHOLE, CORNER = (0, 0, SIDE, SIDE), (3, 4, 18, 20)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def noise_images(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def mask(box: tuple[int, int, int, int]) -> Image.Image:
    return box_mask((SIDE, SIDE), box)


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def reconstruction(pipeline: Pipeline, image: Image.Image) -> Image.Image:
    codec = pipeline.image_codec
    return to_images(codec.decode(codec.encode(to_tensor([image]))))[0]


@pytest.mark.parametrize("sampler", ["euler", "adams", "dpm"])
def test_cells_that_no_white_touches_keep_their_latents(pipeline: Pipeline, sampler: str):
    image, steps = noise_images(1)[0], []
    pipeline.inpaint(
        image, mask(CORNER), "a cat", num_steps=4, guidance_scale=3.0, sampler=sampler, on_step=steps.append
    )
    known = pipeline.image_codec.encode(to_tensor([image]))
    redrawn = torch.zeros(SIDE // CELL, SIDE // CELL, dtype=torch.bool)
    redrawn[1:5, 0:5] = True
    last: Step = steps[-1]
    assert torch.equal(last.state.latents[..., ~redrawn], known[..., ~redrawn])
    assert (last.state.latents[..., redrawn] != known[..., redrawn]).all()


def test_a_mask_of_all_and_a_strength_of_one_are_generate_bit_for_bit(pipeline: Pipeline):
    drawn = pipeline.generate(PROMPTS, seed=4)
    assert pipeline.inpaint(noise_images(3), mask(WHOLE), PROMPTS, seed=4) == drawn
    assert pipeline.vary(noise_images(3), PROMPTS, strength=1.0, seed=4) == drawn
    assert pipeline.vary(noise_images(3), PROMPTS, strength=0.9, seed=4) != drawn


def test_a_strength_near_zero_changes_nothing(pipeline: Pipeline):
    image = noise_images(1)[0]
    (varied,) = pipeline.vary(image, "a cat", strength=1e-6)
    assert difference(varied, reconstruction(pipeline, image)) <= 1
    (more,) = pipeline.vary(image, "a cat", strength=0.5)
    assert difference(more, varied) > 10


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_is_the_single_calls(pipeline: Pipeline, batch_size: int):
    given, masks = noise_images(3), [mask(CORNER), mask((20, 20, 30, 30)), mask((0, 0, 32, 8))]
    painted = pipeline.inpaint(given, masks, PROMPTS, seed=5, batch_size=batch_size)
    varied = pipeline.vary(given, PROMPTS, strength=0.7, seed=[9, 2, 5], batch_size=batch_size)
    for i, seed in enumerate([9, 2, 5]):
        alone = pipeline.inpaint(given[i], masks[i], PROMPTS[i], seed=5 + i)
        assert difference(painted[i], alone[0]) <= 1
        alone = pipeline.vary(given[i], PROMPTS[i], strength=0.7, seed=seed)
        assert difference(varied[i], alone[0]) <= 1


def test_an_image_of_many_prompts_is_encoded_once_a_batch(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    rows, encode = [], pipeline.image_codec.encode
    monkeypatch.setattr(
        pipeline.image_codec, "encode", lambda pixels: rows.append(len(pixels)) or encode(pixels)
    )
    first, second = noise_images(2)
    together = pipeline.vary(first, PROMPTS)
    mixed = pipeline.vary([first, second, first], PROMPTS)
    assert rows == [1, 2]
    assert max(difference(a, b) for a, b in zip(together[::2], mixed[::2], strict=True)) <= 1


def test_the_unconditional_half_is_left_out_below_the_guidance_interval(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    rows, states = [], pipeline.text_codec.states
    monkeypatch.setattr(pipeline.text_codec, "states", lambda ids: rows.append(len(ids)) or states(ids))
    options = {"num_steps": 4, "guidance_scale": 3.0, "shift": 1.0, "guidance_interval": (0.6, 1.0)}
    pipeline.vary(noise_images(1), "a cat", strength=0.5, **options)
    pipeline.vary(noise_images(1), "a cat", strength=0.8, **options)
    assert rows == [1, 2]


def test_images_and_masks_are_brought_to_the_size_that_is_asked_for(pipeline: Pipeline):
    image, cover = noise_images(1)[0].resize((96, 40)), box_mask((96, 40), (0, 0, 48, 40))
    (painted,) = pipeline.inpaint(image, cover, "a cat", height=16, width=40)
    (varied,) = pipeline.vary(image, "a cat", height=16, width=40)
    assert painted.size == varied.size == (40, 16)
    with pytest.raises(ValueError, match="height 33 is not a multiple of 8"):
        pipeline.vary(image, "a cat", height=33)


def test_mistakes_get_one_line(pipeline: Pipeline):
    image = noise_images(1)[0]
    for error, message in (
        (
            lambda: pipeline.inpaint(image, box_mask((8, 8), (0, 0, 4, 4)), "a cat"),
            "a mask of 8x8 does not fit",
        ),
        (lambda: pipeline.inpaint(image, Image.new("L", (SIDE, SIDE)), "a cat"), "the mask is empty"),
        (lambda: pipeline.inpaint([], mask(WHOLE), "a cat"), "no images given"),
        (lambda: pipeline.inpaint(image, "nowhere.png", "a cat"), "no such image: 'nowhere.png'"),
        (lambda: pipeline.inpaint(image, mask(WHOLE), ""), "the prompt is empty"),
        (lambda: pipeline.vary(image, "a cat", strength=0.0), "strength must be above 0"),
        (lambda: pipeline.vary(image, []), "no text given"),
        (lambda: pipeline.vary(image, "a cat", num_steps=0), "num_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            error()
    with pytest.raises(TypeError, match="strenght"):
        pipeline.generate("a cat", strenght=0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_low_precision_keeps_what_is_kept(dtype: str):
    pipeline, steps = tiny_pipeline().to(dtype=dtype), []
    image = noise_images(1)[0]
    assert pipeline.inpaint(image, mask(CORNER), "a cat", on_step=steps.append)[0].size == (SIDE, SIDE)
    known = pipeline.image_codec.encode(to_tensor([image])).float()
    torch.testing.assert_close(steps[-1].state.latents[..., 5:, :], known[..., 5:, :], atol=0, rtol=0)
