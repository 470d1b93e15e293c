"""What goes into the engine under the server and what comes out: jobs, results, faults."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image

Verb = Literal["generate", "inpaint", "vary", "caption", "answer", "infill"]
Options = tuple[tuple[str, Hashable], ...]


def make_options(**given: Hashable) -> Options:
    """Keywords of a verb as options of a job; None is left out."""
    return tuple(sorted((name, value) for name, value in given.items() if value is not None))


@dataclass(frozen=True, eq=False)
class Job:
    """One image or one text to generate.

    Attributes:
        verb: the method of `Pipeline`.
        sample: this sample's own inputs: prompt, negative_prompt, image and mask (PIL), question, its history, text.
            Those that are missing or None are not given.
        seed: its own.
        options: the method's other keywords (`make_options`); jobs of one verb and equal options go in one call.
        num_previews: images on the way that the stream of an image job shows, evenly over the steps.
    """

    verb: Verb
    sample: dict[str, Any]
    seed: int = 0
    options: Options = ()
    num_previews: int = 0

    @property
    def kind(self) -> Hashable:
        """Equal for jobs that may go in one call."""
        given = frozenset(name for name, value in self.sample.items() if value is not None)
        size = self.sample["image"].size if self.verb in ("inpaint", "vary") else None
        # captions without an image have no input that counts them: each is a call of its own
        alone = id(self) if self.verb == "caption" and "image" not in given else None
        return self.verb, self.options, given, size, alone


@dataclass(frozen=True)
class Preview:
    """An image on the way: the model's prediction of the clean one, after `done` of `total` steps."""

    done: int
    total: int
    image: Image


@dataclass(frozen=True)
class Result:
    """What came out of a job.

    Attributes:
        value: the image, or the text.
        state: after the last step, of one sample: a `flow.ImageState` or a `text_sampler.TextState`.
        warnings: what the model could not use, such as words that it does not know.
        seconds: in the queue and in the model together.
        first_block_seconds: until the first block of a text was finished; None where texts are not written in blocks.
    """

    value: Any
    state: Any
    warnings: tuple[str, ...]
    seconds: float
    first_block_seconds: float | None = None


class Overloaded(Exception):
    """The queue is full. `retry_after`: seconds until what waits now is done, by the measured rate."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting: try again in {retry_after} s")
        self.retry_after = retry_after


class TimedOut(Exception):
    """A job was not done in time."""


class Stopping(Exception):
    """The engine takes no more jobs, or was stopped before this one was done."""


@dataclass(frozen=True)
class BatchReport:
    """What a call of the model did: jobs in it, sampling steps, seconds."""

    verb: Verb
    size: int
    num_steps: int
    seconds: float
