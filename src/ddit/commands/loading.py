"""The model of a verb."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ddit.settings import LoadOptions

if TYPE_CHECKING:
    from ddit.pipeline import Pipeline


def load(model: str, options: LoadOptions) -> "Pipeline":
    """Loads a model. What can be wrong with the options is found before the heavy imports."""
    with paused_gc():
        from ddit.devices import find_device, find_dtype, limit_threads
        from ddit.model.folders import resolve

        device = find_device(options.device)
        find_dtype(options.dtype)
        folder = resolve(model)
        limit_threads(folder)
        from ddit.pipeline import Pipeline

        return Pipeline.from_pretrained(folder, **{**asdict(options), "device": device})


@contextmanager
def paused_gc() -> Iterator[None]:
    """For what makes objects that stay, as imports do: they are not searched for cycles, now or later, which would take
    a quarter of a command's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
