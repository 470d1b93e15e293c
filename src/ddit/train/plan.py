"""A run fitted to its machine: the settings that are "auto", and the memory and time to expect."""

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from ddit.config.runs import DualRun, ParallelConfig, settled
from ddit.devices import Ranks, compute_dtype
from ddit.files import find_weights, read_json
from ddit.model.autoencoder import downsample_of
from ddit.model.folders import resolve, text_folders
from ddit.train.flops import PEAK_TFLOPS, peak_flops, run_flops
from ddit.train.memory import (
    GIB,
    T5_XXL,
    Encoders,
    ImageEncoder,
    MemoryReport,
    has_latents,
    memory_per_gpu,
    sharding_of,
)

MEMORY_GIB = {
    "A10": 22, "A10G": 22, "A30": 24, "A40": 45, "A100": 79, "A800": 79, "B200": 178, "GH200": 95, "H100": 79,
    "H20": 95, "H200": 139, "H800": 79, "L4": 22, "L40": 45, "L40S": 45, "MI250X": 64, "MI300X": 191, "RTX 3090": 23.5,
    "RTX 4090": 23.5, "RTX 5090": 31.5, "RTX 6000 Ada": 47, "RTX A6000": 47,
}  # fmt: skip
"""What programs see of each GPU's memory; of those that come in several sizes, the largest."""
UTILISATION = 0.4
"""Of the peak rate, where nothing was measured: the usual range of training is 0.3 to 0.5."""
RESERVE = 0.1
"""Of the memory, for the allocator, kernels and communication, beside 1 GiB for the context."""
WHOLE_TEXT_ENCODER = 40 * GIB
"""From this memory on, T5 lies whole on each GPU."""
PATCH_WIDTH = 12
"""Numbers a pixel that the small autoencoder holds while it encodes, taken as channels."""
MOST_AT_ONCE, FEW_AT_ONCE = 32, 8
"""Samples: more at once gain nothing, fewer leave a GPU idle between its kernels."""


