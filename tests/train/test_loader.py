"""Items made ahead by processes: whatever happens in one of these, the work ends with one line, within seconds."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ddit.errors import WorkerError
from ddit.train.loader import closing_workers, make_ahead


def raising(error: BaseException) -> Callable[[int], int]:
    def make(index: int) -> int:
        if index == 3:
            raise error
        return index

    return make


def take_all(
    make: Callable[[int], Any], count: int, num_workers: int, found: list[Any] | None = None
) -> None:
    with closing_workers(make_ahead(make, range(count), num_workers)) as items:
        for item in items:
            time.sleep(0.01)
            if found is not None:
                found.append(item)


FAULTS = {
    "ValueError": (ValueError("a fault of one line"), "a fault of one line"),
    "OSError": (
        FileNotFoundError(2, "No such file or directory", "a.tar"),
        "No such file or directory: 'a.tar'",
    ),
    "RuntimeError": (
        RuntimeError("a decoder's\nfault"),
        "RuntimeError: a decoder's (DDIT_DEBUG=1 shows where)",
    ),
    "KeyError": (KeyError("caption"), "KeyError: 'caption' (DDIT_DEBUG=1 shows where)"),
    "MemoryError": (MemoryError(), "MemoryError (DDIT_DEBUG=1 shows where)"),
    "SystemExit": (SystemExit(0), "SystemExit: 0 (DDIT_DEBUG=1 shows where)"),
    "StopIteration": (StopIteration(), "StopIteration (DDIT_DEBUG=1 shows where)"),
    "KeyboardInterrupt": (KeyboardInterrupt(), "KeyboardInterrupt (DDIT_DEBUG=1 shows where)"),
}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before, start = set(multiprocessing.active_children()), time.monotonic()
    yield
    assert set(multiprocessing.active_children()) == before
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("kind", FAULTS)
def test_whatever_a_worker_raises_is_one_line_in_its_turn(kind: str) -> None:
    error, message = FAULTS[kind]
    found: list[int] = []
    with pytest.raises(WorkerError) as raised:
        take_all(raising(error), 8, 2, found)
    assert found == [0, 1, 2]
    assert str(raised.value) == message
    assert "test_loader.py" in raised.value.__notes__[0]


def test_without_workers_an_error_comes_as_it_is() -> None:
    items = make_ahead(raising(KeyError("caption")), range(8), 0)
    with pytest.raises(KeyError, match="caption"):
        list(items)


def die_by(number: int) -> Callable[[int], int]:
    def make(index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), number)
        return index

    return make


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_is_killed_is_one_line(number: int) -> None:
    with pytest.raises(WorkerError, match=r"^a process that makes batches has died: .*use fewer workers$"):
        take_all(die_by(number), 100, 2)


def test_a_worker_that_leaves_is_one_line() -> None:
    with pytest.raises(WorkerError, match="has died"):
        take_all(lambda index: os._exit(0), 9, 2)


def test_a_worker_that_is_killed_while_the_parent_works_elsewhere_is_noticed_at_once() -> None:
    def kill_while_working() -> None:
        with closing_workers(make_ahead(abs, range(3), 1)) as items:
            next(items)
            (worker,) = multiprocessing.active_children()
            worker.kill()
            time.sleep(10)

    start = time.monotonic()
    with pytest.raises(WorkerError, match="Killed"):
        kill_while_working()
    assert time.monotonic() - start < 8


def test_workers_that_do_not_end_are_killed() -> None:
    items = make_ahead(lambda index: time.sleep(600 * index), range(9), 2)
    next(items)
    start = time.monotonic()
    items.close()
    assert time.monotonic() - start < 8


def test_an_error_that_is_still_held_keeps_no_process() -> None:
    """As at the command's edge, where the program exits while it handles the error."""

    def fail_at(item: int) -> None:
        if item == 5:
            raise ZeroDivisionError

    def work() -> None:
        with closing_workers(make_ahead(abs, range(99), 2)) as items:
            for item in items:
                fail_at(item)

    before = set(multiprocessing.active_children())
    with pytest.raises(ZeroDivisionError) as held:
        work()
    assert held.tb is not None
    assert set(multiprocessing.active_children()) == before
