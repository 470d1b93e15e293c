"""The batches of a run in the order of its steps, made ahead by worker processes."""

import atexit
import signal
import warnings
import weakref
from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from ddit.train.batch import Batch, split
from ddit.train.batches import StepData

_MIN_SAMPLES = 200


class _Failure(NamedTuple):
    """What went wrong in a worker, in one line for the user."""

    message: str


class _Guarded(Dataset):
    """A step's whole batch of this rank, or the failure to make it.

    A worker sends one batch rather than its micro-batches: each tensor that it sends takes an open file.
    """

    def __init__(self, data: StepData) -> None:
        self.data = data

    def __getitem__(self, step: int) -> tuple[int, Batch | _Failure]:
        try:
            return step, self.data.rank_batch(step)
        except (ValueError, OSError) as error:
            return step, _Failure(str(error))


def step_loader(
    data: StepData, start: int, end: int, num_workers: int
) -> Generator[tuple[int, list[Batch]], None, None]:
    """Yields (step, micro-batches of this rank) for the steps from `start` to `end` - 1, in order.

    `num_workers` processes work two steps ahead each; with 0 a batch is made when it is asked for. In a process with
    a CUDA device the batches are in pinned memory. Closing the iterator ends the workers, and so does the end of the
    program.

    Raises:
        ValueError: in one line, what a worker could not read.
    """
    batches = _batches(data, start, end, num_workers)
    atexit.register(_close, weakref.ref(batches))
    return batches


def _close(batches: weakref.ref[Generator[Any, None, None]]) -> None:
    """Ends workers at exit, where Python would only send them SIGTERM, which they ignore, and wait."""
    open_still = batches()
    if open_still is not None:
        open_still.close()


def _batches(
    data: StepData, start: int, end: int, num_workers: int
) -> Generator[tuple[int, list[Batch]], None, None]:
    loader = DataLoader(
        _Guarded(data),
        batch_size=None,
        sampler=range(start, end),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        **worker_settings(num_workers),
    )
    with warnings.catch_warnings():  # Python 3.12 has doubts about forking where there are threads
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        batches = iter(loader)
    try:
        for step, batch in batches:
            if isinstance(batch, _Failure):
                raise ValueError(batch.message)
            yield step, split(batch, data.num_micro_batches)
    finally:
        del batches  # joins the workers


def worker_settings(num_workers: int) -> dict[str, Any]:
    """Arguments of a `DataLoader` that passes items on unchanged, with two ahead for each of its workers."""
    return {
        "num_workers": num_workers,
        "collate_fn": _unchanged,
        "prefetch_factor": 2 if num_workers else None,
    }


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Ignores signals to the whole job: the training process answers them, and still needs its last step's batches.

    Workers end when the loader is closed, and within seconds of their parent's death.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
