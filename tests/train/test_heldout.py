"""Held-out samples: always the same, with all the texts that they have; and the figures of them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from list_source import ListSource
from PIL import Image
from tiny_models import tiny_image_codec, tiny_pipeline, tiny_text_codec

from ddit import prompts
from ddit.config.data import DataConfig, LlavaData, TarData, WorldData
from ddit.data.samples import CorruptSample
from ddit.devices import Ranks
from ddit.model.dual_dit import DualOutput
from ddit.prompts import MINI
from ddit.train import heldout
from ddit.train.batch import Images
from ddit.train.batches import ImageFacts
from ddit.train.heldout import HeldOut, ratio_with_interval
from ddit.train.heldout_samples import HeldOutSamples, held_out_samples

CODEC = tiny_text_codec()
CAPTIONS = ["a cat", "a photo of red dog", "blue", "two car", "the green car is there"]
TIMES = [f"flow_t{t / 100:.2f}" for t in range(5, 100, 10)]


def held_out(*sources, count: int, **options) -> HeldOutSamples:
    data = DataConfig(held_out=sources, image_size=32, t2i_length=10, i2t_length=32)
    return held_out_samples(data, count, CODEC, ImageFacts(4, 4), style=MINI, patch_size=2, **options)


def test_held_out_samples_have_all_their_texts() -> None:
    world = WorldData(split="val", num_scenes=30, question_fraction=1.0)
    held, again = held_out(world, count=12), held_out(world, count=12)
    assert held.images.pixels is not None
    assert again.images.pixels is not None
    assert held.images.pixels.shape == (12, 3, 32, 32)
    assert held.has_caption.all()
    assert held.has_question.all()
    assert len(set(held.captions)) > 3
    assert held.turn_texts.input_ids.shape == held.caption_texts.answer_mask.shape == (12, 32)
    assert torch.equal(held.images.pixels, again.images.pixels)


def test_held_out_conversations_need_no_caption() -> None:
    class Talks(ListSource):
        def sample(self, index, rng, *, i2t, with_image=True):
            if not i2t:
                raise CorruptSample("no caption", "")
            return super().sample(index, rng, i2t=i2t, with_image=with_image)

    talks = Talks(8, without=frozenset({1}))
    held = held_out(LlavaData("talked"), count=50, open_with=lambda _: talks)
    assert len(held.captions) == 8
    assert not held.has_caption.any()
    assert held.has_question.all()
    assert held.images.is_null is not None
    assert held.images.is_null.sum() == 1


def test_held_out_data_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.held_out: '.*/none' does not exist: .* or none: \[\]"):
        held_out(TarData(str(tmp_path / "none")), count=4)


# --- figures ---


def samples_of(captions: list[str], question: str = "is there a dog") -> HeldOutSamples:
    """Noise images with these captions, which are the answers to one question, too."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(captions), 3, 32, 32), dtype=np.uint8)
    there = torch.ones(len(captions), dtype=torch.bool)
    prompt_ids = prompts.training_prompt(CODEC, captions, 10, style=MINI)
    as_captions = prompts.training_caption(CODEC, captions, 12, style=MINI)
    as_answers = prompts.training_question(CODEC, [question] * len(captions), captions, 12, style=MINI)
    images = Images(torch.from_numpy(pixels), None, None, None)
    return HeldOutSamples(images, prompt_ids, list(captions), there, as_captions, as_answers, [], there)


def measured(samples: HeldOutSamples, model: Any = None, *, ranks: Ranks | None = None) -> dict[str, float]:
    held = HeldOut(
        samples,
        tiny_image_codec(),
        CODEC,
        ranks or Ranks(),
        chunk=2,
        i2t_fraction=0.5 if model is None else 0,
    )
    with torch.no_grad():
        return held.measure(tiny_pipeline().transformer if model is None else model)


class Velocity:
    """A model whose velocity at time t is `scale` t everywhere."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def parameters(self) -> Iterator[torch.Tensor]:
        yield torch.zeros(1)

    def __call__(self, latents: torch.Tensor, t: torch.Tensor, *_: Any, **__: Any) -> DualOutput:
        return DualOutput(self.scale * t.view(-1, 1, 1, 1).expand(latents.shape), None)


def test_the_flow_loss_by_time_has_one_noise_a_sample_in_every_bin() -> None:
    """The error of a velocity that is 0 does not depend on the time, so that any step of the curve is noise's."""
    found = measured(samples_of(CAPTIONS), Velocity(0))
    assert set(found) == {"velocity_true", "velocity_shuffled"} | {
        name + end for name in ("uptake", "flow_loss", *TIMES) for end in ("", "_ci")
    }
    assert {round(found[name], 5) for name in TIMES} == {round(found["flow_loss"], 5)}
    assert {round(found[f"{name}_ci"], 5) for name in TIMES} == {round(found["flow_loss_ci"], 5)}
    assert found["flow_loss_ci"] > 0
    assert found["uptake"] == found["uptake_ci"] == 0


