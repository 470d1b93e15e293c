"""The texts of foreign metadata: which of two captions, and what is no text at all."""

from __future__ import annotations

import random
from typing import Any, NoReturn

from ddit.data.samples import CorruptSample, Sample, Turn


def pick_text(value: Any, rng: random.Random) -> str:
    """A text, or one of a list of texts, without white space around it; "" for anything else."""
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
    """The caption under `key`, or with probability `original_share`, or if that is missing, under `original_key`.

    Raises:
        CorruptSample: "no caption".
    """
    is_original = rng.random() < original_share
    texts = [pick_text(entry.get(key), rng)]
    if original_key is not None:
        texts.append(pick_text(entry.get(original_key), rng))
    if is_original:
        texts.reverse()
    text = next((text for text in texts if text), "")
    if not text:
        keys = key if original_key is None else f"{key} or {original_key}"
        raise CorruptSample("no caption", f"{name}: no text under {keys}")
    return text


def make_caption_sample(image: Any, caption: str, *, i2t: bool) -> Sample:
    """A sample of one caption, for either direction."""
    return Sample(image, caption, (Turn(None, caption),) if i2t else ())


def refuse_t2i(name: str) -> NoReturn:
    """Raises `CorruptSample` ("no caption"), of a sample that has turns only."""
    raise CorruptSample("no caption", f"{name} has no caption: use this source in data.i2t only")
