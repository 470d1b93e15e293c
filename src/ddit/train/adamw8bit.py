"""AdamW with both moments in 8 bits (Dettmers et al. 2021), and weights in bfloat16 by stochastic rounding.

The codes and the update are those of bitsandbytes and torchao. Own code, because the former takes no sharded tensors,
and the blocks of the latter's state depend on how a matrix is sharded: here the `BLOCK` numbers with one scale lie
within a row, so that the state is sharded by rows like its matrix, and a checkpoint resumes at any number of ranks.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import zeros as sharded_zeros

from ddit.train.parallel import local

BLOCK = 256
_MIN_QUANTIZED = 4096  # numbers; the moments of smaller tensors are float32
_CHUNK = 1 << 22  # numbers that are worked on at once
_SHIFT = 12  # bits of a float32 that do not decide its code


@functools.cache
def _codebook(signed: bool, device: torch.device) -> Tensor:
    """The values (256,) in ascending order: 7 decades up to 1, each with twice the values of the one below it."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        means = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        values += [*means, *(-mean for mean in means)] if signed else means
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def _codes(signed: bool, device: torch.device) -> Tensor:
    """The code of every float32 in [-1, 1], by its upper 20 bits: sign, exponent and 11 bits of the fraction.

    A positive number that has no sign gets no code of 0: it is a second moment, and divides.
    """
    bits = torch.arange(-(1 << 31 - _SHIFT), 1 << 31 - _SHIFT, dtype=torch.int32)
    middle = (bits << _SHIFT) + (1 << _SHIFT - 1)
    values = middle.view(torch.float32).nan_to_num(0.0).clamp(-1, 1)
    book = _codebook(signed, torch.device("cpu"))
    codes = torch.bucketize(values, (book[:-1] + book[1:]) / 2)
    if not signed:
        codes = torch.where(bits > 0, codes.clamp(min=1), 0)
    return codes.to(device, torch.uint8)


def quantize(x: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (r, c) in uint8 and scales (r, c / BLOCK) of a float32 matrix (r, c)."""
    blocks = x.unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(-1)
    scaled = (blocks / scale.clamp(min=1e-30)[..., None]).flatten()
    places = (scaled.view(torch.int32) >> _SHIFT) + (1 << 31 - _SHIFT)
    return _codes(signed, x.device).index_select(0, places).view(x.shape), scale


def dequantize(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """The inverse of `quantize`, in float32."""
    values = _codebook(signed, codes.device).index_select(0, codes.flatten().int())
    return (values.view(*scale.shape, BLOCK) * scale[..., None]).view(codes.shape)


def round_stochastically(x: Tensor) -> Tensor:
    """Float32 to bfloat16, up or down by chance so that the mean is x; by torch's own generator."""
    noise = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device)
    return ((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).bfloat16()


class AdamW8bit(torch.optim.Optimizer):
    """AdamW on float32 or bfloat16 weights, sharded by rows or whole; the latter are rounded stochastically.

    Moments of matrices whose rows divide into blocks are in 8 bits, others in float32: 2.03 bytes a weight together.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """State before the first step."""
        state = {"step": torch.zeros(())}
        is_quantized = param.numel() >= _MIN_QUANTIZED and math.prod(param.shape[1:]) % BLOCK == 0
        for key in ("exp_avg", "exp_avg_sq"):
            dtype = torch.uint8 if is_quantized else torch.float32
            state[key] = torch.zeros_like(param.detach(), dtype=dtype)
            if is_quantized:
                state[f"{key}_scale"] = _zeros_by_rows(param, math.prod(param.shape[1:]) // BLOCK)
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on the gradients that are there; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state.update(self.new_state(param))
                state["step"] += 1
                here = {key: local(value) for key, value in state.items()}
                self._update(local(param), local(param.grad), here, group)

    def _update(
        self, param: Tensor, gradients: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        (beta1, beta2), step = group["betas"], state["step"].item()
        lr = group["lr"] / (1 - beta1**step)
        root = math.sqrt(1 - beta2**step)
        for rows in row_chunks(param):
            weights, gradient = param[rows], gradients[rows].float()
            mean = _read(state, "exp_avg", rows).lerp_(gradient, 1 - beta1)
            square = _read(state, "exp_avg_sq", rows).lerp_(gradient.square(), 1 - beta2)
            _write(state, "exp_avg", rows, mean)
            _write(state, "exp_avg_sq", rows, square)
            updated = weights.float().mul_(1 - group["lr"] * group["weight_decay"])
            updated.addcdiv_(mean, square.sqrt().div_(root).add_(group["eps"]), value=-lr)
            if updated is not weights:
                weights.copy_(round_stochastically(updated))


def _zeros_by_rows(param: Tensor, width: int) -> Tensor:
    """Zeros (rows of the parameter, width) in float32, sharded like it."""
    if isinstance(param, DTensor):
        return sharded_zeros(
            param.shape[0], width, device_mesh=param.device_mesh, placements=param.placements
        )
    return torch.zeros(param.shape[0], width, device=param.device)


def row_chunks(tensor: Tensor) -> Iterator[slice]:
    """Rows of about `_CHUNK` numbers at a time."""
    count = max(1, _CHUNK // max(math.prod(tensor.shape[1:]), 1))
    for start in range(0, len(tensor) if tensor.numel() else 0, count):
        yield slice(start, start + count)


def _read(state: dict[str, Tensor], key: str, rows: slice) -> Tensor:
    """Rows of a moment in float32, in its own storage if it is float32."""
    scale = state.get(f"{key}_scale")
    stored = state[key][rows]
    if scale is None:
        return stored
    return dequantize(stored.flatten(1), scale[rows], signed=key == "exp_avg").view(stored.shape)


def _write(state: dict[str, Tensor], key: str, rows: slice, value: Tensor) -> None:
    """The inverse of `_read`."""
    scale = state.get(f"{key}_scale")
    if scale is not None:
        codes, scales = quantize(value.flatten(1), signed=key == "exp_avg")
        state[key][rows] = codes.view(value.shape)
        scale[rows] = scales
