"""The training loop of the transformer: one loop for every stage, on any number of ranks."""

import dataclasses
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ddit.config.runs import DualRun, from_json
from ddit.devices import join_ranks, limit_waits
from ddit.errors import Stopped
from ddit.train.checkpoint import Checkpoint, find_newest
from ddit.train.loader import closing_workers, step_loader
from ddit.train.trainer import Trainer
from ddit.train.watch import Watch

_FREE_TO_CHANGE = ("out", "vae", "text", "init", "max_steps", "micro_batch_size", "report.", "parallel.")
_FREE_TO_CHANGE += ("data.num_workers", "data.held_out", "non_finite", "max_skipped", "max_seconds")
"""Keys that may differ when a run is resumed; any other difference is printed."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is what SLURM is asked to send ahead of a job's end."""


def train(cfg: DualRun, *, stop_at: int | None = None) -> Path:
    """Starts or resumes the run in `cfg.out`, until its steps or its seconds are used; leaves `export/` and
    `export_raw/` there.

    On SIGTERM, SIGINT or SIGUSR1 it saves a checkpoint and raises `Stopped`. `stop_at` ends after that many steps as
    if there were no more.

    Raises:
        ValueError: on settings that do not fit together, a folder that holds another model's run, bad data.
        FloatingPointError: on a loss or a gradient that is not finite.
        OSError: if a checkpoint cannot be written.
    """
    trainer = Trainer(cfg, join_ranks())
    limit_waits(cfg.parallel.start_timeout_s)
    checkpoint = trainer.ranks.share(find_newest(trainer.out) if trainer.ranks.is_first else None)
    if checkpoint is not None:
        _compare_configs(checkpoint, cfg, is_quiet=not trainer.ranks.is_first)
        trainer.resume(checkpoint)
    last = cfg.max_steps if stop_at is None else min(stop_at, cfg.max_steps)
    first = trainer.step
    watch = Watch(trainer)
    stopped = False
    batches_of_steps = step_loader(trainer.data, trainer.step, last, cfg.data.num_workers)
    with _stop_requests() as requests, closing(watch), closing_workers(batches_of_steps) as loader:
        steps = trainer.with_states(loader)
        while trainer.step < last and not (stopped or trainer.is_over):
            watch.before_step()
            _, batches = next(steps)
            result = trainer.train_step(batches, stop=bool(requests), save=watch.wants_checkpoint())
            stopped = result.stop
            if trainer.step == first + 1:
                limit_waits(cfg.parallel.step_timeout_s)
            watch.after_step(result)
            if result.save:
                trainer.save()
                watch.after_save()
        loader.close()
        if trainer.saved_at != trainer.step:
            trainer.save()
        if not stopped:  # a preemption leaves seconds: `ddit export` makes the folders of a checkpoint
            trainer.export()
            watch.finish()
    trainer.ranks.wait()
    if stopped:
        raise Stopped(f"stopped by a signal after {trainer.step} steps; saved in {trainer.out}")
    return trainer.out


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects SIGTERM, SIGINT and SIGUSR1 in a list instead of letting them end the process at any point."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compare_configs(checkpoint: Checkpoint, cfg: DualRun, *, is_quiet: bool) -> None:
    """Prints on stderr the settings that were changed since the checkpoint; another model or optimiser is a
    `ValueError`."""
    before = _flatten(dataclasses.asdict(from_json(checkpoint.description["config"])))
    now = _flatten(dataclasses.asdict(cfg))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if any(key.startswith("model.") for key in changed):
        raise ValueError(f"{cfg.out} holds a run of another model: choose another folder")
    if "optimizer.name" in changed:
        raise ValueError(f"{cfg.out} holds a run with another optimizer.name: choose another folder")
    for key in changed:
        if not is_quiet and not key.startswith(_FREE_TO_CHANGE):
            print(f"resumed with another {key}: {before.get(key)} -> {now.get(key)}", file=sys.stderr)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; lists as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
