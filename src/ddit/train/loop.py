"""The training loop of the transformer: one loop for image-only, joint and question training."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddit.config import DualRun, from_json, save_config, to_json
from ddit.data.pool import LatentPool
from ddit.encoders import ImageCodec, TextCodec
from ddit.folders import ModelSettings, save_pipeline
from ddit.model import DualDiT
from ddit.prompts import MINI
from ddit.train.batches import BatchMaker
from ddit.train.checkpoint import Checkpoint, load_newest, pack_optimizer, save_checkpoint, unpack_optimizer
from ddit.train.heldout import HeldOut
from ddit.train.log import RunLog
from ddit.train.objective import AlignmentHead, draw_noise, step_losses
from ddit.train.optim import Ema, MasterWeights, build_optimizers, lr_factor, set_lr
from ddit.train.parallel import Ranks, join_ranks
from ddit.train.sheet import draw_pictures, save_sheet
from ddit.weights import load_transformer
from ddit.world import geneval_prompts

_FREE_TO_CHANGE = {"out", "vae", "text", "pool", "init", "max_steps", "report"}
"""Keys that may differ when a run is resumed; any other difference is announced."""


class Learner(nn.Module):
    """Everything that is trained: the transformer, and the head of the alignment loss while that is on."""

    def __init__(self, cfg: DualRun, feature_channels: int | None) -> None:
        super().__init__()
        self.transformer = DualDiT(cfg.model)
        self.transformer.init_weights(torch.Generator().manual_seed(cfg.seed))
        self.alignment_head = None
        if cfg.objective.alignment_weight > 0:
            if feature_channels is None:
                raise ValueError(
                    f"objective.alignment_weight is {cfg.objective.alignment_weight}, but {cfg.pool} has no features"
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(cfg.seed)
                self.alignment_head = AlignmentHead(cfg.model.hidden_size, feature_channels)


class StepResult(NamedTuple):
    """Losses and gradient norm of a step, averaged over the ranks, and whether any rank was asked to stop."""

    values: dict[str, float]
    stop: bool


class Trainer:
    """State of one run: `step` optimiser steps are done. Global batch k and its noise depend on (seed, k) alone."""

    def __init__(self, cfg: DualRun, ranks: Ranks | None = None) -> None:
        self.cfg, self.step, self.out, self.ranks = cfg, 0, Path(cfg.out), ranks or Ranks()
        self.images = ImageCodec.from_pretrained(cfg.vae)
        self.codec = TextCodec.from_pretrained(Path(cfg.text) / "tokenizer", Path(cfg.text) / "text_encoder")
        self.style = MINI
        self.dtype = getattr(torch, cfg.compute_dtype)
        _check_sizes(cfg, self.images, self.codec)
        pool = LatentPool(cfg.pool)
        self.batches = BatchMaker(cfg, pool, self.codec, self.style, self.ranks)
        self.learner = Learner(cfg, pool.feature_channels)
        if cfg.init is not None:
            load_into(self.learner.transformer, Path(cfg.init))
        self.masters = MasterWeights(self.learner, self.dtype)
        self.optimizers = build_optimizers(self.masters.named(), cfg.optimizer, self.ranks)
        self.averaged_names = [name for name in self.masters.names if name.startswith("transformer.")]
        self.ema = Ema(self._averaged(), cfg.optimizer.ema_decay)
        if cfg.compile_blocks:
            for block in self.learner.transformer.transformer_blocks:
                block.compile()

    def _averaged(self) -> list[Tensor]:
        wanted = set(self.averaged_names)
        return [master for name, master in self.masters.named() if name in wanted]

    def train_step(self, *, stop: bool = False) -> StepResult:
        """One optimiser step of all ranks together. What is not finite stops the run before the step.

        stop: whether this process was asked to stop, which all learn with the step.
        """
        cfg = self.cfg
        batch = self.batches(self.step)
        generator = torch.Generator().manual_seed((cfg.seed << 40) + self.step)
        mask_id = self.codec.mask_token_id
        noise = draw_noise(batch, cfg.objective, mask_token_id=mask_id, generator=generator, ranks=self.ranks)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            text_states = self.codec.states(torch.cat([batch.prompt_ids, noise.noisy_ids]))
        losses = step_losses(
            self.learner.transformer, batch, noise, text_states, cfg.objective,
            mask_token_id=mask_id, alignment_head=self.learner.alignment_head,
        )  # fmt: skip
        losses.total.backward()
        gradients = self.masters.collect_gradients()
        named = {name: value.detach() for name, value in losses._asdict().items() if value is not None}
        shared = self.ranks.average(gradients, torch.stack([*named.values(), torch.tensor(float(stop))]))
        values = dict(zip(named, shared.tolist(), strict=False))
        values["grad_norm"] = clip_gradients(gradients, cfg.optimizer.max_grad_norm)
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} of step {self.step} is {value}: stopped before the step")
        set_lr(self.optimizers, cfg.optimizer, lr_factor(self.step, cfg.max_steps, cfg.optimizer))
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.masters.publish()
        self.ema.update(self._averaged(), self.step)
        self.step += 1
        return StepResult(values, stop=shared[-1].item() > 0)

    def save(self) -> None:
        tensors = {f"master.{name}": tensor.detach() for name, tensor in self.masters.named()}
        tensors |= {f"ema.{name}": t for name, t in zip(self.averaged_names, self.ema.tensors, strict=True)}
        for name, optimizer in self.optimizers.items():
            tensors |= pack_optimizer(name, optimizer)
        keep = self.cfg.report.keep_checkpoints
        save_checkpoint(self.out, self.step, tensors, {"config": to_json(self.cfg)}, keep=keep)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes up a checkpoint of this run; a setting that was changed since is announced on stderr."""
        before = dataclasses.asdict(from_json(checkpoint.description["config"]))
        now = dataclasses.asdict(self.cfg)
        changed = [key for key in now if key not in _FREE_TO_CHANGE and now[key] != before[key]]
        if "model" in changed:
            raise ValueError(f"{self.out} holds a run of another model: choose another folder")
        for key in changed:
            print(f"resumed with another {key}: {before[key]} -> {now[key]}", file=sys.stderr)
        for name, master in self.masters.named():
            master.data.copy_(checkpoint.tensors[f"master.{name}"])
        for name, tensor in zip(self.averaged_names, self.ema.tensors, strict=True):
            tensor.copy_(checkpoint.tensors[f"ema.{name}"])
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(name, optimizer, checkpoint.tensors)
        self.masters.publish()
        self.step = checkpoint.step

    def averaged_model(self, dtype: torch.dtype = torch.float32) -> DualDiT:
        """The transformer with the averaged weights."""
        model = DualDiT(self.cfg.model)
        state = dict(zip(self.averaged_names, self.ema.tensors, strict=True))
        model.load_state_dict(
            {name.removeprefix("transformer."): t for name, t in state.items()}, strict=False
        )
        return model.to(dtype).eval().requires_grad_(False)

    def export(self) -> None:
        """Writes `export/`, a complete model folder with the averaged weights in bfloat16."""
        cfg, report = self.cfg, self.cfg.report
        settings = ModelSettings(
            prompt_style=self.style.to_dict(),
            image_size=cfg.world.size,
            prompt_length=cfg.text_length,
            text_length=cfg.text_length,
            num_steps=report.sheet_steps,
            guidance_scale=report.sheet_guidance,
            shift=report.sheet_shift,
            caption_steps=16,
            answer_steps=4,
            text_order="confidence",
            temperature=0.0,
        )
        save_pipeline(
            self.out / "export", transformer=self.averaged_model(), image_codec=self.images, text_codec=self.codec,
            settings=settings, dtype=torch.bfloat16,
        )  # fmt: skip

    def draw_sheet(self) -> None:
        texts = [prompt.text for prompt in geneval_prompts(self.cfg.world, 4, split="val")]
        latent_size = self.cfg.world.size // self.images.downsample
        pixels = draw_pictures(
            self.averaged_model(self.dtype), self.images, self.codec, texts, self.cfg.report,
            style=self.style, length=self.cfg.text_length, latent_size=latent_size,
        )  # fmt: skip
        save_sheet(self.out / "sheets" / f"{self.step:07d}.png", pixels, texts)