class Machine(NamedTuple):
    """What a run is to be fitted to; `memory` in bytes and `flops` in FLOP/s are of one GPU."""

    name: str
    num_gpus: int
    num_nodes: int
    memory: int
    flops: float

    @classmethod
    def here(cls, ranks: Ranks, cfg: DualRun) -> "Machine":
        """This one: the least memory of all ranks' devices, which call this together."""
        device, nodes = (
            ranks.device,
            max(1, ranks.size // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))),
        )
        if device.type != "cuda":
            return cls("CPU", ranks.size, nodes, 0, 0.0)
        free = min(ranks.gather([torch.cuda.mem_get_info(device)[0]]))
        peak = peak_flops(device, compute_dtype(cfg.compute_dtype, device), override=cfg.report.peak_tflops)
        return cls(torch.cuda.get_device_name(device), ranks.size, nodes, free, peak)

    @classmethod
    def named(cls, text: str) -> "Machine":
        """One by a description such as "H100", "8xH100" or "4x8xA100": nodes, GPUs a node, GPU.

        Raises:
            ValueError: in one line, for a GPU that is not known.
        """
        match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?(.+)", text.strip())
        assert match is not None
        first, second, name = match.groups()
        nodes, gpus = (int(first), int(second)) if second else (1, int(first or 1))
        known = {key.lower(): key for key in MEMORY_GIB}
        if name.lower() not in known or nodes * gpus == 0:
            raise ValueError(
                f"unknown machine '{text}': write 8xH100 or 4x8xA100, with one of {', '.join(MEMORY_GIB)}"
            )
        key = known[name.lower()]
        return cls(key, nodes * gpus, nodes, int(MEMORY_GIB[key] * GIB), PEAK_TFLOPS[key] * 1e12)

    @property
    def budget(self) -> float:
        """Bytes that a run may plan with."""
        return (1 - RESERVE) * self.memory - GIB


@dataclass(frozen=True)
class Plan:
    """A run whose settings are settled, on a machine; what is expected of it."""

    cfg: DualRun
    machine: Machine
    encoders: Encoders

    @cached_property
    def memory(self) -> MemoryReport:
        return memory_per_gpu(self.cfg, self.machine.num_gpus, self.encoders)

    @property
    def pairs_per_second(self) -> float:
        """Samples a second at `UTILISATION` of the peak rate; exchange between GPUs is not counted."""
        flops = step_cost(self.cfg, self.encoders) / self.cfg.global_batch_size
        return UTILISATION * self.machine.num_gpus * self.machine.flops / flops

    def to_text(self) -> str:
        """Three lines for a person."""
        cfg, machine, memory = self.cfg, self.machine, self.memory
        part = cfg.global_batch_size // machine.num_gpus
        micro = settled(cfg.micro_batch_size) or part
        rate = self.pairs_per_second
        hours = cfg.max_steps * cfg.global_batch_size / rate / 3600
        choices = [
            sharding_of(cfg, machine.num_gpus),
            f"micro-batch {micro} x {math.ceil(part / micro)}",
            f"T5 {settled(cfg.parallel.text_encoder)}",
            "activations " + ("recomputed" if settled(cfg.parallel.checkpoint_activations) else "kept"),
        ]
        parts = [f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in vars(memory).items()]
        return "\n".join([
            f"plan for {machine.num_gpus} x {machine.name}: {', '.join(choices)}",
            f"  memory {memory.total / GIB:.1f} of {machine.memory / GIB:.1f} GiB a GPU ({', '.join(parts)})",
            f"  about {rate:,.0f} pairs/s at {UTILISATION:.0%} of the peak rate, "
            f"{cfg.max_steps:,} steps in {hours:,.1f} hours",
        ])  # fmt: skip


def step_cost(cfg: DualRun, encoders: Encoders) -> float:
    """FLOPs of a step as it is computed: the transformer, what is recomputed of it, and the frozen encoders.

    T5 takes two FLOPs a weight and token, its table aside. Stable Diffusion 3's autoencoder takes 4.1 MFLOPs a pixel,
    others by the square of their width.
    """
    forward = (4 / 3 if settled(cfg.parallel.checkpoint_activations) else 1.0) * run_flops(
        cfg, encoders.image.downsample
    )
    num_i2t = round(cfg.global_batch_size * cfg.objective.i2t_fraction)
    tokens = (cfg.global_batch_size - num_i2t) * cfg.data.t2i_length + num_i2t * cfg.i2t_tokens
    layers = sum(p.numel() for block in encoders.text_model.encoder.block for p in block.parameters())
    pixels = 0 if has_latents(cfg) else cfg.global_batch_size * cfg.data.image_size**2
    return forward + 2 * layers * tokens + 4.1e6 * (encoders.image.width / 128) ** 2 * pixels


def make_plan(cfg: DualRun, machine: Machine, encoders: Encoders | None = None) -> Plan:
    """Decides what is "auto": in this order, replicas, T5's place, no recomputation, and the largest micro-batch.

    On a CPU nothing is recomputed, each rank has T5 whole, and a micro-batch has at most eight samples.

    Raises:
        ValueError: in one line, if nothing fits the memory, with what is missing.
    """
    encoders = encoders or Encoders()
    least: tuple[int, DualRun] | None = None
    for candidate in _candidates(cfg, machine):
        if machine.memory == 0 or not _is_open(cfg):
            return Plan(candidate, machine, encoders)
        total = memory_per_gpu(candidate, machine.num_gpus, encoders).total
        if total <= machine.budget:
            return Plan(candidate, machine, encoders)
        if least is None or total < least[0]:
            least = total, candidate
    assert least is not None
    raise ValueError(
        f"the run needs {least[0] / GIB:.1f} GiB of a GPU at the least, but {machine.budget / GIB:.1f} of "
        f"{machine.memory / GIB:.1f} GiB can be used: train adapters (lora.rank=32), use more GPUs, or "
        "optimizer.name=adamw8bit with optimizer.weights=bfloat16"
    )


def _is_open(cfg: DualRun) -> bool:
    parallel = cfg.parallel
    settings = (
        parallel.num_replicas,
        parallel.checkpoint_activations,
        parallel.accumulate,
        parallel.text_encoder,
    )
    return "auto" in (*settings, cfg.micro_batch_size)


def _candidates(cfg: DualRun, machine: Machine) -> Iterator[DualRun]:
    """Settled configurations, the one expected to be fastest first."""
    parallel, is_gpu = cfg.parallel, machine.memory > 0
    sizes = _micro_batches(cfg, machine.num_gpus, MOST_AT_ONCE if is_gpu else FEW_AT_ONCE)
    shards = machine.num_gpus > 1 and cfg.lora.rank == 0 and not cfg.reaches_into_text_encoder
    if not is_gpu or machine.memory >= WHOLE_TEXT_ENCODER:
        places = ["whole", *(["sharded"] if shards else ["int8"]), "offloaded"]
    else:
        places = ["sharded" if shards else "int8", "offloaded"]
    if cfg.train_mask_embedding:
        places.remove("offloaded")

    def choose(value: object, options: list) -> list:
        return options if value == "auto" else [value]

    for replicas in choose(
        parallel.num_replicas, sorted({machine.num_nodes if is_gpu else 1, 1}, reverse=True)
    ):
        for place in choose(parallel.text_encoder, places):
            for recomputes in choose(parallel.checkpoint_activations, [False, True] if is_gpu else [False]):
                for micro in choose(cfg.micro_batch_size, sizes):
                    if not recomputes and _can_recompute(cfg, is_gpu) and micro < min(FEW_AT_ONCE, sizes[0]):
                        continue  # a larger micro-batch with recomputation is faster
                    for how in choose(parallel.accumulate, ["whole", "sharded"]):
                        chosen = _with(parallel, replicas, place, recomputes, how)
                        yield replace(cfg, parallel=chosen, micro_batch_size=micro)


def _micro_batches(cfg: DualRun, num_gpus: int, most: int) -> list[int]:
    """Sizes up to `most` into which each GPU's part divides, equal in t2i and i2t samples; largest first."""
    part = max(1, cfg.global_batch_size // num_gpus)
    num_i2t = round(cfg.global_batch_size * cfg.objective.i2t_fraction)
    halves = (num_i2t, cfg.global_batch_size - num_i2t)
    sizes = [n for n in range(min(part, most), 0, -1) if part % n == 0]
    return [n for n in sizes if all(half % (num_gpus * (part // n)) == 0 for half in halves)] or sizes


def _can_recompute(cfg: DualRun, is_gpu: bool) -> bool:
    return is_gpu and cfg.parallel.checkpoint_activations == "auto" and cfg.micro_batch_size == "auto"


def _with(parallel: ParallelConfig, replicas: int, place: str, recomputes: bool, how: str) -> ParallelConfig:
    values = {"text_encoder": place, "checkpoint_activations": recomputes, "accumulate": how}
    return replace(parallel, num_replicas=replicas, **values)


def encoders_of(cfg: DualRun) -> Encoders:
    """Sizes of the encoders that a run names, by their configurations and the headers of their files.

    Raises:
        ValueError: if it names none, or they are not there.
    """
    text, vae = (resolve(name or cfg.init or "") for name in (cfg.text, cfg.vae))
    found, _ = text_folders(text)
    folder = vae / "vae" if (vae / "vae").is_dir() else vae
    config = read_json(folder / "config.json")
    widths = config.get("encoder_block_out_channels") or config.get("block_out_channels") or [PATCH_WIDTH]
    image = ImageEncoder(_num_parameters(folder), widths[0], downsample_of(config))
    return Encoders(
        {**read_json(found / "config.json"), "is_encoder_decoder": False, "use_cache": False}, image
    )


def expected_encoders(cfg: DualRun) -> Encoders:
    """`encoders_of` where the run's folders are here; else Stable Diffusion 3's, if the model takes T5-XXL's states.

    Raises:
        ValueError: in one line, for a smaller model whose encoders are not there yet.
    """
    names = (cfg.text or cfg.init, cfg.vae or cfg.init)
    if all(name is not None and Path(name).is_dir() for name in names):
        return encoders_of(cfg)
    if cfg.model.text_dim != T5_XXL["d_model"]:
        raise ValueError(f"{cfg.out} cannot be planned before its encoders are there: {names[0]}, {names[1]}")
    return Encoders()


def _num_parameters(folder: Path) -> int:
    count = 0
    for path in find_weights(folder, "diffusion_pytorch_model"):
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def fit_run(cfg: DualRun, ranks: Ranks) -> DualRun:
    """The run with settled settings for the devices of these ranks, which call this together; on GPUs the first one
    prints the plan.

    Raises:
        ValueError: as `make_plan` and `encoders_of`.
    """
    machine = Machine.here(ranks, cfg)
    if machine.memory == 0 and not _is_open(cfg):
        return cfg
    plan = make_plan(cfg, machine, encoders_of(cfg))
    if machine.memory > 0 and ranks.is_first:
        print(plan.to_text(), file=sys.stderr)
    return plan.cfg
