"""Images unlike those of the training are told from the others, and said to be so in one line."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline
from torch import Tensor

from ddit.errors import collect_warnings
from ddit.eval.report import model_hash
from ddit.images import to_tensor
from ddit.inference.inputs import FOREIGN
from ddit.model.familiarity import FILE, LEAST_IMAGES, MARGIN, Familiarity, image_features
from ddit.pipeline import Pipeline
from ddit.train.foreign_images import make_foreign_images
from ddit.world import PRESETS, make_scene, render


def features_of(images: list[Image.Image], pipeline: Pipeline) -> Tensor:
    return image_features(pipeline.transformer, pipeline.image_codec, to_tensor(images))


def scenes(num: int, split: str = "test", side: int = 64) -> list[Image.Image]:
    found = (Image.fromarray(render(make_scene(PRESETS["fixed"], split, i, seed=3))) for i in range(num))
    return [image.resize((side, side)) for image in found]


def flat(num: int, side: int = 32) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), color) for color in ("red", "white", "navy", "gray")[:num]]


def noise(num: int, side: int = 64) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(num)]


@pytest.fixture(scope="module")
def familiar() -> Pipeline:
    """A tiny random model that takes scenes for its training images."""
    pipeline = tiny_pipeline(image_attends_text=False)
    strange = [Image.fromarray(image) for image in make_foreign_images(100, 32)]
    pipeline.familiarity = Familiarity.fit(
        features_of(scenes(240, "train", 32), pipeline), features_of(strange, pipeline)
    )
    return pipeline


def test_a_normal_cloud_has_the_limit_that_one_in_two_hundred_exceeds() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    known, other = (torch.randn(n, 6, generator=generator) @ mix + 3 for n in (6000, 20_000))
    found = Familiarity.fit(known)
    assert 0.003 < float((MARGIN * found.score(other) > 1).float().mean()) < 0.008
    assert float(found.score(other + 30).min()) > 1
    with pytest.raises(ValueError, match=f"needs {LEAST_IMAGES} images .* got 50"):
        Familiarity.fit(known[:50])


def test_a_discriminant_finds_what_is_within_the_distances_of_a_varied_world() -> None:
    generator = torch.Generator().manual_seed(0)
    known, other, foreign, unseen = torch.randn(4, 3000, 32, generator=generator).unbind()
    for world in (known, other):  # most features are now small, now large, and then all at once
        world[:, 2:] *= torch.randn(3000, 1, generator=generator).exp()
    for images in (foreign, unseen):
        images[:, :2] += 5
    assert float((Familiarity.fit(known).score(unseen) > 1).float().mean()) < 0.05
    found = Familiarity.fit(known, foreign)
    assert float((found.score(unseen) > 1).float().mean()) > 0.95
    assert float((found.score(other) > 1).float().mean()) < 0.015


def test_foreign_images_that_are_like_the_true_ones_raise_no_alarm() -> None:
    known, other, foreign = torch.randn(3, 3000, 8, generator=torch.Generator().manual_seed(0)).unbind()
    assert float((Familiarity.fit(known, foreign).score(other) > 1).float().mean()) < 0.015


def test_features_have_one_length_for_every_size_and_single_images_have_those_of_a_batch(
    familiar: Pipeline,
) -> None:
    images = scenes(3, side=32)
    together = features_of(images, familiar)
    alone = torch.cat([features_of([image], familiar) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
    assert features_of(scenes(1, side=24), familiar).shape == together[:1].shape
    joint = features_of(images, tiny_pipeline(image_attends_text=True))
    assert joint.shape[1] == together.shape[1] - 32  # without values, which depend on the text


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini")


def test_a_foreign_image_has_one_warning_and_a_known_one_none(mini: Pipeline) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mini.caption(scenes(4), num_steps=1)
        assert [str(each.message) for each in said] == []
        mini.answer(noise(3), "is there a dog?", num_steps=1)
        mini.caption(noise(1)[0], num_steps=1)
    assert [str(each.message) for each in said] == [FOREIGN] * 2


def test_collected_warnings_name_the_image(mini: Pipeline) -> None:
    known, foreign = scenes(1)[0], noise(2)
    with collect_warnings() as found:
        mini.caption([foreign[0], known, foreign[1]], num_steps=1)
    assert [warning.about for warning in found] == foreign


def test_models_without_statistics_and_other_sizes_say_nothing(familiar: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_pipeline().caption(flat(1), num_steps=1)
        familiar.caption(flat(1), height=24, width=24, num_steps=1)


def test_the_statistics_are_saved_with_the_model_and_are_no_weights(
    familiar: Pipeline, tmp_path: Path
) -> None:
    familiar.save_pretrained(tmp_path / "with")
    loaded = Pipeline.from_pretrained(tmp_path / "with")
    assert loaded.familiarity is not None
    assert familiar.familiarity is not None
    some = features_of(scenes(5, side=32), familiar)
    torch.testing.assert_close(loaded.familiarity.score(some), familiar.familiarity.score(some))
    before = model_hash(tmp_path / "with")
    (tmp_path / "with" / FILE).unlink()
    assert model_hash(tmp_path / "with") == before
    assert Pipeline.from_pretrained(tmp_path / "with").familiarity is None


def test_mini_knows_its_world_from_noise_and_flat_images(mini: Pipeline) -> None:
    assert mini.familiarity is not None
    shares = [
        float((mini.familiarity.score(features_of(images, mini)) > 1).float().mean())
        for images in (scenes(300), noise(20), flat(4, 64))
    ]
    assert shares[0] < 0.03
    assert shares[1:] == [1, 1]