def load_into(model: DualDiT, export: Path) -> None:
    """Warm start: the transformer of a predecessor's export (or of any model folder) into `model`, in float32."""
    start = load_transformer(export / "transformer", dtype=torch.float32)
    if start.config != model.config:
        raise ValueError(
            f"the transformer in {export} is of another size: {start.config} against {model.config}"
        )
    model.load_state_dict(start.state_dict())


def clip_gradients(gradients: list[Tensor], max_norm: float) -> float:
    """Scales the gradients down to a global norm of `max_norm` if it exceeds that; returns the norm before."""
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / (norm + 1e-6))
    return norm


def _check_sizes(cfg: DualRun, images: ImageCodec, codec: TextCodec) -> None:
    for key, wanted, found in (
        ("model.in_channels", images.channels, cfg.model.in_channels),
        ("model.text_dim", codec.width, cfg.model.text_dim),
        ("model.vocab_size", codec.encoder.config.vocab_size, cfg.model.vocab_size),
    ):
        if wanted != found:
            raise ValueError(f"{key} is {found}, but the encoders need {wanted}")


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
    """Runs, or goes on with, the run in `cfg.out` until `max_steps`; leaves `export/` there.

    On SIGTERM or SIGINT it saves, exports and raises `KeyboardInterrupt`. `stop_at` ends as a signal would, after that
    many steps, but returns.

    Raises:
        ValueError: on settings that do not fit together or a folder that holds another model's run.
        FloatingPointError: on a loss or a gradient that is not finite.
    """
    trainer = Trainer(cfg, join_ranks())
    checkpoint = load_newest(trainer.out)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    last = cfg.max_steps if stop_at is None else min(stop_at, cfg.max_steps)
    watch = Watch(trainer) if trainer.ranks.is_first else None
    stopped = False
    with _stop_requests() as requests:
        while trainer.step < last and not stopped:
            result = trainer.train_step(stop=bool(requests))
            stopped = result.stop
            if watch is not None:
                watch.after_step(result)
        if watch is not None:
            watch.finish()
    trainer.ranks.wait()
    if stopped:
        raise KeyboardInterrupt(f"stopped by a signal after {trainer.step} steps; saved in {trainer.out}")
    return trainer.out


