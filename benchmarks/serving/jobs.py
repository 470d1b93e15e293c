"""Requests of the clients, and the answers of single calls of the pipeline."""

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ddit.pipeline import Pipeline
from ddit.world import PRESETS, make_caption, make_question, make_scene, render

LEVELS = 1
"""By how much of 255 an image of a batch may differ from that of a single call."""

KINDS = ("image", "answer", "caption")


@dataclass
class Request:
    """One request and its right answer: a text, or an image as an array."""

    kind: str
    path: str
    body: dict[str, Any]
    expected: str | np.ndarray
    _right: set[str] = field(default_factory=set)  # encoded images that were found right

    def is_right(self, answer: dict[str, Any]) -> bool:
        """Whether an answer is this request's own."""
        if isinstance(self.expected, str):
            return answer["choices"][0]["message"]["content"] == self.expected
        encoded = answer["data"][0]["b64_json"]
        if encoded not in self._right:
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=int)
            if np.abs(pixels - self.expected).max() > LEVELS:
                return False
            self._right.add(encoded)
        return True


def make_requests(
    pipeline: Pipeline, count: int, kinds: Sequence[str] = KINDS, preset: str = "fixed"
) -> list[Request]:
    """`count` requests of each kind, the kinds in turns, about scenes of the split "test".

    The right answers come from single calls, one a request.
    """
    made: list[Request] = []
    for number in range(count):
        scene, rng = make_scene(PRESETS[preset], "test", number), random.Random(number)
        for kind in kinds:
            made.append(_request(pipeline, kind, scene, rng, seed=1000 + number))
    return made


def _request(pipeline: Pipeline, kind: str, scene: Any, rng: random.Random, *, seed: int) -> Request:
    if kind == "image":
        prompt = make_caption(scene, rng)
        expected = np.asarray(pipeline.generate(prompt, seed=seed)[0], dtype=int)
        return Request(kind, "/v1/images/generations", {"prompt": prompt, "seed": seed}, expected)
    image = Image.fromarray(render(scene))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    if kind == "caption":
        text = pipeline.caption(image, seed=seed)[0]
    else:
        found = make_question(scene, rng)
        assert found is not None  # without a kind there always is one
        parts.append({"type": "text", "text": found.text})
        text = pipeline.answer(image, found.text, seed=seed)[0]
    body = {"model": "mini", "messages": [{"role": "user", "content": parts}], "seed": seed}
    return Request(kind, "/v1/chat/completions", body, text)
