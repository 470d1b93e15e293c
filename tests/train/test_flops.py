"""The work of a step, counted without computing it, and the peak that it is compared with."""

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
    "stem": DualDiTConfig(**SIZES, sample_size=16, pos_embed_max_size=8, stem=(16, 24)),
    "refiner": DualDiTConfig(**SIZES, sample_size=16, pos_embed_max_size=8, refiner=16),
}


def on_meta(config: DualDiTConfig, rank: int) -> DualDiT:
    with torch.device("meta"):
        model = DualDiT(config)
    if rank:
        add_adapters(model, rank=rank, alpha=1.0)
    return model


def counted(config: DualDiTConfig, num_t2i: int, num_i2t: int, rank: int) -> float:
    """FLOPs of one joint step on real tensors: 64 image tokens, 24 of text, every second one masked."""
    model = DualDiT(config)
    if rank:
        add_adapters(model, rank=rank, alpha=1.0)
    batch = num_t2i + num_i2t
    mask = torch.arange(24).expand(num_i2t, 24) % 2 == 0
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
@pytest.mark.parametrize(("num_t2i", "num_i2t"), [(4, 4), (4, 0), (0, 4)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_work_of_a_step_is_that_of_real_tensors(name: str, num_t2i: int, num_i2t: int, rank: int) -> None:
    found = step_flops(
        on_meta(CONFIGS[name], rank), num_t2i=num_t2i, num_i2t=num_i2t, latent_size=16, t2i_length=24, i2t_length=24,
        num_masked=12,
    )  # fmt: skip
    assert found == counted(CONFIGS[name], num_t2i, num_i2t, rank)


def test_texts_of_another_length_take_a_pass_of_their_own() -> None:
    model = on_meta(CONFIGS["plain"], 0)

    def flops(num_t2i: int, num_i2t: int) -> int:
        return step_flops(
            model,
            num_t2i=num_t2i,
            num_i2t=num_i2t,
            latent_size=16,
            t2i_length=24,
            i2t_length=12,
            num_masked=6,
        )

    assert flops(4, 2) == flops(4, 0) + flops(0, 2)


def test_the_work_of_the_published_size_is_that_of_the_products_by_hand() -> None:
    found = step_flops(
        on_meta(DualDiTConfig(), 0),
        num_t2i=2,
        num_i2t=2,
        latent_size=32,
        t2i_length=64,
        i2t_length=64,
        num_masked=32,
    )
    assert found == pytest.approx(5.3568e12, rel=1e-4)  # matrices, attention, heads: 2 FLOPs a multiply-add


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
