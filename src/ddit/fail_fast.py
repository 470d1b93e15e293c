"""One of several processes has failed: the others end at once, and the first failure is what all of them report.

A process that waits in a collective cannot be told anything: by NCCL it would wait for the timeout, and torchrun would
wait 30 s before it kills it. So a thread of each rank looks twice a second whether another has failed. A rank that
fails says so in the launcher's store; one that was killed is missing among the processes of its machine.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

from ddit.errors import RESUME_CODE, Stopped, one_line

_PERIOD = 0.5
"""Seconds between two looks."""
_SECONDS_FOR_A_CAUSE = 2.0
"""What a failure of the connection waits for the one behind it."""
_SECONDS_WITHOUT_STORE = 5.0
_FAILED, _LEFT, _STOPPED = "failed", "left", "stopped"
_LATE = re.compile(r"Timed out waiting (\d+)ms")
_OF_ANOTHER = re.compile("Connection (closed|reset) by peer|Broken pipe|Connection refused")


class Place(NamedTuple):
    """Where a rank runs: a machine, or a container whose processes have numbers of their own; and its process."""

    machine: str
    process: int

    @classmethod
    def here(cls) -> Self:
        numbering = Path("/proc/self/ns/pid")
        inside = os.readlink(numbering) if numbering.exists() else ""
        return cls(f"{socket.gethostname()} {inside}", os.getpid())

    def is_gone(self, here: Self) -> bool:
        """Whether the process has ended, as far as `here` can tell."""
        if self.machine != here.machine:
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


class Watch:
    """This rank's look at the others, by a thread of its own.

    store: a client of the launcher's store, which nobody else uses.
    """

    def __init__(self, store: Any, rank: int, places: Sequence[Place]) -> None:
        self.store, self.rank, self.places = store, rank, places
        self._here = Place.here()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._lock = threading.Lock()
        self._left = threading.Event()
        threading.Thread(target=self._look, name="fail-fast", daemon=True).start()

    def failure(self) -> str | None:
        """The first failure of another rank or of the launcher, if there is one; its line."""
        if self._launcher not in (None, os.getppid()):
            return f"rank {self.rank}: torchrun has ended"
        with self._lock:
            if self.store.check([_FAILED]):
                return self.store.get(_FAILED).decode().partition("\n")[2]
            for rank, place in enumerate(self.places):
                if place.is_gone(self._here) and not self.store.check([f"{_LEFT}/{rank}"]):
                    return f"rank {rank}: process {place.process} has ended without a word: killed, or out of memory"
        return None

    def announce(self, line: str, key: str = _FAILED) -> bool:
        """Whether this failure (or stop) is the first, of which the others are told."""
        value = f"{self.rank}\n{line}"
        with self._lock:
            return self.store.compare_set(key, "", value).decode() == value

    def leave(self) -> None:
        """This rank is about to end, and well."""
        self._left.set()
        with suppress(Exception), self._lock:
            self.store.set(f"{_LEFT}/{self.rank}", "")

    def _look(self) -> None:
        reached = time.monotonic()
        while not self._left.wait(_PERIOD):
            try:
                line = self.failure()
                reached = time.monotonic()
            except Exception:  # torch has a type for each way to lose a connection
                is_lost = time.monotonic() - reached > _SECONDS_WITHOUT_STORE
                line = "the launcher of the first rank has ended" if is_lost else None
            if line is not None and not self._left.is_set():
                is_first = True
                with suppress(Exception):
                    is_first = self.announce(line)
                _end(line, is_told=is_first)


_watch: Watch | None = None


def watch(store: Any, rank: int, places: Sequence[Place]) -> None:
    """From now on this process ends when another rank has failed. Once a process."""
    global _watch
    _watch = Watch(store, rank, places)


def leave() -> None:
    """Ends the watch: what happens to other ranks from now on is no concern of this one."""
    if _watch is not None:
        _watch.leave()


def end_rank(error: BaseException, *, is_printed: bool = False) -> NoReturn:
    """Ends this rank at once, with the line of the first failure of all ranks, and exit code 1.

    Nothing is torn down: the process group's end would wait for the others, and they for it. torchrun shows the same
    line, and of a fault that was not foreseen the traceback.

    is_printed: the error is already on stderr.
    """
    line, is_first = f"rank {os.environ.get('RANK', '?')}: {_say(error)}", True
    if _watch is not None:
        cause = _cause(_watch) if _OF_ANOTHER.search(str(error)) else None
        line = cause or line
        with suppress(Exception):
            is_first = _watch.announce(line)
    elif _OF_ANOTHER.search(str(error)):
        line = f"rank {os.environ.get('RANK', '?')}: another rank has ended"
    is_foreseen = isinstance(error, ValueError | OSError) and not hasattr(error, "__notes__")
    trace = line if is_foreseen else "".join(traceback.format_exception(error))
    _end(line, is_told=is_first and not is_printed, trace=trace if is_first else None)


def _say(error: BaseException) -> str:
    late = _LATE.search(str(error))
    if late is None:
        return one_line(error)
    seconds = int(late[1]) / 1000
    return f"another rank was not ready for {seconds:g} s (parallel.step_timeout_s, at first start_timeout_s)"


def stop_rank(stop: Stopped) -> NoReturn:
    """Ends this rank with the exit code of a stopped run; one of the ranks says so."""
    is_first = True
    if _watch is not None:
        with suppress(Exception):
            is_first = _watch.announce(str(stop), _STOPPED)
        _watch.leave()
    _end(str(stop), is_told=is_first, code=RESUME_CODE)


def _cause(watch: Watch) -> str | None:
    """The failure behind a broken connection, which may be known a moment later."""
    end = time.monotonic() + _SECONDS_FOR_A_CAUSE
    while time.monotonic() < end:
        with suppress(Exception):
            line = watch.failure()
            if line is not None:
                return line
        time.sleep(0.1)
    return None


def _end(line: str, *, is_told: bool, trace: str | None = None, code: int = 1) -> NoReturn:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        if is_told:
            print(f"ddit: {line}", file=sys.stderr)
        sys.stderr.flush()
    _write_for_torchrun(line, trace or line)
    os._exit(code)


def _write_for_torchrun(line: str, trace: str) -> None:
    """Leaves the failure in the file from which torchrun makes its report, in the form of its `ErrorHandler`."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"py_callstack": trace, "timestamp": str(int(time.time()))}
    with suppress(OSError), open(path, "w") as file:
        json.dump({"message": {"message": line, "extraInfo": extra}}, file)