class Watch:
    """What the first rank does beside training: log, held-out figures, sheets, checkpoints and exports."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.cfg = trainer, trainer.cfg
        save_config(self.cfg, trainer.out)
        self.held_out = HeldOut(self.cfg, trainer.images, trainer.codec, trainer.style)
        self.log = RunLog(trainer.out, self.cfg.max_steps, unit="step", start=trainer.step)
        self.sums: dict[str, float] = {}
        self.count = self.timed = 0
        self.saved = self.start = time.monotonic()

    def after_step(self, result: StepResult) -> None:
        self.log.advance()
        self.count += 1
        self.timed += 1
        for name, value in result.values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        report, step = self.cfg.report, self.trainer.step
        if step % report.log_every == 0:
            self.log.event(step=step, **self._summary())
        if step % report.evaluate_every == 0:
            self.log.event(step=step, **self.held_out.measure(self.trainer.learner.transformer))
            self._restart_clock()
        if step % report.sheet_every == 0:
            self.trainer.draw_sheet()
            self._restart_clock()
        if time.monotonic() - self.saved > 60 * report.checkpoint_minutes:
            self.trainer.save()
            self.trainer.export()
            self.saved = time.monotonic()
            self._restart_clock()

    def _summary(self) -> dict[str, float]:
        """Averages of the losses since the last summary, and the rate of training alone."""
        mean = {name: value / self.count for name, value in self.sums.items()}
        rate = self.timed * self.cfg.global_batch_size / max(time.monotonic() - self.start, 1e-9)
        lr = self.cfg.optimizer.lr * lr_factor(self.trainer.step - 1, self.cfg.max_steps, self.cfg.optimizer)
        self.sums, self.count = {}, 0
        self._restart_clock()
        return mean | {"pairs_per_second": rate, "lr": lr}

    def _restart_clock(self) -> None:
        self.timed, self.start = 0, time.monotonic()

    def finish(self) -> None:
        trainer = self.trainer
        trainer.save()
        trainer.export()
        if trainer.step == self.cfg.max_steps:
            figures = self.held_out.measure(trainer.averaged_model(trainer.dtype))
            self.log.event(step=trainer.step, **figures, final=1)
            trainer.draw_sheet()
        self.log.close()
