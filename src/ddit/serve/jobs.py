"""What goes into the engine under the server and what comes out: jobs, results, bounds, faults."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch takes seconds to import
    from PIL.Image import Image


Verb = Literal["generate", "inpaint", "vary", "caption", "answer", "infill"]
Options = tuple[tuple[str, Hashable], ...]
DRAWING_VERBS = ("generate", "inpaint", "vary")


def make_options(**given: Hashable) -> Options:
    """Keywords of a verb as options of a job; None is left out."""
    return tuple(sorted((name, value) for name, value in given.items() if value is not None))


@dataclass(frozen=True, eq=False)
class Job:
    """One picture to draw or one text to write.

    Attributes:
        verb: the method of `Pipeline`.
        sample: this sample's own inputs: prompt, negative_prompt, image and mask (PIL), question, text. Those that
            are missing or None are not given.
        seed: its own.
        options: the method's other keywords (`make_options`); jobs of one verb and equal options go in one call.
        num_previews: pictures on the way that a stream of a drawing job shows, evenly over the steps.
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
        # a caption without a picture has no input to be told apart by: it is written alone
        lonely = id(self) if self.verb == "caption" and "image" not in given else None
        return self.verb, self.options, given, size, lonely


@dataclass(frozen=True)
class Preview:
    """A picture on the way: what the model expects it to become, after `done` of `total` steps."""

    done: int
    total: int
    image: "Image"


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        value: the picture, or the text.
        state: after the last step, of one sample: a `flow.ImageState` or a `masked.TextState`.
        notices: what the model could not make use of, such as words that it does not know.
        seconds: in the queue and in the model together.
    """

    value: Any
    state: Any
    notices: tuple[str, ...]
    seconds: float


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
class Limits:
    """Bounds of the engine.

    Attributes:
        max_batch_size: jobs of one call.
        max_queue: jobs that wait.
        max_wait: seconds that an idle engine waits for more jobs of a kind after the first.
        timeout: seconds after which a job is given up, from its arrival.

    Raises:
        ValueError: for a value out of range.
    """

    max_batch_size: int = 16
    max_queue: int = 64
    max_wait: float = 0.004
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_wait < math.inf:
            raise ValueError(f"max_wait must be at least 0 and finite, got {self.max_wait}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be above 0 and finite, got {self.timeout}")


@dataclass(frozen=True)
class BatchReport:
    """What a call did, for whoever measures: jobs in it, passes of the model, seconds."""

    verb: Verb
    size: int
    num_steps_taken: int
    seconds: float
