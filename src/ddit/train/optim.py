"""Optimisers, schedule, clipping, float32 masters of a bf16 model, and the exponential moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ddit.config import OptimizerConfig
from ddit.train.muon import Muon
from ddit.train.parallel import Ranks


def lr_factor(step: float, max_steps: int, cfg: OptimizerConfig) -> float:
    """What the learning rates are multiplied with in step `step` (counted from 0) of `max_steps`."""
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


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this parameter: matrices of attention and MLP inside the blocks, not the modulation's."""
    return parameter.ndim == 2 and "transformer_blocks." in name and ".norm" not in name


class MasterWeights:
    """The trained parameters in float32, beside a model that may compute in another type.

    In float32 the masters are the model's own parameters; else they are copies, to which gradients are carried before a
    step (`collect_gradients`) and from which the model is refreshed after it (`publish`).
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        self.model = model
        self.shared = compute_dtype == torch.float32
        self.names = [name for name, _ in model.named_parameters()]
        self._live = list(model.parameters())
        if self.shared:
            self.masters: list[nn.Parameter] = self._live
        else:
            self.masters = [nn.Parameter(p.detach().float().clone()) for p in self._live]
            model.to(compute_dtype)
            self._live = list(model.parameters())

    def named(self) -> Iterable[tuple[str, nn.Parameter]]:
        return zip(self.names, self.masters, strict=True)

    def collect_gradients(self) -> list[Tensor]:
        """The gradients in float32, on the masters; a parameter that took no part has none."""
        if not self.shared:
            for master, live in zip(self.masters, self._live, strict=True):
                master.grad = None if live.grad is None else live.grad.float()
                live.grad = None
        return [master.grad for master in self.masters if master.grad is not None]

    @torch.no_grad()
    def publish(self) -> None:
        for master in self.masters:
            master.grad = None
        if not self.shared:
            for live, master in zip(self._live, self.masters, strict=True):
                live.copy_(master)


def build_optimizers(
    masters: Iterable[tuple[str, nn.Parameter]], cfg: OptimizerConfig, ranks: Ranks | None = None
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name: "adamw", and with `cfg.name == "muon"` "muon" for the matrices of the blocks."""
    masters = list(masters)
    matrices = [p for name, p in masters if is_block_matrix(name, p)] if cfg.name == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for _, p in masters if id(p) not in taken]
    # AdamW decays matrices only: biases, gains and the null image have no scale to keep down.
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW([g for g in groups if g["params"]], lr=cfg.lr, betas=cfg.betas, fused=True)
    }
    if matrices:
        optimizers["muon"] = Muon(matrices, lr=cfg.muon_lr, weight_decay=cfg.weight_decay, ranks=ranks)
    return optimizers


def set_lr(optimizers: dict[str, torch.optim.Optimizer], cfg: OptimizerConfig, factor: float) -> None:
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = factor * (cfg.muon_lr if name == "muon" else cfg.lr)


class Ema:
    """Exponential moving average of float32 tensors: s <- d s + (1 - d) w, from s = w at the start.

    Early on d is (1 + k) / (10 + k) in update k, so that the fresh weights are soon forgotten.
    """

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = [tensor.detach().float().clone() for tensor in tensors]

    @torch.no_grad()
    def update(self, tensors: Iterable[Tensor], step: int) -> None:
        """Takes in the weights after `step` earlier updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, tensor in zip(self.tensors, tensors, strict=True):
            average.lerp_(tensor.detach(), 1 - decay)
