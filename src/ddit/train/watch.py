"""What a run reports: losses, held-out figures, samples; and when it is time to save.

All ranks take part in figures and samples, since the model is sharded; the first one writes.
"""

import dataclasses
import json
import math
import sys
import time
from functools import cache

from ddit.config.runs import save_config, settled
from ddit.devices import compute_dtype
from ddit.files import read_json, write_atomically
from ddit.train.batch import STYLES
from ddit.train.batches import ImageFacts
from ddit.train.export import settings_of
from ddit.train.flops import peak_flops, run_flops
from ddit.train.heldout import HeldOut, held_out_cost
from ddit.train.heldout_samples import held_out_samples
from ddit.train.log import RunLog
from ddit.train.sample_grid import generate_images, sample_texts, save_grid, save_table
from ddit.train.timing import Profiler
from ddit.train.trainer import StepResult, Trainer

SAMPLES_FOLDER = "samples"
BEST_FOLDER, BEST_FILE = "export_best", "best.json"


@cache
def _say_once(line: str) -> None:
    """However many runs and halves of a batch it holds for."""
    print(line, file=sys.stderr)


class Watch:
    """Called after every step, on all ranks."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.cfg, self.is_first = trainer, trainer.cfg, trainer.ranks.is_first
        self.style = STYLES[self.cfg.prompts]
        self.held_out = self._open_held_out()
        self.log = self.profiler = None
        if self.is_first:
            save_config(self.cfg, trainer.out)
            self.log = self._open_log()
            if self.cfg.report.profile_steps is not None:
                self.profiler = Profiler(self.cfg.report.profile_steps, trainer.out, trainer.ranks.device)
            for name, cause, num in trainer.data.left_out():
                _say_once(f"the source of {name} leaves out files or members ({cause}): {num}")
        self.sums: dict[str, float] = {}
        self.count = self.timed = 0
        self.has_warned = False
        self.sampled = -1  # the step of the last samples
        self.saved = self.start = time.monotonic()

    def _open_held_out(self) -> HeldOut | None:
        cfg, trainer = self.cfg, self.trainer
        if not cfg.data.held_out or cfg.report.num_held_out == 0:
            return None
        samples = held_out_samples(
            cfg.data, cfg.report.num_held_out, trainer.codec, ImageFacts.of(trainer.images),
            style=self.style, patch_size=cfg.model.patch_size,
        )  # fmt: skip
        chunk = settled(cfg.micro_batch_size) or max(1, cfg.global_batch_size // trainer.ranks.size)
        return HeldOut(
            samples, trainer.images, trainer.codec, trainer.ranks,
            chunk=chunk, i2t_fraction=cfg.objective.i2t_fraction, block_size=cfg.model.text_block_size,
            lengths=cfg.data.i2t_lengths,
        )  # fmt: skip

    def _open_log(self) -> RunLog:
        cfg, trainer = self.cfg, self.trainer
        dtype = compute_dtype(cfg.compute_dtype, trainer.ranks.device)
        flops = None  # of texts whose lengths are not known beforehand, or which share images
        if not cfg.data.i2t_lengths and cfg.data.texts_per_image == 1:
            flops = run_flops(cfg, trainer.images.downsample) / cfg.global_batch_size
        peak = peak_flops(trainer.ranks.device, dtype, override=cfg.report.peak_tflops)
        return RunLog(
            trainer.out,
            cfg.max_steps if cfg.max_seconds is None else None,
            unit="step",
            start=trainer.step,
            report=cfg.report,
            flops_per_unit=flops,
            peak_flops=trainer.ranks.size * peak,
            config=dataclasses.asdict(cfg),
        )

    def wants_checkpoint(self) -> bool:
        """Whether this rank asks for a checkpoint after the step that is about to be made."""
        report, done = self.cfg.report, self.trainer.step + 1
        if report.export_steps is not None and done % report.export_steps == 0:
            return True
        if report.checkpoint_steps is not None:
            return done % report.checkpoint_steps == 0
        return self.is_first and time.monotonic() - self.saved > 60 * report.checkpoint_minutes

    def after_save(self) -> None:
        """Exports the averaged weights, where `report.export_steps` says so."""
        every, step = self.cfg.report.export_steps, self.trainer.step
        if every is not None and step % every == 0:
            self.trainer.export({f"export-{step:08d}": True})
        self.saved = time.monotonic()
        self._restart_clock()

    def before_step(self) -> None:
        if self.profiler is not None:
            self.profiler.before_step(self.trainer.step)

    def after_step(self, result: StepResult) -> None:
        report, step = self.cfg.report, self.trainer.step
        if self.profiler is not None:
            self.profiler.after_step(step)
        self.timed += 1
        if not result.skipped:
            self.count += 1
            for name, value in result.values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if self.log is not None:
            self.log.advance()
            self._warn_about_cut_texts(result)
            if step % report.log_every == 0:
                self.log.event(step=step, **self._summary())
        if step % report.evaluate_every == 0 and self.held_out is not None:
            figures = self.trainer.evaluate(self.held_out.measure)
            if self.log is not None:
                self.log.event(step=step, **figures)
            self._keep_best(figures)
            self._restart_clock()
        if step % report.grid_every == 0:
            self._save_samples()
            self._restart_clock()

    def _warn_about_cut_texts(self, result: StepResult) -> None:
        """Says once that texts are cut; the log has their share in every line of losses."""
        share = result.values.get("cut", 0.0)
        if share > 0 and not self.has_warned:
            data = self.cfg.data
            print(
                f"texts are cut: {share:.1%} of those of step {self.trainer.step} are longer than data.t2i_length="
                f"{data.t2i_length} or data.i2t_length={data.i2t_length} tokens; the log has their share as `cut`",
                file=sys.stderr,
            )
        self.has_warned |= share > 0

    def _summary(self) -> dict[str, float]:
        """Averages of the losses since the last summary, the rate of training alone, and the time of its parts."""
        trainer, cfg = self.trainer, self.cfg
        mean = {name: value / self.count for name, value in self.sums.items()}
        rate = self.timed * cfg.global_batch_size / max(time.monotonic() - self.start, 1e-9)
        lr = cfg.optimizer.lr * trainer.lr_factor(trainer.step - 1)
        parts = trainer.timer.summary()
        self.sums, self.count = {}, 0
        self._restart_clock()
        counts = {"corrupt": trainer.corrupt.num_corrupt, "skipped": trainer.skipped}
        return mean | {"pairs_per_second": rate, "lr": lr} | parts | {k: v for k, v in counts.items() if v}

    def _restart_clock(self) -> None:
        self.timed, self.start = 0, time.monotonic()
        self.trainer.timer.reset_peak()

    def _save_samples(self) -> None:
        """A grid of images generated for held-out captions, and a table of texts about held-out images."""
        if self.held_out is None or self.sampled == self.trainer.step:
            return
        self.sampled = self.trainer.step
        if self.cfg.objective.i2t_fraction < 1 and self.held_out.captions:
            self._save_grid(self.held_out)
        if self.cfg.objective.i2t_fraction > 0:
            self._save_table(self.held_out)

    def _save_grid(self, held_out: HeldOut) -> None:
        trainer, cfg = self.trainer, self.cfg
        texts = held_out.captions[: cfg.report.num_grid]
        pixels = trainer.evaluate(
            lambda model: generate_images(
                model, trainer.images, trainer.codec, texts, sampling=cfg.report.grid_sampling, style=self.style,
                length=cfg.data.t2i_length, latent_size=cfg.data.image_size // trainer.images.downsample,
                batch_size=held_out.chunk,
            )
        )  # fmt: skip
        if self.is_first:
            save_grid(trainer.out / SAMPLES_FOLDER / f"{trainer.step:07d}.png", pixels, texts)

    def _save_table(self, held_out: HeldOut) -> None:
        trainer = self.trainer
        rows, texts, turns = held_out.first_turns(self.cfg.report.num_grid)
        if not turns:
            return
        is_null = held_out.samples.images.is_null
        table = trainer.evaluate(
            lambda model: sample_texts(
                model, trainer.codec, held_out.latents(rows), texts, turns, settings_of(self.cfg),
                null_rows=None if is_null is None else is_null[rows], numbers=rows.tolist(),
                batch_size=held_out.chunk,
            )
        )  # fmt: skip
        if self.is_first:
            shown = rows.unique()
            pixels = trainer.images.decode(held_out.latents(shown)).float().cpu()
            path = trainer.out / SAMPLES_FOLDER / f"{trainer.step:07d}.md"
            save_table(path, table, pixels=dict(zip(shown.tolist(), pixels, strict=True)))

    def finish(self) -> None:
        """The last figures and samples, if the run came to its end."""
        trainer = self.trainer
        if trainer.is_over:
            figures = {} if self.held_out is None else trainer.evaluate(self.held_out.measure)
            if self.log is not None:
                self.log.event(step=trainer.step, **figures, final=1)
            self._keep_best(figures)
            self._save_samples()

    def _keep_best(self, figures: dict[str, float]) -> None:
        """Exports these averaged weights if none before them cost less on held-out samples."""
        cost = held_out_cost(figures, self.cfg.objective) if self.cfg.report.keep_best else None
        if cost is None:
            return
        path, trainer = self.trainer.out / BEST_FILE, self.trainer
        least = trainer.ranks.share(read_json(path)["cost"] if path.is_file() else math.inf)
        if cost <= least:
            trainer.export({BEST_FOLDER: True})
            if self.is_first:
                with write_atomically(path) as part:
                    part.write_text(
                        json.dumps({"step": trainer.step, "cost": cost, "figures": figures}, indent=2)
                    )

    def close(self) -> None:
        if self.profiler is not None:
            self.profiler.close()
        if self.log is not None:
            self.log.close()
