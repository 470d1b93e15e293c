"""The training loop of the transformer: one loop for every stage, on any number of ranks."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddit.config.runs import DualRun, from_json, to_json
from ddit.devices import compute_dtype
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import resolve
from ddit.model.loading import load_image_codec, load_text_codec
from ddit.train.batch import Batch
from ddit.train.batches import ImageFacts, StepData
from ddit.train.checkpoint import Checkpoint, find_newest, load_tensors, save_checkpoint, stored_shapes
from ddit.train.export import export_run
from ddit.train.learner import clean_latents, make_learner, shard_text_encoder
from ddit.train.loader import CorruptCounter, step_loader
from ddit.train.optim import Ema, build_optimizers, lr_factor, make_room, optimizer_state, set_lr
from ddit.train.parallel import Ranks, free_gathered, join_ranks, local, sync_gradients, total_norm
from ddit.train.watch import Watch

Result = TypeVar("Result")

_FREE_TO_CHANGE = ("out", "vae", "text", "init", "max_steps", "micro_batch_size", "report.", "parallel.")
_FREE_TO_CHANGE += ("data.num_workers", "data.held_out", "non_finite", "max_skipped")
"""Keys that may differ when a run is resumed; any other difference is announced."""


class StepResult(NamedTuple):
    """Losses and gradient norm of a step, averaged over the ranks, and what the ranks agreed on.

    `stop`: any rank was asked to stop. `save`: the first rank wants a checkpoint. `skipped`: no step was made.
    """

    values: dict[str, float]
    stop: bool = False
    save: bool = False
    skipped: bool = False


class Trainer:
    """State of one run: `step` global batches are done. Batch k and its noise depend on (seed, k) alone."""

    def __init__(self, cfg: DualRun, ranks: Ranks) -> None:
        self.cfg, self.ranks, self.out, self.step = cfg, ranks, Path(cfg.out), 0
        self.skipped = self.skipped_in_row = 0
        self.corrupt = CorruptCounter(cfg.data.max_corrupt_share)
        self.images, self.codec = load_encoders(cfg, ranks.device)
        _check_sizes(cfg, self.images, self.codec)
        self.data = StepData(cfg, self.codec, ImageFacts.of(self.images), ranks.index, ranks.size)
        self.learner = make_learner(cfg, self.codec, ranks, self._feature_channels())
        shard_text_encoder(self.codec, cfg, ranks)
        self.trained = self.learner.trained()
        self.optimizers = build_optimizers(self.trained, cfg.optimizer)
        averaged = {n: p for n, p in self.trained.items() if not n.startswith("alignment_head.")}
        self.ema = Ema(averaged, cfg.optimizer.ema_decay)

    def _feature_channels(self) -> int | None:
        """Channels of the teacher's features, where the alignment loss is on: the first batch shows them."""
        if self.cfg.objective.alignment_weight == 0:
            return None
        drawn = self.data[0][0].drawn
        return None if drawn is None or drawn.features is None else drawn.features.shape[1]

    def train_step(self, batches: Sequence[Batch], *, stop: bool = False, save: bool = False) -> StepResult:
        """One optimiser step of all ranks together, on this rank's micro-batches of global batch `step`.

        What is not finite stops the run before the step, or skips the step, on all ranks alike. stop, save: what
        this process wishes, which all learn with the step.

        Raises:
            FloatingPointError: on a loss or gradient that is not finite, as `cfg.non_finite` has it.
            ValueError: on too many broken samples.
        """
        cfg = self.cfg
        if cfg.lora.dropout > 0:  # the one use of torch's own generator
            torch.manual_seed(hash((cfg.seed, self.step, self.ranks.index)))
        named = self._backward(batches)
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = total_norm(gradients)
        num_corrupt = sum(sum(batch.corrupt.values()) for batch in batches)
        shared = self.ranks.mean([*named.values(), float(num_corrupt), float(stop), float(save)])
        values = dict(zip(named, shared, strict=False)) | {"grad_norm": norm}
        bad = [f"{name} of step {self.step} is {v}" for name, v in values.items() if not math.isfinite(v)]
        if bad:
            self._drop_gradients()
            self._skip_or_stop(bad[0])
        else:
            _scale(gradients, cfg.optimizer.max_grad_norm, norm)
            set_lr(self.optimizers, cfg.optimizer, lr_factor(self.step, cfg.max_steps, cfg.optimizer))
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.ema.update(self.trained, self.step)
            self.skipped_in_row = 0
        self._drop_gradients()
        self.step += 1
        self._count_broken(batches, is_any=shared[-3] > 0)
        return StepResult(values, stop=shared[-2] > 0, save=shared[-1] > 0, skipped=bool(bad))

    def _backward(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Adds up the gradients of the micro-batches; the ranks exchange them with the last. Returns mean losses."""
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            batch = _on_device(batch, self.ranks.device)
            drawn, read = (
                None if half is None else clean_latents(half.pictures, self.images) for half in batch[:2]
            )
            sync_gradients(self.learner, index == len(batches) - 1)
            losses = self.learner(batch, drawn, read, self.codec)
            (losses.total / len(batches)).backward()
            for name, value in losses._asdict().items():
                if value is not None:
                    sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))

    def _drop_gradients(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None
        free_gathered(self.learner)

    def _skip_or_stop(self, problem: str) -> None:
        if self.cfg.non_finite == "stop":
            raise FloatingPointError(f"{problem}: stopped before the step")
        self.skipped += 1
        self.skipped_in_row += 1
        if self.skipped_in_row > self.cfg.max_skipped:
            raise FloatingPointError(
                f"{problem}: {self.skipped_in_row} steps in a row were skipped, which is too many"
            )
        if self.ranks.is_first:
            print(f"{problem}: skipped ({self.skipped} so far)", file=sys.stderr)

    def _count_broken(self, batches: Sequence[Batch], *, is_any: bool) -> None:
        own: dict[str, int] = {}
        for batch in batches:
            for cause, count in batch.corrupt.items():
                own[cause] = own.get(cause, 0) + count
        self.corrupt.add(self.ranks.sum_counts(own) if is_any else {}, self.cfg.global_batch_size)

    def _state(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name; the very tensors, so that loading into them restores the run."""
        parts = {
            "model": {name: p.detach() for name, p in self.trained.items()},
            "ema": self.ema.tensors,
            "optimizer": optimizer_state(self.trained, self.optimizers),
        }
        return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def save(self) -> None:
        """Writes a checkpoint of the steps done; all ranks together. `OSError` in one line if that fails."""
        description = {
            "config": to_json(self.cfg),
            "num_samples": self.corrupt.num_samples,
            "broken": self.corrupt.causes,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "num_ranks": self.ranks.size,
        }
        keep = self.cfg.report.keep_checkpoints
        save_checkpoint(self.out, self.step, self._state(), description, keep=keep, ranks=self.ranks)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes up a checkpoint of this run, of any number of ranks; a setting changed since is announced on stderr.

        Raises:
            ValueError: if it is of another model, or of a run that trains something else.
        """
        self._announce_changes(checkpoint)
        shapes = stored_shapes(checkpoint.folder)
        prefix = "optimizer."
        of_optimizers = {n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)}
        lacking = {f"model.{name}" for name in self.trained} ^ {n for n in shapes if n.startswith("model.")}
        if lacking:
            raise ValueError(f"{self.out} holds a run that trains other weights, such as {min(lacking)}")
        make_room(of_optimizers, self.trained, self.optimizers)
        load_tensors(checkpoint.folder, self._state())
        said = checkpoint.description
        self.step, self.skipped, self.skipped_in_row = (
            checkpoint.step,
            said["skipped"],
            said["skipped_in_row"],
        )
        self.corrupt.num_samples, self.corrupt.causes = said["num_samples"], dict(said["broken"])

    def _announce_changes(self, checkpoint: Checkpoint) -> None:
        before = _flatten(dataclasses.asdict(from_json(checkpoint.description["config"])))
        now = _flatten(dataclasses.asdict(self.cfg))
        changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
        if any(key.startswith("model.") for key in changed):
            raise ValueError(f"{self.out} holds a run of another model: choose another folder")
        for key in changed:
            if self.ranks.is_first and not key.startswith(_FREE_TO_CHANGE):
                line = f"resumed with another {key}: {before.get(key)} -> {now.get(key)}"
                print(line, file=sys.stderr)

    def evaluate(self, work: Callable[[DualDiT], Result]) -> Result:
        """What `work` makes of the model with the averaged weights, without gradients.

        All ranks call this together, and `work` must call the model alike on all of them.
        """

        def with_mask() -> Result:
            vector = self.learner.mask_embedding  # whole only now, within `run`
            with self.codec.embed_mask_as(vector.detach()) if vector is not None else nullcontext():
                return work(self.learner.transformer)

        self.learner.eval()
        with self.ema.swapped_into(self.trained), torch.no_grad():
            try:
                return self.learner.run(with_mask)
            finally:
                free_gathered(self.learner)
                self.learner.train()

    def export(self) -> None:
        """Writes `export/` (averaged weights) and `export_raw/`: model folders; all ranks together."""
        state = self.learner.state_dict()
        export_run(self.cfg, self.ranks, {"export": {**state, **self.ema.tensors}, "export_raw": state})


def load_encoders(cfg: DualRun, device: torch.device) -> tuple[ImageCodec, TextCodec]:
    """The frozen encoders: the autoencoder in float32, T5 in the type of computation.

    Raises `ValueError` in one line if the run names none, or they cannot be loaded.
    """
    for name in ("vae", "text"):
        if getattr(cfg, name) is None and cfg.init is None:
            raise ValueError(f"neither {name} nor init is set: the run has no encoder to take")
    vae, text = (resolve(name or cfg.init or "") for name in (cfg.vae, cfg.text))
    # A T5 that is to be sharded or quantised comes to the device in parts.
    text_device = device if cfg.parallel.text_encoder == "whole" else torch.device("cpu")
    codec = load_text_codec(text, dtype=compute_dtype(cfg.compute_dtype, device), device=text_device)
    return load_image_codec(vae, device=device), codec


def _check_sizes(cfg: DualRun, images: ImageCodec, codec: TextCodec) -> None:
    """The text head may have fewer rows than T5 has embeddings, but not fewer than there are tokens."""
    for key, wanted, found in (
        ("model.in_channels", images.channels, cfg.model.in_channels),
        ("model.text_dim", codec.width, cfg.model.text_dim),
    ):
        if wanted != found:
            raise ValueError(f"{key} is {found}, but the encoders need {wanted}")
    least, most = codec.vocab_size, codec.encoder.config.vocab_size
    if not least <= cfg.model.vocab_size <= most:
        raise ValueError(
            f"model.vocab_size is {cfg.model.vocab_size}, but the encoders need {least} to {most}"
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; lists as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _on_device(value: Any, device: torch.device) -> Any:
    """A batch with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return type(value)(*(_on_device(entry, device) for entry in value))
    return value


@torch.no_grad()
def _scale(gradients: Sequence[Tensor], max_norm: float, norm: float) -> None:
    if norm > max_norm:
        for gradient in gradients:
            local(gradient).mul_(max_norm / (norm + 1e-6))


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of letting them end the process at any point."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(cfg: DualRun, *, stop_at: int | None = None) -> Path:
    """Runs, or goes on with, the run in `cfg.out` until `max_steps`; leaves `export/` and `export_raw/` there.

    On SIGTERM or SIGINT it saves, exports and raises `KeyboardInterrupt`. `stop_at` ends as a signal would, after that
    many steps, but returns.

    Raises:
        ValueError: on settings that do not fit together, a folder that holds another model's run, bad data.
        FloatingPointError: on a loss or a gradient that is not finite.
        OSError: if a checkpoint cannot be written.
    """
    trainer = Trainer(cfg, join_ranks())
    checkpoint = trainer.ranks.share(find_newest(trainer.out) if trainer.ranks.is_first else None)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    last = cfg.max_steps if stop_at is None else min(stop_at, cfg.max_steps)
    watch = Watch(trainer)
    saved_at = trainer.step if checkpoint is not None else None
    stopped = False
    loader = step_loader(trainer.data, trainer.step, last, cfg.data.num_workers)
    with _stop_requests() as requests, closing(loader):
        while trainer.step < last and not stopped:
            _, batches = next(loader)
            result = trainer.train_step(batches, stop=bool(requests), save=watch.wants_checkpoint())
            stopped = result.stop
            watch.after_step(result)
            if result.save:
                trainer.save()
                saved_at = trainer.step
                watch.note_checkpoint()
        loader.close()
        if saved_at != trainer.step:
            trainer.save()
        trainer.export()
        watch.finish()
    trainer.ranks.wait()
    if stopped:
        raise KeyboardInterrupt(f"stopped by a signal after {trainer.step} steps; saved in {trainer.out}")
    return trainer.out
