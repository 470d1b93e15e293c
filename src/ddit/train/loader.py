"""The batches of a run in the order of its steps, made ahead by worker processes; and how these end."""

import atexit
import multiprocessing
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ddit.errors import Failure, WorkerError
from ddit.train.batch import Batch, split
from ddit.train.batches import StepData

Item = TypeVar("Item")

_MIN_SAMPLES = 200
_GRACE = 5.0
"""Seconds that workers get to end their last item, after which they are killed."""


class _Guarded(Dataset):
    """Item `index` is `make(index)` or, in a worker, whatever kept it from being made."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is None:
            return self.make(index)
        try:
            return self.make(index)
        except BaseException as error:
            return Failure.of(error)


def step_loader(
    data: StepData, start: int, end: int, num_workers: int
) -> Generator[tuple[int, list[Batch]], None, None]:
    """Yields (step, micro-batches of this rank) for the steps from `start` to `end` - 1, in order.

    Workers and errors as in `make_ahead`, which gets one batch a step rather than its micro-batches: each tensor that
    a worker sends takes an open file.
    """
    steps = range(start, end)
    with closing(make_ahead(data.rank_batch, steps, num_workers)) as batches:
        for step, batch in zip(steps, batches, strict=True):
            yield step, split(batch, data.num_micro_batches)


def make_ahead(
    make: Callable[[int], Item], indices: Sequence[int], num_workers: int
) -> Generator[Item, None, None]:
    """Yields `make(index)` for each index, in order; where there is a CUDA device, tensors are in pinned memory.

    `num_workers` processes work two items ahead each; with 0 an item is made when it is asked for. Closing the
    generator ends them within seconds, and so does the end of the program.

    Raises:
        WorkerError: in one line, whatever was raised in a worker.
    """
    items = _make_ahead(make, indices, num_workers)
    atexit.register(_close, weakref.ref(items))
    return items


def _close(items: weakref.ref[Generator[Any, None, None]]) -> None:
    """Ends workers at exit, where Python would only send them SIGTERM, which they ignore, and wait."""
    open_still = items()
    if open_still is not None:
        open_still.close()


def _make_ahead(
    make: Callable[[int], Item], indices: Sequence[int], num_workers: int
) -> Generator[Item, None, None]:
    loader = DataLoader(
        _Guarded(make),
        batch_size=None,
        sampler=indices,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        num_workers=num_workers,
        collate_fn=_unchanged,
        prefetch_factor=2 if num_workers else None,
    )
    items, before = None, set(multiprocessing.active_children())
    try:
        with warnings.catch_warnings():  # Python 3.12 has doubts about forking where there are threads
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            items = iter(loader)
        for item in items:
            if isinstance(item, Failure):
                raise item.error()
            yield item
    finally:
        _end_workers(items, set(multiprocessing.active_children()) - before)


def _end_workers(items: Any, workers: set[BaseProcess]) -> None:
    """Lets workers end, and kills those that do not.

    The garbage collector would come too late: an error keeps the loader's iterator alive until the program's exit,
    which waits for workers.
    """

    def kill() -> None:
        for worker in workers:
            worker.kill()

    timer = threading.Timer(_GRACE, kill)
    timer.daemon = True
    timer.start()
    shut_down = getattr(items, "_shutdown_workers", None)  # there is no public way
    with suppress(RuntimeError):  # torch's, of workers that were killed
        if shut_down is not None:
            shut_down()
    timer.cancel()
    with suppress(RuntimeError):
        kill()
    for worker in workers:
        worker.join(1)


@contextmanager
def closing_workers(items: Generator[Item, None, None]) -> Iterator[Generator[Item, None, None]]:
    """Ends the workers of a generator of `make_ahead` with the context.

    Raises:
        WorkerError: in place of torch's error, which a worker's death raises at any moment.
    """
    try:
        with closing(items):
            yield items
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not text.startswith(("DataLoader worker", "Pin memory thread")):
            raise
        raise WorkerError(
            f"a process that makes batches has died: {text.rstrip('.')}; if memory ran out, use fewer workers"
        ) from error


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Ignores signals to the whole job: the training process answers them, and still needs its last step's batches.

    Workers end when the loader is closed, and within seconds of their parent's death.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class CorruptCounter:
    """Adds up the samples that had to be replaced, and stops a run that has too many of them."""

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.num_samples = 0
        self.causes: dict[str, int] = {}

    @property
    def num_corrupt(self) -> int:
        return sum(self.causes.values())

    def add(self, corrupt: dict[str, int], num_samples: int) -> None:
        """`corrupt` (see `Batch.corrupt`; of all ranks, if summed) were replaced in making `num_samples` good ones.

        Raises:
            ValueError: if of the samples tried so far, 200 or more, a larger share than `max_share` was corrupt.
        """
        self.num_samples += num_samples
        for cause, count in corrupt.items():
            self.causes[cause] = self.causes.get(cause, 0) + count
        tried = self.num_samples + self.num_corrupt
        if tried >= _MIN_SAMPLES and self.num_corrupt > self.max_share * tried:
            causes = ", ".join(f"{cause}: {count}" for cause, count in sorted(self.causes.items()))
            raise ValueError(
                f"{self.num_corrupt} of {tried} samples could not be used, "
                f"more than data.max_corrupt_share={self.max_share} allows ({causes})"
            )
