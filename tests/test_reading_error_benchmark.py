"""The error of what is reused between steps, along a text that is sampled exactly."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from benchmarks.reading_error import ErrorMeter, measure_error
from ddit.diffusion.masked import subs_log_probs


def test_the_meter_answers_exactly_and_measures_the_divergence() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2, 0.0]]), torch.tensor([[0.2, 0.6, 0.2, 0.0]])
    meter = ErrorMeter(lambda *_: p.log().expand(3, -1), lambda *_: q.log().expand(3, -1), mask_token_id=3)
    nothing = torch.empty(0)
    assert torch.equal(
        subs_log_probs(meter(nothing, nothing, nothing), 3), subs_log_probs(p.log().expand(3, -1), 3)
    )
    assert meter.error.kl == pytest.approx((p[0, :3] * (p[0, :3] / q[0, :3]).log()).sum().item(), abs=1e-6)
    assert meter.error[1:] == (0.0, 3)
    same = ErrorMeter(meter.exact, meter.exact, mask_token_id=3)
    same(nothing, nothing, nothing)
    assert same.error == (0.0, 1.0, 3)


@pytest.mark.parametrize("image_attends_text", [True, False], ids=["joint", "isolated"])
def test_what_is_reused_has_an_error_and_nothing_else_has(image_attends_text: bool) -> None:
    pipeline = tiny_pipeline(image_attends_text=image_attends_text)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images, steps = [Image.fromarray(value) for value in pixels], {"num_steps": 6, "order": "confidence"}
    exact = measure_error(pipeline, images, **steps)
    assert exact.kl == pytest.approx(0, abs=1e-6)
    assert exact.agreement == 1
    assert exact.num_positions > 20
    stale = measure_error(pipeline, images, image_refresh=3, **steps)
    assert (stale.kl > 1e-6) == image_attends_text
    questions = ["is there a cat?", "what color is the dog?"]
    assert measure_error(pipeline, images, questions, text_refresh=3, **steps).kl > 1e-6
