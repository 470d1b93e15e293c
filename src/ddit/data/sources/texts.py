"""The texts of foreign metadata: which of two captions, and what is no text at all."""

from __future__ import annotations

import random
from typing import Any

from ddit.data.samples import CorruptSample, Sample, Turn


def text_of(value: Any, rng: random.Random) -> str:
    """A text, or one drawn from a list of texts, without white space around it; "" for anything else."""
    if isinstance(value, list):
        texts = [text for text in value if isinstance(text, str) and text.strip()]
        return rng.choice(texts).strip() if texts else ""
    return value.strip() if isinstance(value, str) else ""


def choose_caption(
    entry: dict[str, Any],
    key: str,
    original_key: str | None,
    original_share: float,
    rng: random.Random,
    name: str,
) -> str:
    """The caption `key`, or in a share of the draws, or where that is missing, `original_key`.

    Raises:
        BrokenSample: "no caption".
    """
    is_original = rng.random() < original_share
    texts = [text_of(entry.get(key), rng)]
    if original_key is not None:
        texts.append(text_of(entry.get(original_key), rng))
    if is_original:
        texts.reverse()
    text = next((text for text in texts if text), "")
    if not text:
        keys = key if original_key is None else f"{key} or {original_key}"
        raise CorruptSample("no caption", f"{name}: no text under {keys}")
    return text


def captioned(picture: Any, caption: str, *, reading: bool) -> Sample:
    """A sample of one caption, to draw from and to be read off."""
    return Sample(picture, caption, (Turn(None, caption),) if reading else ())


def refuse_drawing(name: str) -> CorruptSample:
    """Of a sample that has turns only."""
    return CorruptSample(
        "no caption", f"{name} has no caption to draw from: use this source in data.i2t only"
    )
