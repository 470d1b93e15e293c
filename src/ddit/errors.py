"""What a user's mistake is answered with: one line, near misses of a name, and warnings about an input.

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

MARGIN = 0.15
"""Names that are less like a word than the likest by more than this share are not said."""


RESUME_CODE = 75
"""Exit code of a run that a signal has stopped: its state is saved, and the same command goes on (`EX_TEMPFAIL`)."""


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal, after it had saved its state; in one line for the user."""


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
    """At most so many of the known names: those that the word may be a slip of, the likest first."""
    near = {name for name in known if _is_near(word.lower(), name.lower())}
    ratios = {name: SequenceMatcher(None, name.lower(), word.lower()).ratio() for name in near}
    least = max(ratios.values(), default=0) - MARGIN
    return sorted((name for name in ratios if ratios[name] >= least), key=lambda name: (-ratios[name], name))[
        :most
    ]


def _is_near(word: str, name: str) -> bool:
    """Whether one holds the other, or both begin alike and a slip in three letters makes one of the other."""
    shorter, longer = sorted((word, name), key=len)
    if len(shorter) >= 4 and shorter in longer:
        return True
    begins_alike = word[:1] == name[:1] or word[:2] == name[1::-1]
    return len(word) > 2 and begins_alike and _edits(word, name) <= len(word) // 3


def _edits(word: str, name: str) -> int:
    """Letters to add, leave out, change or swap with the next one (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(name) + 1))
    for i, letter in enumerate(word, 1):
        row = [i]
        for j, other in enumerate(name, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == name[j - 2] and word[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


class InputWarning(NamedTuple):
    """A warning, and the text or image that it is about."""

    about: object
    message: str


_collected: ContextVar[list[InputWarning] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_warnings() -> Iterator[list[InputWarning]]:
    """Within this context warnings about inputs are put into the list instead of being issued."""
    found: list[InputWarning] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def warn_user(message: str, *, about: object, stacklevel: int = 1) -> None:
    """Warns about a text or an image; `stacklevel` as in `warnings.warn`."""
    found = _collected.get()
    if found is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    else:
        found.append(InputWarning(about, message))


def is_collecting() -> bool:
    """Whether warnings are collected here."""
    return _collected.get() is not None
