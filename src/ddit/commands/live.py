"""Texts while they are written: what is settled, and a blank for every token that is not."""

from __future__ import annotations

import shutil
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported by the command, which must start quickly
    from torch import Tensor

    from ddit.inference.batching import Step, StepCallback
    from ddit.model.encoders import TextCodec

UNWRITTEN = "_"
CLEAR_LINE = "\r\x1b[K"


def settled(codec: TextCodec, ids: Tensor, shown: Tensor) -> str:
    """The text of the ids (L,) at the positions shown (L,), up to the end of text; `_` where nothing is written."""
    words: list[str] = []
    run: list[int] = []
    tokens = ids[shown].tolist()
    if codec.eos_token_id in tokens:
        tokens = tokens[: tokens.index(codec.eos_token_id)]
    for token in [*tokens, codec.mask_token_id]:
        if token != codec.mask_token_id:
            run.append(token)
            continue
        words += [codec.decode(run)] if run else []
        words.append(UNWRITTEN)
        run = []
    return " ".join(words[:-1])  # without the blank that closed the last run


def print_passes(codec: TextCodec, out: IO[str], whole_after: str | None = None) -> StepCallback:
    """A callback that prints a line for each text that a pass has changed: the pass, its number from 1, the text.

    whole_after: shows what was given too, without this prefix, not the written positions alone.
    """
    said: dict[int, str] = {}

    def step(now: Step[Any]) -> None:
        for place, row in enumerate(now.rows):
            text = _text(codec, now, place, whole_after)
            if said.get(row) != text:
                print(f"{now.done:>3} {row + 1:>3}  {text}", file=out, flush=True)
                said[row] = text

    return step


def rewrite_line(codec: TextCodec, out: IO[str], whole_after: str | None = None) -> StepCallback:
    """A callback for a terminal: the first text at work on one line, written anew after every pass; else as above."""

    def step(now: Step[Any]) -> None:
        room = shutil.get_terminal_size().columns - 1
        out.write(CLEAR_LINE + _text(codec, now, 0, whole_after)[:room])
        out.flush()

    return step


def _text(codec: TextCodec, now: Step[Any], place: int, whole_after: str | None) -> str:
    ids, mask = now.state.ids[place], now.state.answer_mask[place]
    if whole_after is None:
        return settled(codec, ids, mask)
    return settled(codec, ids, mask.new_ones(mask.shape)).removeprefix(whole_after).strip()
