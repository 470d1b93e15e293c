"""The counted work of a step against torch's own counter, and the peak that it is set against."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddit.model import DualDiT, DualDiTConfig
from ddit.model.adapters import add_adapters
from ddit.train.flops import known_peak, measure_peak, peak_flops, step_flops

SIZES = {"hidden_size": 64, "depth": 3, "num_heads": 2, "text_dim": 40, "vocab_size": 300}
CONFIGS = {
    "plain": DualDiTConfig(**SIZES, sample_size=16, pos_embed_max_size=8),
    "dual": DualDiTConfig(**SIZES, sample_size=16, pos_embed_max_size=8, dual_attention_layers=(0, 2)),
    "cached": DualDiTConfig(**SIZES, sample_size=16, pos_embed_max_size=8, image_attends_text=False),
}


def counted(config: DualDiTConfig, num_t2i: int, num_read: int, rank: int) -> float:
    """FLOPs of one joint step as torch sees them: 64 image tokens, 24 of text, every second one masked."""
    model = DualDiT(config)
    if rank:
        add_adapters(model, rank=rank, alpha=1.0)
    batch = num_t2i + num_read
    mask = torch.arange(24).expand(num_read, 24) % 2 == 0
    with FlopCounterMode(display=False) as counter:
        output = model(
            torch.randn(batch, config.in_channels, 16, 16),
            torch.rand(batch),
            torch.randn(batch, 24, config.text_dim),
            num_t2i=num_t2i,
            logit_mask=mask,
        )
        sum(part.sum() for part in (output.velocity, output.logits) if part is not None).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("num_t2i", "num_read"), [(4, 4), (4, 0), (0, 4)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_work_of_a_step_is_what_torch_counts(name: str, num_t2i: int, num_read: int, rank: int) -> None:
    expected = counted(CONFIGS[name], num_t2i, num_read, rank)
    found = step_flops(
        CONFIGS[name], num_t2i=num_t2i, num_read=num_read, image_tokens=64, t2i_length=24, i2t_length=24,
        num_logits=12 * num_read, lora_rank=rank,
    )  # fmt: skip
    assert found == pytest.approx(expected, rel=0.05 if rank else 0.03)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_common_gpus_are_known_by_name(name: str, tflops: float) -> None:
    assert known_peak(name) == tflops * 1e12


def test_another_device_is_measured_in_less_than_a_second_unless_told() -> None:
    assert known_peak("NVIDIA Quadro 42") is None
    cpu, start = torch.device("cpu"), time.perf_counter()
    assert 1e9 < measure_peak(cpu, torch.float32, seconds=0.05) < 1e14
    assert time.perf_counter() - start < 1.0
    assert peak_flops(cpu, override=2.5) == 2.5e12
