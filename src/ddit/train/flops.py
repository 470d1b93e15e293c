"""Model FLOP utilisation: the work of a training step, counted, over what the device can do at best.

Counted are the matrix products of the transformer, forward and backward, as its sizes imply (two FLOPs a
multiply-add). What is recomputed, the frozen encoders and element-wise work do not count.
"""

from __future__ import annotations

import time

import torch

from ddit.config.runs import DualRun
from ddit.model import DualDiTConfig

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


def step_flops(
    config: DualDiTConfig,
    *,
    num_t2i: int,
    num_read: int,
    image_tokens: int,
    t2i_length: int,
    i2t_length: int,
    num_logits: float,
    lora_rank: int = 0,
) -> float:
    """FLOPs of the transformer in one training step, forward and backward.

    Args:
        num_drawn, num_read: pictures drawn and read, of `image_tokens` tokens each.
        t2i_length, i2t_length: text tokens of each.
        num_logits: positions of the whole batch at which logits are computed.
        lora_rank: above 0, weights outside the adapters and the text head get no gradient, nor do the inputs of the
            first block.
    """
    dim, patch = config.hidden_size, config.patch_size**2 * config.in_channels
    batch, images = num_t2i + num_read, (num_t2i + num_read) * image_tokens
    texts = num_t2i * t2i_length + num_read * i2t_length
    last_images, last_texts = num_t2i * image_tokens, num_read * i2t_length  # what the last block finishes

    qkv, out_and_mlp = 3 * dim * dim, 9 * dim * dim  # multiply-adds a token
    inner = config.depth - 1
    linears = config.depth * (images + texts) * qkv
    linears += (inner * (images + texts) + last_images + last_texts) * out_and_mlp
    duals = [layer < inner for layer in config.dual_attention_layers]
    own = sum(images if finished else last_images for finished in duals)
    linears += own * 4 * dim * dim

    drawn_seen, read_seen = image_tokens + t2i_length, image_tokens + i2t_length
    image_seen = read_seen if config.image_attends_text else image_tokens
    drawn = num_t2i * (inner * drawn_seen + image_tokens) * drawn_seen
    read = num_read * (inner * image_tokens * image_seen + config.depth * i2t_length * read_seen)
    attention = 2 * dim * (drawn + read + own * image_tokens)  # queries x keys, then weights x values

    chunks = sum(12 + 3 * (layer in config.dual_attention_layers) for layer in range(config.depth))
    modulation = batch * dim * dim * chunks + num_t2i * 2 * dim * dim
    time_embed = batch * (256 + dim) * dim
    embed = images * patch * dim + texts * config.text_dim * dim  # their inputs need no gradient
    image_head, text_head = last_images * patch * dim, num_logits * dim * config.vocab_size
    if lora_rank:
        adapters = (
            linears / dim * 2 * lora_rank
        )  # as if every matrix were square: within a percent of the step
        first = (images + texts) * qkv + (0 in config.dual_attention_layers) * images * qkv
        passes = 2 * (linears + image_head) - first + 3 * (attention + text_head + adapters)
        return 2.0 * (passes + modulation + time_embed + embed)
    return 2.0 * (3 * (linears + attention + modulation + time_embed + image_head + text_head) + 2 * embed)


def run_flops(cfg: DualRun, downsample: int) -> float:
    """Expected FLOPs of one step of a run: half of the positions that are read are masked, on average.

    downsample: pixels a side of one latent.
    """
    num_read = round(cfg.global_batch_size * cfg.objective.i2t_fraction)
    side = cfg.data.image_size // downsample // cfg.model.patch_size
    return step_flops(
        cfg.model,
        num_t2i=cfg.global_batch_size - num_read,
        num_read=num_read,
        image_tokens=side**2,
        t2i_length=cfg.data.t2i_length,
        i2t_length=cfg.data.i2t_length,
        num_logits=0.5 * num_read * cfg.data.i2t_length,
        lora_rank=cfg.lora.rank,
    )
