"""The guidance scale of a fitted model is the one whose images are nearest to real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from ddit.fit.drawing import Judge
from ddit.fit.guidance import SCALES, choose_guidance
from ddit.fit.held_out import Captioned, Clock
from ddit.pipeline import Pipeline
from ddit.schema import to_data
from ddit.settings import ModelSettings


def image_of(level: float, number: int) -> Image.Image:
    noise = np.random.default_rng(number).normal(level, 10.0, (4, 4, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


class Drawing:
    """A pipeline whose images are the brighter the larger the scale."""

    def __init__(self) -> None:
        self.settings = ModelSettings()
        self.num_drawn = 0

    def generate(self, prompts: list[str], *, seed: int, batch_size: int) -> list[Image.Image]:
        self.num_drawn += len(prompts)
        level = 10 * self.settings.image_sampling.guidance_scale
        return [image_of(level, seed + row) for row in range(len(prompts))]


class Seeing:
    """A judge whose features are an image's pixels."""

    classifier: object | None = object()
    side = 4

    @property
    def net(self) -> Seeing:
        return self

    def features(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).float()


def choose(tmp_path: Path, drawing: Drawing, judge: Seeing, level: float, seconds: float) -> Any:
    shown = [Captioned(image_of(level, 1000 + row), ("a cat",), "cat") for row in range(100)]
    (tmp_path / "ddit.json").write_text(json.dumps(to_data(drawing.settings)))
    return choose_guidance(cast(Pipeline, drawing), cast(Judge, judge), shown, Clock(seconds), tmp_path)


@pytest.mark.parametrize(("level", "scale"), [(22.0, 2.0), (45.0, 4.0), (85.0, 7.0)])
def test_the_nearest_scale_is_the_models_own_from_then_on(tmp_path: Path, level: float, scale: float) -> None:
    drawing = Drawing()
    section = choose(tmp_path, drawing, Seeing(), level, 1e9)
    assert drawing.settings.image_sampling.guidance_scale == scale
    saved = json.loads((tmp_path / "ddit.json").read_text())
    assert saved["image_sampling"] == to_data(replace(drawing.settings.image_sampling))
    (figure,) = section.figures
    assert figure.name == f"Fréchet distance at guidance {scale:g}"
    assert len(figure.baselines) == len(SCALES) - 1
    assert figure.value < min(figure.baselines.values())


def test_without_time_or_a_classifier_it_is_left_as_it_was(tmp_path: Path) -> None:
    drawing, judge = Drawing(), Seeing()
    before = drawing.settings
    assert "there is time for" in choose(tmp_path, drawing, judge, 50.0, 0.0).lines[0]
    judge.classifier = None
    assert "no classifier" in choose(tmp_path, drawing, judge, 50.0, 1e9).lines[0]
    assert drawing.settings == before
    assert json.loads((tmp_path / "ddit.json").read_text()) == to_data(before)
