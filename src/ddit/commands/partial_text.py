"""Texts while they are sampled: the words that are filled in, and a blank for every token that is not."""

from __future__ import annotations

import shutil
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported by the command, which must start quickly
    from torch import Tensor

    from ddit.inference.batching import Step, StepCallback
    from ddit.model.encoders import TextCodec

MASKED = "_"
CLEAR_LINE = "\r\x1b[K"


def partial_text(codec: TextCodec, ids: Tensor, shown: Tensor) -> str:
    """The text of the ids (L,) at the positions shown (L,), up to the end of text; `_` where a token is masked."""
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
        words.append(MASKED)
        run = []
    return " ".join(words[:-1])  # without the blank that closed the last run


def print_steps(codec: TextCodec, out: IO[str], prefix: str | None = None) -> StepCallback:
    """A callback that prints a line for each text that a step has changed: the step, its number from 1, the text.

    prefix: shows the text that was given, too, without this prefix; None shows the answer alone.
    """
    printed: dict[int, str] = {}

    def on_step(step: Step[Any]) -> None:
        for place, row in enumerate(step.rows):
            text = _text(codec, step, place, prefix)
            if printed.get(row) != text:
                print(f"{step.done:>3} {row + 1:>3}  {text}", file=out, flush=True)
                printed[row] = text

    return on_step


def rewrite_line(codec: TextCodec, out: IO[str], prefix: str | None = None) -> StepCallback:
    """A callback for a terminal: the batch's first text on one line, which every step replaces; else as above."""

    def on_step(step: Step[Any]) -> None:
        room = shutil.get_terminal_size().columns - 1
        out.write(CLEAR_LINE + _text(codec, step, 0, prefix)[:room])
        out.flush()

    return on_step


def _text(codec: TextCodec, step: Step[Any], place: int, prefix: str | None) -> str:
    ids, mask = step.state.ids[place], step.state.answer_mask[place]
    if prefix is None:
        return partial_text(codec, ids, mask)
    return partial_text(codec, ids, mask.new_ones(mask.shape)).removeprefix(prefix).strip()
