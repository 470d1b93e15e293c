"""What a run shows while it goes: losses, held-out figures, sheets; and when it is time to save.

All ranks take part in figures and sheets, since the model is sharded; the first one writes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddit.config.runs import save_config
from ddit.data.samples import Turn
from ddit.devices import compute_dtype
from ddit.prompts import TokenizedPrompt
from ddit.train.batches import STYLES, ImageFacts, held_out_samples
from ddit.train.export import settings_of
from ddit.train.flops import peak_flops, run_flops
from ddit.train.heldout import HeldOut
from ddit.train.log import RunLog
from ddit.train.optim import lr_factor
from ddit.train.sample_grid import Reading, draw_images, read_images, save_sheet, save_table

if TYPE_CHECKING:  # the loop calls this module
    from ddit.train.loop import StepResult, Trainer


class Watch:
    """Called after every step, on all ranks."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.cfg, self.is_first = trainer, trainer.cfg, trainer.ranks.is_first
        self.style = STYLES[self.cfg.prompts]
        self.held_out = None
        if self.cfg.data.held_out and self.cfg.report.num_held_out > 0:
            samples = held_out_samples(self.cfg, trainer.codec, ImageFacts.of(trainer.images))
            self.held_out = HeldOut(self.cfg, samples, trainer.images, trainer.codec, trainer.ranks)
        self.log = None
        if self.is_first:
            save_config(self.cfg, trainer.out)
            self.log = self._open_log()
        self.sums: dict[str, float] = {}
        self.count = self.timed = 0
        self.shown = -1  # the step of the last sheet
        self.saved = self.start = time.monotonic()

    def _open_log(self) -> RunLog:
        cfg, trainer = self.cfg, self.trainer
        dtype = compute_dtype(cfg.compute_dtype, trainer.ranks.device)
        peak = peak_flops(trainer.ranks.device, dtype, override=cfg.report.peak_tflops)
        return RunLog(
            trainer.out,
            cfg.max_steps,
            unit="step",
            start=trainer.step,
            report=cfg.report,
            flops_per_unit=run_flops(cfg, trainer.images.downsample) / cfg.global_batch_size,
            peak_flops=trainer.ranks.size * peak,
            config=dataclasses.asdict(cfg),
        )

    def wants_checkpoint(self) -> bool:
        """Whether this rank asks for a checkpoint after the step that is about to be made."""
        report, done = self.cfg.report, self.trainer.step + 1
        if report.checkpoint_steps is not None:
            return done % report.checkpoint_steps == 0
        return self.is_first and time.monotonic() - self.saved > 60 * report.checkpoint_minutes

    def note_checkpoint(self) -> None:
        self.saved = time.monotonic()
        self._restart_clock()

    def after_step(self, result: StepResult) -> None:
        report, step = self.cfg.report, self.trainer.step
        self.timed += 1
        if not result.skipped:
            self.count += 1
            for name, value in result.values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if self.log is not None:
            self.log.advance()
            if step % report.log_every == 0:
                self.log.event(step=step, **self._summary())
        if step % report.evaluate_every == 0 and self.held_out is not None:
            figures = self.trainer.evaluate(self.held_out.measure)
            if self.log is not None:
                self.log.event(step=step, **figures)
            self._restart_clock()
        if step % report.grid_every == 0:
            self._show()
            self._restart_clock()

    def _summary(self) -> dict[str, float]:
        """Averages of the losses since the last summary, and the rate of training alone."""
        trainer, cfg = self.trainer, self.cfg
        mean = {name: value / self.count for name, value in self.sums.items()}
        rate = self.timed * cfg.global_batch_size / max(time.monotonic() - self.start, 1e-9)
        lr = cfg.optimizer.lr * lr_factor(trainer.step - 1, cfg.max_steps, cfg.optimizer)
        self.sums, self.count = {}, 0
        self._restart_clock()
        counts = {"broken": trainer.corrupt.num_corrupt, "skipped": trainer.skipped}
        return mean | {"pairs_per_second": rate, "lr": lr} | {k: v for k, v in counts.items() if v}

    def _restart_clock(self) -> None:
        self.timed, self.start = 0, time.monotonic()

    def _show(self) -> None:
        """A sheet of pictures drawn for held-out captions, and a table of texts read off held-out pictures."""
        if self.held_out is None or self.shown == self.trainer.step:
            return
        self.shown = self.trainer.step
        if self.cfg.objective.i2t_fraction < 1 and self.held_out.captions:
            self._draw_sheet(self.held_out)
        if self.cfg.objective.i2t_fraction > 0:
            self._write_table(self.held_out)

    def _draw_sheet(self, held_out: HeldOut) -> None:
        trainer, texts = self.trainer, held_out.captions[: self.cfg.report.num_grid]
        pixels = trainer.evaluate(
            lambda model: draw_images(
                model, trainer.images, trainer.codec, texts, self.cfg.report, style=self.style,
                length=self.cfg.data.t2i_length, latent_size=self.cfg.data.image_size // trainer.images.downsample,
                batch_size=held_out.chunk,
            )
        )  # fmt: skip
        if self.is_first:
            save_sheet(trainer.out / "sheets" / f"{trainer.step:07d}.png", pixels, texts)

    def _write_table(self, held_out: HeldOut) -> None:
        samples, count = held_out.samples, self.cfg.report.num_grid
        readings: list[Reading] = []
        for has_text, texts, turns in (
            (
                samples.has_question,
                samples.turn_texts,
                [turns[0] if turns else None for turns in samples.conversations],
            ),
            (
                samples.has_caption,
                samples.caption_texts,
                [Turn(None, caption or "") for caption in samples.captions],
            ),
        ):
            rows = has_text.nonzero()[:count, 0]
            if len(rows):
                readings += self._read(
                    held_out, rows, TokenizedPrompt(*(part[rows] for part in texts)), turns
                )
        if self.is_first and readings:
            rows = torch.tensor(sorted({reading.picture for reading in readings}))
            pixels = self.trainer.images.decode(held_out.latents(rows)).float().cpu()
            path = self.trainer.out / "sheets" / f"{self.trainer.step:07d}.md"
            save_table(path, readings, pixels=dict(zip(rows.tolist(), pixels, strict=True)))

    def _read(
        self, held_out: HeldOut, rows: Tensor, texts: TokenizedPrompt, turns: Sequence[Turn | None]
    ) -> list[Reading]:
        is_null = held_out.samples.pictures.is_null
        return self.trainer.evaluate(
            lambda model: read_images(
                model, self.trainer.codec, held_out.latents(rows), texts,
                [turn for row in rows.tolist() if (turn := turns[row]) is not None], settings_of(self.cfg),
                null_rows=None if is_null is None else is_null[rows], numbers=rows.tolist(),
                batch_size=held_out.chunk,
            )
        )  # fmt: skip

    def finish(self) -> None:
        trainer = self.trainer
        if trainer.step == self.cfg.max_steps:
            figures = {} if self.held_out is None else trainer.evaluate(self.held_out.measure)
            if self.log is not None:
                self.log.event(step=trainer.step, **figures, final=1)
            self._show()
        if self.log is not None:
            self.log.close()
