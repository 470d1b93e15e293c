"""The guidance scale that a fitted model generates with: the one whose images are nearest to real ones."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ddit.eval.classifier import NUM_FEATURES
from ddit.eval.frechet import frechet_distance
from ddit.eval.items import Figure
from ddit.files import read_json, write_atomically
from ddit.fit.drawing import Judge, draw
from ddit.fit.held_out import Captioned, Clock, to_pixels
from ddit.fit.section import Section
from ddit.model.folders import SETTINGS_FILE
from ddit.pipeline import Pipeline
from ddit.settings import ImageSampling

SCALES = (2.0, 4.0, 7.0, 11.0)
NUM_STEPS = 10
"""Of sampling, for the choice: the distances differ by more than these steps make them."""
MOST_DRAWN = 256
_TIMED = 32  # images, by which the number of all is set


def choose_guidance(
    pipeline: Pipeline, judge: Judge, shown: Sequence[Captioned], clock: Clock, folder: Path
) -> Section:
    """Sets the guidance scale of `pipeline`, and of the model in `folder`, to one of `SCALES`.

    At each, images are generated for the same held-out captions, in `NUM_STEPS` steps; the one with the least Fréchet
    distance to held-out images in the classifier's features is taken. Nothing is set without a classifier, or without
    time for more images than it has features.
    """
    if judge.classifier is None:
        return _section("Left as it was: without classes there is no classifier.")
    before = pipeline.settings.image_sampling
    _set(pipeline, replace(before, num_steps=NUM_STEPS))
    start = time.monotonic()
    draw(pipeline, shown[:_TIMED], clock)
    each = (time.monotonic() - start) / min(_TIMED, len(shown))
    count = min(MOST_DRAWN, len(shown), int(clock.left / each / len(SCALES)))
    if count <= NUM_FEATURES:
        _set(pipeline, before)
        return _section(f"Left as it was: there is time for {count} images a scale.")
    real = judge.net.features(to_pixels([one.image for one in shown], judge.side))
    found: dict[float, float] = {}
    for scale in SCALES:
        _set(pipeline, replace(before, guidance_scale=scale, num_steps=NUM_STEPS))
        drawn = draw(pipeline, shown[:count], Clock(float("inf")))
        found[scale] = frechet_distance(judge.net.features(to_pixels(drawn.images, judge.side)), real)
    best = min(found, key=found.__getitem__)
    _set(pipeline, replace(before, guidance_scale=best))
    settings = read_json(folder / SETTINGS_FILE)
    settings["image_sampling"]["guidance_scale"] = best
    with write_atomically(folder / SETTINGS_FILE) as part:
        part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    others = {f"at {scale:g}": value for scale, value in found.items() if scale != best}
    figure = Figure(f"Fréchet distance at guidance {best:g}", found[best], count, others, is_share=False)
    line = (
        "The scale of the least distance is the model's own from here on. It was chosen by the same held-out images, "
        "which makes the figures below a little better than on new data."
    )
    return _section(line, figure)


def _set(pipeline: Pipeline, sampling: ImageSampling) -> None:
    pipeline.settings = replace(pipeline.settings, image_sampling=sampling)


def _section(line: str, *figures: Figure) -> Section:
    return Section("guidance", "Guidance", figures, (line,))
