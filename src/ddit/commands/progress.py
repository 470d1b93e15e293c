"""Progress on stderr: bars, and texts while they are sampled."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ddit.commands.partial_text import print_steps

if TYPE_CHECKING:
    from ddit.inference.batching import StepCallback
    from ddit.pipeline import Pipeline


_is_hidden = False


def hide_progress() -> None:
    """For --quiet: no bars and no notes in this process from now on."""
    global _is_hidden
    _is_hidden = True


def print_line(line: str) -> None:
    """Prints a line on stderr, but not with --quiet."""
    if not _is_hidden:
        print(line, file=sys.stderr, flush=True)


def print_note(message: str) -> None:
    """Tells a person something on stderr: on a terminal alone, and not with --quiet."""
    if not _is_hidden and sys.stderr.isatty():
        print(f"ddit: {message}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first progress, on a terminal alone; it is called with (done, total)."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bar: tqdm | None = None

        def advance(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                disable = True if _is_hidden else None  # None: where stderr is no terminal
                bar = stack.enter_context(
                    tqdm(total=total, desc=what, unit=unit, file=sys.stderr, leave=False, disable=disable)
                )
            bar.update(done - bar.n)

        yield advance


@contextmanager
def step_bar(what: str) -> "Iterator[StepCallback]":
    """A bar of sampling steps."""
    with progress_bar(what, "step") as advance:
        yield lambda step: advance(step.done, step.total)


@contextmanager
def text_progress(
    pipeline: "Pipeline", is_watched: bool, *, with_prompt: bool = False
) -> "Iterator[StepCallback]":
    """A bar or, if it is watched, the text after every step; `with_prompt`: with the text that was given."""
    if is_watched:
        yield print_steps(
            pipeline.text_codec, sys.stderr, pipeline.style.caption_prefix if with_prompt else None
        )
        return
    with step_bar("sampling") as on_step:
        yield on_step
