"""Model FLOP utilisation: the work of a training step over what the device can do at best.

Counted are the matrix products of the transformer, forward and backward, two FLOPs a multiply-add. Recomputation, the
frozen encoders and element-wise work do not count.
"""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddit.config.runs import DualRun
from ddit.model import DualDiT
from ddit.model.adapters import add_adapters

# bf16 matrix products without sparsity, TFLOP/s, from the vendors' data sheets; the longest name that fits counts
PEAK_TFLOPS = {
    "A10": 125, "A10G": 70, "A100": 312, "A30": 165, "A40": 150, "A800": 312, "B200": 2250, "GH200": 989, "H100": 989,
    "H100 NVL": 835, "H100 PCIe": 756, "H20": 148, "H200": 989, "H800": 989, "L4": 121, "L40": 181, "L40S": 362,
    "MI250X": 383, "MI300X": 1307, "RTX 3090": 71, "RTX 4090": 165, "RTX 5090": 210, "RTX 6000 Ada": 364,
    "RTX A6000": 155,
}  # fmt: skip


def peak_flops(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, *, override: float | None = None
) -> float:
    """FLOP/s of one device at best: `override` (in TFLOP/s), a known GPU's, or else a large product's, measured.

    The measurement takes less than a second.
    """
    if override is not None:
        return override * 1e12
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        known = known_peak(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measure_peak(device, dtype)


def known_peak(name: str) -> float | None:
    """bf16 FLOP/s of a GPU such as "NVIDIA H100 80GB HBM3", or None."""
    words = name.replace("-", " ").split()
    fitting = [key for key in PEAK_TFLOPS if _contains(words, key.split())]
    return PEAK_TFLOPS[max(fitting, key=len)] * 1e12 if fitting else None


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words)))


def measure_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3) -> float:
    """FLOP/s of the best of several large matrix products within about `seconds`."""
    side = 1024 if device.type == "cpu" else 8192
    a = torch.ones(side, side, device=device, dtype=dtype)
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        torch.matmul(a, a)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def run_flops(cfg: DualRun, downsample: int) -> float:
    """Expected FLOPs of one step of a run: half of the positions of a text are masked, on average.

    downsample: pixels a side of one latent.
    """
    with torch.device("meta"):
        model = DualDiT(cfg.model)
    if cfg.lora.rank > 0:
        add_adapters(model, rank=cfg.lora.rank, alpha=cfg.lora.alpha)
    num_i2t = round(cfg.global_batch_size * cfg.objective.i2t_fraction)
    return step_flops(
        model,
        num_t2i=cfg.global_batch_size - num_i2t,
        num_i2t=num_i2t,
        latent_size=cfg.data.image_size // downsample,
        t2i_length=cfg.data.t2i_length,
        i2t_length=cfg.i2t_tokens,
        num_masked=cfg.data.i2t_length // (1 if cfg.objective.text.wrong_share else 2),
    )


def step_flops(
    model: DualDiT,
    *,
    num_t2i: int,
    num_i2t: int,
    latent_size: int,
    t2i_length: int,
    i2t_length: int,
    num_masked: int,
) -> int:
    """FLOPs of a training step, forward and backward, counted on a model on the meta device: nothing is computed.

    Args:
        num_t2i, num_i2t: samples of each kind; in one forward pass where the texts are of one length.
        latent_size: side of the latents.
        num_masked: positions of each i2t text at which logits are computed.
    """
    passes = [(num_t2i, 0, t2i_length), (0, num_i2t, i2t_length)]
    if t2i_length == i2t_length:
        passes = [(num_t2i, num_i2t, t2i_length)]
    with FlopCounterMode(display=False) as counter:
        for t2i, i2t, length in passes:
            if t2i + i2t:
                _run_on_meta(model, t2i, i2t, latent_size, length, num_masked)
    return counter.get_total_flops()


def _run_on_meta(
    model: DualDiT, num_t2i: int, num_i2t: int, latent_size: int, length: int, num_masked: int
) -> None:
    config, batch_size = model.config, num_t2i + num_i2t
    latents = torch.empty(batch_size, config.in_channels, latent_size, latent_size, device="meta")
    states = torch.empty(batch_size, length, config.text_dim, device="meta")
    t = torch.empty(batch_size, device="meta")
    out = model(latents, t, states, num_t2i=num_t2i, text_hidden=True)
    parts = [] if out.velocity is None else [out.velocity]
    if out.text_hidden is not None:  # a mask would need values to tell how many it selects
        parts.append(model.text_proj_out(out.text_hidden[:, :num_masked]))
    torch.stack([part.sum() for part in parts]).sum().backward()
