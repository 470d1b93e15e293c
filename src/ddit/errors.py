"""What a user's mistake is answered with: one line, near misses of a name, and warnings about a text.

Warnings go through Python's `warnings`, unless the caller collects them, as a server does for each of its clients:
`warnings.catch_warnings` changes the whole process, `collect_warnings` one thread or task alone.
"""

import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import SequenceMatcher
from typing import NamedTuple, Self

LEAST_RATIO, MARGIN = 0.6, 0.15


class WorkerError(ValueError):
    """What another process could not do, in one line for the user."""


class Failure(NamedTuple):
    """What was raised in another process, as it is sent to the one that reports: a line for the user, and where."""

    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        return cls(one_line(error), "".join(traceback.format_exception(error)))

    def error(self) -> WorkerError:
        """To be raised; it shows the other process's traceback with its own."""
        error = WorkerError(self.message)
        error.add_note(self.trace)
        return error


def one_line(error: BaseException) -> str:
    """An error as the user is told of it; of one that is not foreseen, with its type."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: '{error.filename}'" if error.filename else error.strerror
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, ValueError | OSError) and text:
        return text
    name = type(error).__name__
    return f"{name}: {text} (DDIT_DEBUG=1 shows where)" if text else f"{name} (DDIT_DEBUG=1 shows where)"


def near_misses(word: str, known: Iterable[str]) -> str:
    """ "; did you mean entropy?", or nothing if none of the known names is near; case does not count."""
    near = nearest(word, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """At most so many of the known names, those like the word and not much less so than the likest, which is first."""
    ratios = {name: SequenceMatcher(None, name.lower(), word.lower()).ratio() for name in known}
    least = max([LEAST_RATIO, *(ratio - MARGIN for ratio in ratios.values())])
    near = sorted((name for name, ratio in ratios.items() if ratio >= least), key=lambda name: -ratios[name])
    return near[:most]


class TextWarning(NamedTuple):
    """A warning about a text."""

    text: str
    message: str


_collected: ContextVar[list[TextWarning] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_warnings() -> Iterator[list[TextWarning]]:
    """Within this context warnings about texts are put into the list instead of being issued."""
    found: list[TextWarning] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def warn_user(message: str, *, text: str, stacklevel: int = 1) -> None:
    """Warns about a text; `stacklevel` as in `warnings.warn`."""
    found = _collected.get()
    if found is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    else:
        found.append(TextWarning(text, message))


def is_collecting() -> bool:
    """Whether warnings are collected here."""
    return _collected.get() is not None