def test_the_flow_loss_of_a_bin_is_the_mean_over_its_times() -> None:
    """A large velocity 1000 t costs 10^6 t^2, whose mean over [a, b] is (a^2 + a b + b^2) / 3."""
    found = measured(samples_of([f"{CAPTIONS[i % 5]} {i}" for i in range(40)]), Velocity(1000))
    for index, name in enumerate(TIMES):
        low, high = index / 10, (index + 1) / 10
        assert found[name] / 1e6 == pytest.approx((low**2 + low * high + high**2) / 3, rel=0.01, abs=1e-4)
    assert found["flow_loss"] / 1e6 == pytest.approx(1 / 3, rel=0.003)


@pytest.mark.parametrize("image_attends_text", [True, False])
def test_the_nelbo_of_texts_is_the_score_of_the_pipeline(
    image_attends_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all masks there are, as many as a text of six units has."""
    monkeypatch.setattr(heldout, "NUM_MASKS", 63)
    pipeline, samples = tiny_pipeline(image_attends_text=image_attends_text), samples_of(CAPTIONS)
    held = HeldOut(samples, pipeline.image_codec, CODEC, Ranks(), chunk=2, i2t_fraction=1)
    with torch.no_grad():
        found = held.measure(pipeline.transformer)
    assert samples.images.pixels is not None
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in samples.images.pixels]
    for name, questions in (("caption", None), ("question", ["is there a dog"] * len(images))):
        scores = pipeline.score(images, CAPTIONS, questions=questions, num_samples=63)
        assert all(score.standard_error == 0 for score in scores)
        values = torch.tensor([-score.log_prob for score in scores], dtype=torch.float64)
        assert found[f"{name}_nelbo"] == pytest.approx(values.mean().item(), rel=1e-4)
        spread = 1.96 * values.std().item() / math.sqrt(len(values))
        assert found[f"{name}_nelbo_ci"] == pytest.approx(spread, rel=1e-3)
        num_tokens = sum(score.num_tokens for score in scores)
        assert found[f"{name}_nelbo_token"] == pytest.approx(values.sum().item() / num_tokens, rel=1e-4)


def test_few_masks_give_the_nelbo_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    def nelbo(samples: HeldOutSamples) -> float:
        pipeline = tiny_pipeline()
        samples = samples._replace(has_question=torch.zeros(len(samples.captions), dtype=torch.bool))
        held = HeldOut(samples, pipeline.image_codec, CODEC, Ranks(), chunk=60, i2t_fraction=1)
        with torch.no_grad():
            return held.measure(pipeline.transformer)["caption_nelbo"]

    few = nelbo(samples_of(CAPTIONS * 24))  # of each caption, 24 draws of four masks, about other images
    monkeypatch.setattr(heldout, "NUM_MASKS", 63)
    assert few == pytest.approx(nelbo(samples_of(CAPTIONS)), rel=0.03)


def test_figures_are_the_same_in_every_evaluation_and_over_two_ranks() -> None:
    samples = samples_of(CAPTIONS)
    alone = measured(samples)
    assert measured(samples) == alone
    gathered: list[list] = []

    class Second(Ranks):
        def gather(self, values: list) -> list:
            gathered.append(values)
            return values

    class First(Ranks):
        def gather(self, values: list) -> list:
            return [*values, *gathered.pop(0)]

    measured(samples, ranks=Second(1, 2))
    shared = measured(samples, ranks=First(0, 2))
    assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_texts_that_are_not_there_are_not_measured() -> None:
    samples = samples_of(CAPTIONS)
    some = samples._replace(has_caption=torch.tensor([True, False, True, True, False]))
    kept = torch.tensor([0, 2, 3])
    other = measured(samples._replace(has_caption=torch.zeros(5, dtype=torch.bool)))
    assert {name.split("_")[0] for name in other} == {"question"}
    noise = torch.stack([heldout.sample_noise(int(row), torch.zeros(4, 8, 8)) for row in kept])
    latents = HeldOut(samples, tiny_image_codec(), CODEC, Ranks(), chunk=2, i2t_fraction=0).latents(kept)
    expected = (noise - latents).square().mean().item()
    assert measured(some, Velocity(0))["flow_loss"] == pytest.approx(expected, rel=1e-5)


def test_an_interval_holds_the_truth_in_95_of_100_cases() -> None:
    """Of a mean and of a ratio whose two sums go together."""
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(2)
    for _ in range(1000):
        counts = torch.randint(2, 30, (200,), generator=generator).double()
        values = 0.7 * counts + counts.sqrt() * torch.randn(200, generator=generator)
        for index, (of, truth) in enumerate(((torch.ones(200), 0.7 * 15.5), (counts, 0.7))):
            found = ratio_with_interval("x", values, of)
            hits[index] += abs(found["x"] - truth) <= found["x_ci"]
    assert ((hits / 1000 - 0.95).abs() < 0.02).all()
    assert ratio_with_interval("x", torch.tensor([2.0]), torch.ones(1)) == {"x": 2.0}  # of one there is none
