"""Optimisers with their state by name, the schedule, and the exponential moving average; all on sharded tensors."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddit.config.runs import OptimizerConfig
from ddit.train.adamw8bit import AdamW8bit, round_stochastically, row_chunks
from ddit.train.muon import Muon
from ddit.train.parallel import local


def lr_factor(step: float, max_steps: int, cfg: OptimizerConfig, *, time_share: float = 0.0) -> float:
    """The factor on the learning rates in step `step` (counted from 0) of `max_steps`.

    time_share: of the run's time that is over; where that is further than its steps, the schedule follows it. The
        warm-up counts steps alone.
    """
    if time_share * max_steps > step:
        warmup = min((step + 1) / max(cfg.warmup_steps, 1), 1.0)
        return min(warmup, lr_factor(max(time_share * max_steps, cfg.warmup_steps), max_steps, cfg))
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return 1.0
    start = (
        cfg.warmup_steps
        if cfg.schedule == "cosine"
        else max(cfg.warmup_steps, max_steps * (1 - cfg.decay_fraction))
    )
    progress = min(max((step - start) / max(max_steps - start, 1), 0.0), 1.0)
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if cfg.schedule == "cosine" else 1 - progress
    return cfg.final_lr_fraction + (1 - cfg.final_lr_fraction) * falling


def is_for_muon(name: str, parameter: Tensor) -> bool:
    """Matrices of attention and MLP inside the blocks, not the modulation's, and 3x3 kernels of stem and refiner."""
    if parameter.ndim == 4:
        return ".conv." in name  # of a `ConvLayer`
    return parameter.ndim == 2 and "transformer_blocks." in name and ".norm" not in name


def build_optimizers(
    trained: Mapping[str, nn.Parameter], cfg: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name: "adamw", of float32 or 8-bit state, and for `cfg.name == "muon"` also "muon", which takes
    the matrices of the blocks and the kernels of stem and refiner.
    """
    matrices = [p for name, p in trained.items() if cfg.name == "muon" and is_for_muon(name, p)]
    taken = {id(p) for p in matrices}
    rest = {name: p for name, p in trained.items() if id(p) not in taken}
    # Biases, gains, the null image and the mask token have no scale to keep down.
    kept_names = {name for name, p in rest.items() if p.ndim < 2 or name.endswith("null_image_embd")}
    if cfg.decay == "all":
        kept_names.clear()
    decayed = [p for name, p in rest.items() if name not in kept_names]
    kept = [p for name, p in rest.items() if name in kept_names]
    groups = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if cfg.name == "adamw8bit":
        return {"adamw": AdamW8bit(groups, lr=cfg.lr, betas=cfg.betas)}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    }
    if matrices:
        optimizers["muon"] = Muon(matrices, lr=cfg.muon_lr, weight_decay=cfg.weight_decay)
    return optimizers


def optimizer_state(
    trained: Mapping[str, nn.Parameter], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The optimisers' tensors under "KEY.PARAMETER", of those parameters that have had a step.

    torch's own packing would first take a step of all parameters to make room, with which those that a run never
    touches enter its checkpoints after a resume.
    """
    return {
        f"{key}.{name}": value
        for name, parameter in trained.items()
        for optimizer in optimizers.values()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def make_room(
    shapes: Mapping[str, tuple[int, ...]],
    trained: Mapping[str, nn.Parameter],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Gives the optimisers empty state of the names and shapes that `optimizer_state` had when it was saved."""
    of = {id(p): o for o in optimizers.values() for group in o.param_groups for p in group["params"]}
    for full_name, shape in shapes.items():
        key, _, name = full_name.partition(".")
        parameter = trained[name]
        optimizer = of[id(parameter)]
        if isinstance(optimizer, AdamW8bit):
            if not optimizer.state[parameter]:
                optimizer.state[parameter].update(optimizer.new_state(parameter))
            continue
        is_like = shape == tuple(parameter.shape)  # else a scalar: the count of its steps
        room = (
            torch.zeros_like(parameter.detach()) if is_like else torch.zeros(shape, device=parameter.device)
        )
        optimizer.state[parameter][key] = room


def set_lr(optimizers: dict[str, torch.optim.Optimizer], cfg: OptimizerConfig, factor: float) -> None:
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = factor * (cfg.muon_lr if name == "muon" else cfg.lr)


@torch.no_grad()
def scale_gradients(gradients: Sequence[Tensor], max_norm: float, norm: float) -> None:
    """Scales gradients whose norm is `norm` down to `max_norm`, in place, if it is above."""
    if norm > max_norm:
        for gradient in gradients:
            local(gradient).mul_(max_norm / (norm + 1e-6))


class Ema:
    """Exponential moving average of parameters: s <- d s + (1 - d) w, from s = w at the start, in the type of w.

    Early on d is (1 + k) / (10 + k) in update k, so that the fresh weights are soon forgotten. Each rank averages its
    own part of sharded parameters. In bfloat16 a step towards w is mostly too small to be seen: it is rounded
    stochastically.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Takes in the weights after `step` earlier updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            ours, theirs = local(average), local(parameters[name].detach())
            if ours.dtype == torch.bfloat16:
                for rows in row_chunks(ours):
                    mean = ours[rows].float().lerp_(theirs[rows].float(), 1 - decay)
                    ours[rows] = round_stochastically(mean)
            else:
                ours.lerp_(theirs, 1 - decay)

    @contextmanager
    def swapped_into(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """The averages take the parameters' place for a while; their own values come back bit for bit."""
        self._swap(parameters)
        try:
            yield
        finally:
            self._swap(parameters)

    @torch.no_grad()
    def _swap(self, parameters: Mapping[str, Tensor]) -> None:
        for name, average in self.tensors.items():
            ours, theirs = local(average), local(parameters[name].detach())
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)
