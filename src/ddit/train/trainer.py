"""The state of a run: one optimiser step, evaluation, checkpoint and export, on any number of ranks."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddit.config.runs import DualRun, settled, to_json
from ddit.devices import Ranks
from ddit.model import DualDiT
from ddit.train.batch import Batch, to_device
from ddit.train.batches import ImageFacts, StepData
from ddit.train.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    load_tensors,
    save_checkpoint,
    stored_shapes,
)
from ddit.train.distillation import Distillation
from ddit.train.export import export_checkpoint
from ddit.train.frozen import clean_latents, encode_ahead, load_encoders, shard_text_encoder
from ddit.train.learner import make_learner
from ddit.train.loader import CorruptCounter
from ddit.train.objective import Distilled, Drawn
from ddit.train.optim import (
    Ema,
    build_optimizers,
    lr_factor,
    make_room,
    optimizer_state,
    scale_gradients,
    set_lr,
)
from ddit.train.parallel import free_gathered, sync_gradients, total_norm
from ddit.train.plan import fit_run
from ddit.train.reward import Rollouts
from ddit.train.timing import StepTimer

Result = TypeVar("Result")


class StepResult(NamedTuple):
    """Losses and gradient norm of a step, averaged over the ranks, and what the ranks agreed on.

    values: also `cut`, the share of the samples whose text was too long and lost its end, if there are any.

    stop: a rank was asked to stop. save: the first rank wants a checkpoint. skipped: the weights were left as they are.
    """

    values: dict[str, float]
    stop: bool = False
    save: bool = False
    skipped: bool = False


def rounding_seed(cfg: DualRun, ranks: Ranks, step: int) -> int:
    """Of this rank's stochastic rounding in a step; that of the same shard in every replica."""
    return hash((cfg.seed, step, ranks.index % (ranks.size // settled(cfg.parallel.num_replicas))))


class Trainer:
    """A run after `step` steps. All ranks call its methods together.

    Batch k and its noise depend on (seed, k) alone.

    Raises:
        ValueError: in one line, for settings that do not fit together, or encoders or weights that cannot be loaded.
    """

    def __init__(self, cfg: DualRun, ranks: Ranks) -> None:
        self.cfg = cfg = fit_run(cfg, ranks)
        self.ranks, self.out, self.step = ranks, Path(cfg.out), 0
        self.timer = StepTimer(ranks.device)
        self.skipped = self.skipped_in_row = 0
        self.saved_at: int | None = None  # the step of the last checkpoint
        self.seconds = 0.0  # of the run, as all ranks saw them at the last step
        self._started = time.monotonic()
        self.corrupt = CorruptCounter(cfg.data.max_corrupt_share)
        self.images, self.codec = load_encoders(cfg, ranks.device)
        self.data = StepData(cfg, self.codec, ImageFacts.of(self.images), ranks)
        self.learner = make_learner(cfg, self.codec, ranks, self._feature_channels())
        self.learner.timer = self.timer
        shard_text_encoder(self.codec, cfg.parallel, ranks, has_gradients=cfg.train_mask_embedding)
        self.trained = self.learner.trained()
        self.optimizers = build_optimizers(self.trained, cfg.optimizer)
        averaged = {n: p for n, p in self.trained.items() if not n.startswith("alignment_head.")}
        self.ema = Ema(averaged, cfg.optimizer.ema_decay)
        self.rollouts = None
        if cfg.reward is not None:
            self.rollouts = Rollouts(cfg, self.images, self.codec, ranks, self.data.num_micro_batches)
            self.rollouts.policy.follow(self.learner.transformer)
        self.distillation = None
        if cfg.distillation is not None:
            self.distillation = Distillation(cfg, self.images, self.codec, ranks, self.data.num_micro_batches)
            self.distillation.teacher.follow(self.learner.transformer)

    def _feature_channels(self) -> int | None:
        """Channels of the teacher's features, where the alignment loss is on: the first batch shows them."""
        if self.cfg.objective.alignment_weight == 0:
            return None
        t2i = self.data[0][0].t2i
        return None if t2i is None or t2i.features is None else t2i.features.shape[1]

    def with_states(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        """The steps to come; with an offloaded text encoder, with the states of their texts."""
        parallel, steps = self.cfg.parallel, self.timer.waiting(steps)
        if parallel.text_encoder != "offloaded":
            return steps
        return self._encoding(encode_ahead(steps, self.codec, parallel.encode_ahead, self.cfg.model))

    def _encoding(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        while True:
            with self.timer.part("encode"):
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step

    def train_step(self, batches: Sequence[Batch], *, stop: bool = False, save: bool = False) -> StepResult:
        """One optimiser step, on this rank's micro-batches of global batch `step`.

        A loss or gradient that is not finite stops the run before the step, or skips the step, on all ranks alike.

        stop, save: wishes of this process, of which all ranks learn with the step.

        Raises:
            FloatingPointError: on a loss or gradient that is not finite, as `cfg.non_finite` has it.
            ValueError: on too many corrupt samples.
        """
        cfg = self.cfg
        if cfg.dropout > 0 or cfg.lora.dropout > 0:  # of torch's own generator, as below
            torch.manual_seed(hash((cfg.seed, self.step, self.ranks.index)))
        losses = self._backward(batches)
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        with self.timer.part("exchange"):
            norm = total_norm(gradients)
        num_corrupt = sum(sum(batch.corrupt.values()) for batch in batches)
        num_cut = sum(batch.num_cut for batch in batches)
        seconds = time.monotonic() - self._started
        figures = [*losses.values(), *map(float, (seconds, num_cut, num_corrupt, stop, save))]
        with self.timer.part("exchange"):
            shared = self.ranks.mean(figures)
        values = dict(zip(losses, shared, strict=False)) | {"grad_norm": norm}
        if shared[-4] > 0:
            values["cut"] = shared[-4] * self.ranks.size / cfg.global_batch_size
        bad = [f"{name} of step {self.step} is {v}" for name, v in values.items() if not math.isfinite(v)]
        if bad:
            self._drop_gradients()
            self._skip_or_stop(bad[0])
        else:
            with self.timer.part("optimizer"):
                self._update(gradients, norm)
            self.skipped_in_row = 0
        self.seconds = shared[-5]
        self._drop_gradients()
        self.step += 1
        self.timer.end_step()
        self._count_corrupt(batches, is_any=shared[-3] > 0)
        return StepResult(values, stop=shared[-2] > 0, save=shared[-1] > 0, skipped=bool(bad))

    def _backward(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Adds up the gradients of the micro-batches; the ranks exchange them with the last. Returns mean losses."""
        sums, part = dict[str, Tensor](), self.timer.part
        with part("data"):
            own = self._own_drawings()
        for index, batch in enumerate(batches):
            with part("data"):
                batch = to_device(batch, self.ranks.device)
            with part("encode"):
                t2i, i2t = (
                    None if half is None else clean_latents(half.images, self.images)
                    for half in (batch.t2i, batch.i2t)
                )
            sync_gradients(self.learner, index == len(batches) - 1, self.cfg.parallel.accumulate)
            with part("forward"):
                drawn = None if own is None else own.part(index, len(batches))
                losses = self.learner(batch, (t2i, i2t), self.codec, drawn)
            with part("backward"):
                (losses.total / len(batches)).backward()
            for name, value in losses._asdict().items():
                if value is not None:
                    sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        return values if self.rollouts is None else values | {"right": self.rollouts.right}

    def _own_drawings(self) -> Drawn | Distilled | None:
        if self.rollouts is not None:
            return self.rollouts.of_step(self.step, self.learner.transformer)
        return None if self.distillation is None else self.distillation.of_step(self.step)

    def _update(self, gradients: Sequence[Tensor], norm: float) -> None:
        """Takes the step, and takes the new weights into the average."""
        cfg = self.cfg
        scale_gradients(gradients, cfg.optimizer.max_grad_norm, norm)
        if cfg.optimizer.weights == "bfloat16":  # replicas of a shard must be rounded alike
            torch.manual_seed(rounding_seed(cfg, self.ranks, self.step))
        set_lr(self.optimizers, cfg.optimizer, self.lr_factor(self.step))
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.ema.update(self.trained, self.step)

    def lr_factor(self, step: int) -> float:
        """The factor on the learning rates in a step that is made now."""
        cfg = self.cfg
        share = 0.0 if cfg.max_seconds is None else self.seconds / cfg.max_seconds
        return lr_factor(step, cfg.max_steps, cfg.optimizer, time_share=min(share, 1.0))

    @property
    def is_over(self) -> bool:
        """Whether the run has made all its steps, or used its time."""
        cfg = self.cfg
        return self.step >= cfg.max_steps or (cfg.max_seconds is not None and self.seconds >= cfg.max_seconds)

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

    def _count_corrupt(self, batches: Sequence[Batch], *, is_any: bool) -> None:
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
            "policy": {} if self.rollouts is None else self.rollouts.state(),
        }
        return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def save(self) -> None:
        """Writes a checkpoint of the steps done. `OSError` in one line if that fails."""
        description = {
            "config": to_json(self.cfg),
            "num_samples": self.corrupt.num_samples,
            "corrupt": self.corrupt.causes,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "seconds": self.ranks.share(time.monotonic() - self._started),
            "num_ranks": self.ranks.size,
        }
        keep = self.cfg.report.keep_checkpoints
        save_checkpoint(self.out, self.step, self._state(), description, keep=keep, ranks=self.ranks)
        self.saved_at = self.step

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this run, of any number of ranks.

        Raises:
            ValueError: if it is of a run that trains other weights.
        """
        shapes = stored_shapes(checkpoint.folder)
        prefix = "optimizer."
        of_optimizers = {n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)}
        differing = {f"model.{name}" for name in self.trained} ^ {n for n in shapes if n.startswith("model.")}
        if differing:
            raise ValueError(f"{self.out} holds a run that trains other weights, such as {min(differing)}")
        if self.rollouts is not None and not any(name.startswith("policy.") for name in shapes):
            raise ValueError(
                f"{self.out} holds a run without a reward: choose another folder, and init={self.out}/export"
            )
        make_room(of_optimizers, self.trained, self.optimizers)
        load_tensors(checkpoint.folder, self._state())
        stored = checkpoint.description
        self.step, self.skipped = checkpoint.step, stored["skipped"]
        self.saved_at = self.step
        self.seconds = stored.get("seconds", 0.0)
        self._started = time.monotonic() - self.seconds
        self.skipped_in_row = stored["skipped_in_row"]
        corrupt = stored["corrupt"] if "corrupt" in stored else stored["broken"]  # the key of version 0.1
        self.corrupt.num_samples, self.corrupt.causes = stored["num_samples"], dict(corrupt)

    def evaluate(self, work: Callable[[DualDiT], Result]) -> Result:
        """Calls `work` with the model under its averaged weights, without gradients.

        `work` must call the model alike on all ranks.
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

    def export(self, averages: Mapping[str, bool] | None = None) -> None:
        """Writes model folders of this step's checkpoint, which is saved if it is not there yet; all ranks together.

        averages: by the folder's name, whether it holds the averaged weights; by default `export`, which does, and
            `export_raw`.

        Raises:
            OSError: in one line, on every rank, if one of them cannot be written.
        """
        if self.saved_at != self.step:
            self.save()
        problem = None
        for name, averaged in (averages or {"export": True, "export_raw": False}).items():
            if self.ranks.is_first:
                checkpoint = checkpoint_folder(self.out, self.step)
                try:
                    export_checkpoint(self.cfg, checkpoint, self.out / name, averaged=averaged)
                except OSError as error:
                    problem = error.strerror or str(error)
            problem = self.ranks.share(problem)
            if problem is not None:
                raise OSError(f"{name} cannot be written to {self.out}: {problem}")
