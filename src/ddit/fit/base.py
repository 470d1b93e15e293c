"""The model that a fit starts from: its sizes, and the words that it does not know yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ddit.model.folders import resolve
from ddit.model.growing import add_words
from ddit.model.loading import load_parts
from ddit.model.saving import save_parts
from ddit.prompts import PUBLISHED, PromptStyle
from ddit.recipes.small import SMALL_SIZES
from ddit.recipes.tuned import Start
from ddit.schema import parse


class Base(NamedTuple):
    """A base model with what it needs for other texts.

    preset: the one whose model is nearest in width.
    """

    start: Start
    preset: str
    image_size: int
    downsample: int
    num_new_words: int


def prepare_base(name: str, texts: Iterable[str], folder: Path) -> Base:
    """The base model; with new words it is written to `folder`.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    found = resolve(name)
    parts = load_parts(found, dtype=torch.float32)
    before = parts.text_codec.vocab_size
    grown = add_words(parts, texts)
    after = grown.text_codec.vocab_size
    if grown is not parts:
        save_parts(
            folder,
            transformer=grown.transformer,
            image_codec=grown.image_codec,
            text_codec=grown.text_codec,
            settings=grown.settings,
        )
        found = folder
    width = grown.transformer.config.hidden_size
    style = parse(PromptStyle, grown.settings.prompt_style, "prompt_style")
    prompts: Literal["published", "mini"] = "published" if style == PUBLISHED else "mini"
    start = Start(str(found), grown.transformer.config, prompts, before if after > before else None)
    preset = min(SMALL_SIZES, key=lambda size: abs(SMALL_SIZES[size].hidden_size - width))
    return Base(start, preset, grown.settings.image_size, grown.image_codec.downsample, after - before)
