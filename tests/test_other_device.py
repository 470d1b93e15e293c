"""All verbs on a device without float64 (`mps`, many under `xpu`), which the CPU plays: see `other_device`."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np
import torch
from other_device import other_device
from ddit import Pipeline

expected = Pipeline.from_pretrained("mini", device="cpu")
prompts, question = ["a photo of a red car"], "what is this?"
published = {"order": "random", "temperature": 1.0}
mask = torch.zeros(64, 64)
mask[:, :32] = 1


def pixels(images):
    return np.stack([np.asarray(image, dtype=int) for image in images])


def run(pipeline):
    images = pipeline.generate(prompts, seed=1, num_steps=2)
    yield pixels(images)
    yield pixels(pipeline.inpaint(images[0], mask.numpy(), prompts[0], num_steps=2))
    yield pixels(pipeline.vary(images[0], prompts[0], num_steps=2))
    yield pipeline.caption(images[0], num_steps=2)
    yield pipeline.caption(images[0], num_steps=2, **published, top_p=0.9)
    yield pipeline.answer(images[0], question, num_steps=2, **published, block_size=4, text_guidance_scale=1.5)
    yield pipeline.infill(images[0], "a photo of a ___ car")
    yield np.array([score.log_prob for score in pipeline.score(images[0], prompts[0], num_samples=2, null_weight=1.0)])


wanted = list(run(expected))
with other_device() as device:
    pipeline = Pipeline.from_pretrained("mini", device=device)
    assert pipeline.device == device
    for found, known in zip(run(pipeline), wanted, strict=True):
        if isinstance(known, list):
            assert found == known, (found, known)
        else:  # other kernels of attention: other last bits
            assert np.abs(found - known).max() <= (1 if known.dtype == int else 1e-2), np.abs(found - known).max()
    try:
        torch.zeros(1, device=device).double()
    except TypeError as error:
        print("all equal;", error)
"""


@pytest.mark.slow
def test_every_verb_gives_the_same_on_a_device_without_float64() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all equal; float64 on the device" in done.stdout
