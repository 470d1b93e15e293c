"""Steps of sampling and of training on one device, beside the published model's, at 20 M and 300 M parameters.

    python -m benchmarks.on_device [--device cuda] [--published PATH] [--sizes 20M 300M] [--rounds 10]

PATH is your own checkout of github.com/zijieli-Jlee/Dual-Diffusion; its model runs with our weights, as its own loop
runs it: float32 weights under bfloat16 autocast, both heads. Ours is bfloat16, in training over float32 masters. One
evaluation is timed, not a whole sampling; `benchmarks.sampling` has those, on a CPU. A training step has 16 t2i and 16
i2t samples of random latents and text states, AdamW and, ours alone, an average. The best of the rounds counts. Prints
a table in markdown; a line is printed as soon as it is measured.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.sampling.published import Published
from benchmarks.sampling.subjects import CHANNELS, SIDE, SIZES, isolated, random_pipeline
from ddit.config.data import DataConfig
from ddit.config.runs import DualRun, OptimizerConfig, ParallelConfig
from ddit.devices import compute_dtype, find_device, join_ranks
from ddit.doctor.report import Bench, open_bench, timed
from ddit.doctor.training import random_batch, real_step
from ddit.model import DualDiTConfig
from ddit.pipeline import Pipeline

IMAGES, TEXTS, LENGTH, PROMPT = 16, 32, 32, 64
HALF = 16
"""Samples of each kind in a training step."""


@dataclass
class Steps:
    """The material of sampling steps on a device."""

    bench: Bench
    dtype: torch.dtype

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(
            self.bench.device, self.dtype
        )

    def measure(self, work: Callable[[], object], seconds: float) -> float:
        """Milliseconds of the best call, without gradients."""
        with torch.inference_mode():
            return 1e3 * timed(work, self.bench, seconds=seconds)

    def ours(self, pipeline: Pipeline, seconds: float, *, compiled: bool) -> tuple[float, float, float]:
        """An evaluation for 16 images, for 32 texts, and for 32 texts whose images are kept."""
        joint, kept = pipeline.transformer, isolated(pipeline).transformer.eval()
        if compiled:
            joint.compile_blocks()
            kept.compile_text_step()
        latents, states = (
            self.randn(IMAGES, CHANNELS, SIDE, SIDE),
            self.randn(IMAGES, PROMPT, joint.config.text_dim),
        )
        t = torch.full((IMAGES,), 0.5, device=self.bench.device)
        images, texts = (
            self.randn(TEXTS, CHANNELS, SIDE, SIDE),
            self.randn(TEXTS, LENGTH, joint.config.text_dim),
        )
        masked = torch.arange(LENGTH, device=self.bench.device).expand(TEXTS, -1) % 2 == 0
        zero = torch.zeros(TEXTS, device=self.bench.device)
        with torch.inference_mode():
            kv = kept.image_kv(images)
        return (
            self.measure(lambda: joint(latents, t, states, num_t2i=IMAGES), seconds),
            self.measure(lambda: joint(images, zero, texts, num_t2i=0, logit_mask=masked), seconds),
            self.measure(lambda: kept.text_logits(texts, kv, masked), seconds),
        )

    def published(self, model: Any, width: int, seconds: float) -> tuple[float, float]:
        """The same two evaluations of the published model, which knows no image that is kept."""
        found = []
        for count, length, head in ((IMAGES, PROMPT, 0), (TEXTS, LENGTH, 1)):
            inputs = {
                "hidden_states": self.randn(count, CHANNELS, SIDE, SIDE).float(),
                "timestep": torch.full((count,), 500.0 * (1 - head), device=self.bench.device),
                "encoder_hidden_states": self.randn(count, length, width).float(),
            }
            with torch.autocast(self.bench.device.type, torch.bfloat16):
                found.append(self.measure(functools.partial(model, **inputs), seconds))
        return found[0], found[1]


def run_of(config: DualDiTConfig, *, compiled: bool) -> DualRun:
    return DualRun(
        out="", model=config, data=DataConfig(image_size=8 * SIDE, t2i_length=LENGTH, i2t_length=LENGTH),
        optimizer=OptimizerConfig(warmup_steps=0), parallel=ParallelConfig(compile_blocks=compiled),
        global_batch_size=2 * HALF,
    )  # fmt: skip


def train_published(model: Any, cfg: DualRun, bench: Bench, seconds: float) -> tuple[float, float]:
    """Milliseconds and peak GiB of a step: the published model twice, once a head, with the plain losses."""
    batch, (images, read) = random_batch(cfg, bench.device)
    t2i, i2t = batch.t2i, batch.i2t
    assert t2i is not None
    assert i2t is not None
    assert t2i.states is not None
    assert i2t.states is not None
    given, noisy = t2i.states.float(), i2t.states.float()
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            velocity = model(hidden_states=images, timestep=1000 * t2i.t, encoder_hidden_states=given)[0]
            logits = model(hidden_states=read, timestep=0 * t2i.t, encoder_hidden_states=noisy)[1]
            image = F.mse_loss(velocity.float(), t2i.noise - images)
            text = F.cross_entropy(logits.float().flatten(0, 1), i2t.input_ids.flatten())
        (image + text).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()

    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    best = timed(step, bench, seconds=seconds)
    return 1e3 * best, torch.cuda.max_memory_allocated(bench.device) / 2**30 if bench.is_gpu else float("nan")


def line(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def measure_size(size: str, options: argparse.Namespace, bench: Bench) -> None:
    seconds, dtype = options.seconds, compute_dtype("auto", bench.device)
    steps, original = Steps(bench, dtype), random_pipeline(size, options.vocab)
    config = original.transformer.config
    ranks = join_ranks()
    for compiled in (False, True) if options.compile else (False,):
        pipeline = copy.deepcopy(original).to(bench.device, dtype)
        image, text, kept = steps.ours(pipeline, seconds, compiled=compiled)
        del pipeline
        cfg = run_of(config, compiled=compiled)
        found = real_step(cfg, bench, ranks, num_steps=options.rounds)
        peak = "" if found.peak is None else found.peak / 2**30
        line(size, "ours, compiled" if compiled else "ours", image, text, kept, 1e3 * found.seconds, peak)
    if options.published:
        model: Any = Published(options.published, original).model.to(bench.device)
        image, text = steps.published(model, config.text_dim, seconds)
        step, peak = train_published(model, run_of(config, compiled=False), bench, seconds)
        line(size, "published", image, text, "", step, peak if bench.is_gpu else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cpu, cuda, ... [default: CUDA if there is one]")
    parser.add_argument("--published", help="your checkout of the published code")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=10, help="training steps, of which the last counts")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure of sampling")
    parser.add_argument("--vocab", type=int, default=32128)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    device = find_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"## On {name}, {compute_dtype('auto', device)}\n")
    line(
        "size",
        "model",
        f"ms: {IMAGES} images",
        f"ms: {TEXTS} texts",
        "ms: images kept",
        "ms: training step",
        "peak GiB",
    )
    line(*["---"] * 7)
    with ExitStack() as stack:
        bench = stack.enter_context(open_bench(device))
        for size in options.sizes:
            measure_size(size, options, bench)


if __name__ == "__main__":
    main()
