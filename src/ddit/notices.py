"""Notices to users about their texts: warnings, unless the caller listens, as a server does for each of its clients.

`warnings.catch_warnings` changes the whole process; what is heard here is heard in one thread or task alone.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Notice(NamedTuple):
    """What there is to say about a text."""

    text: str
    message: str


_listener: ContextVar[list[Notice] | None] = ContextVar("listener", default=None)


@contextmanager
def heard() -> Iterator[list[Notice]]:
    """Within this context notices are collected in the list, and nothing is warned about."""
    notices: list[Notice] = []
    token = _listener.set(notices)
    try:
        yield notices
    finally:
        _listener.reset(token)


def notify(message: str, *, text: str, stacklevel: int = 1) -> None:
    """Tells the listener, or else warns; `stacklevel` as in `warnings.warn`."""
    listener = _listener.get()
    if listener is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    else:
        listener.append(Notice(text, message))


def is_heard() -> bool:
    """Whether someone listens."""
    return _listener.get() is not None
