"""The shipped model: small enough, safe to load, and it does its tasks on scenes and prompts of unseen seeds.

The bounds lie under the measured figures (README, `ddit eval`) by more than chance allows.
"""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddit.model.folders import resolve
from ddit.pipeline import Pipeline
from ddit.world import (
    PRESETS,
    Scene,
    caption_is_right,
    check_detections,
    make_prompts,
    make_question,
    make_scene,
    render,
)
from ddit.world.detector import detect

WORLD = PRESETS["fixed"]


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini")


def unseen(num: int, kind: str | None = None) -> list[Scene]:
    scenes = (make_scene(WORLD, "test", index) for index in range(20 * num))
    return [scene for scene in scenes if kind in (None, scene.kind)][:num]


def render_image(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene))


def test_it_is_at_most_40_mb_of_safetensors_and_text() -> None:
    files = [path for path in Path(resolve("mini")).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} == {".safetensors", ".json"}


@pytest.mark.parametrize(
    ("tag", "share"),
    [
        ("single_object", 0.95),
        ("two_object", 0.75),
        ("counting", 0.8),
        ("colors", 0.95),
        ("position", 0.95),
        ("color_attr", 0.8),
    ],
)
def test_it_draws_what_is_asked(mini: Pipeline, tag: str, share: float) -> None:
    prompts = [prompt for prompt in make_prompts(WORLD, 20, split="test") if prompt.tag == tag]
    images = mini.generate([prompt.text for prompt in prompts], batch_size=20)
    found = detect(np.stack([np.asarray(image) for image in images]))
    assert (
        np.mean([check_detections(prompt, seen) for prompt, seen in zip(prompts, found, strict=True)])
        >= share
    )


def test_it_captions_single_objects(mini: Pipeline) -> None:
    scenes = unseen(40, "single")
    captions = mini.caption([render_image(scene) for scene in scenes], batch_size=40)
    right = [
        caption_is_right(scene, text, complete=True) for scene, text in zip(scenes, captions, strict=True)
    ]
    assert np.mean(right) >= 0.85


@pytest.mark.parametrize(
    ("kind", "share"), [("color", 0.85), ("what", 0.85), ("count", 0.8), ("exists", 0.85), ("relation", 0.85)]
)
def test_it_answers(mini: Pipeline, kind: str, share: float) -> None:
    asked = [(scene, make_question(scene, random.Random(scene.index), kind)) for scene in unseen(400)]
    pairs = [(scene, one) for scene, one in asked if one is not None][:60]
    answers = mini.answer(
        [render_image(scene) for scene, _ in pairs], [one.text for _, one in pairs], batch_size=60
    )
    assert np.mean([answer == one.answer for answer, (_, one) in zip(answers, pairs, strict=True)]) >= share
