"""Times of the image process: their densities in training against closed forms, shifts, the times of evaluation."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from ddit.diffusion import flow
from ddit.diffusion.flow import sample_t
from ddit.objectives import FlowConfig, TimeDensity

GRID = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]


def test_times_are_logit_normal_on_a_thousand_levels() -> None:
    t = sample_t(
        20_000, FlowConfig(logit_mean=0.5, logit_std=0.8), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(t * 1000, (t * 1000).round(), atol=1e-3, rtol=0)
    assert t.min() > 0
    assert t.max() <= 1
    logits = torch.logit(t.clamp(max=0.9995))
    assert logits.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logits.std().item() == pytest.approx(0.8, abs=0.02)


def density(cfg: FlowConfig, t: Tensor) -> Tensor:
    """The closed forms of SD3's densities (arXiv 2403.03206, section 3.1), without a shift."""
    if cfg.time_density == "logit_normal":
        z = (torch.logit(t) - cfg.logit_mean) / cfg.logit_std
        return (-z.square() / 2).exp() / (cfg.logit_std * math.sqrt(2 * math.pi) * t * (1 - t))
    if cfg.time_density == "cosmap":
        return 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t.square())
    if cfg.time_density == "mode":  # |du/dt|, the inverse of t = f(u) by bisection
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            u = (low + high) / 2
            is_above = 1 - u - cfg.mode_scale * ((math.pi * u / 2).cos().square() - 1 + u) > t
            low, high = torch.where(is_above, u, low), torch.where(is_above, high, u)
        return 1 / (1 + cfg.mode_scale * (1 - math.pi / 2 * (math.pi * low).sin()))
    return torch.ones_like(t)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "cfg",
    [
        FlowConfig(),
        FlowConfig(logit_mean=0.6, logit_std=1.1),
        FlowConfig(time_density="uniform"),
        FlowConfig(time_density="mode"),
        FlowConfig(time_density="mode", mode_scale=-0.7),
        FlowConfig(time_density="cosmap"),
    ],
    ids=lambda cfg: f"{cfg.time_density}-{cfg.mode_scale}-{cfg.logit_mean}",
)
def test_times_have_the_density_of_their_name(cfg: FlowConfig, shift: float) -> None:
    """A histogram of draws against the formula, whose variable the shift changes to t / (s - (s - 1) t)."""
    drawn = sample_t(400_000, replace(cfg, shift=shift), generator=torch.Generator().manual_seed(0))
    found = torch.histc(drawn - 5e-4, 20, 0, 1) / len(drawn)  # the levels are the upper ends of their slices
    before = GRID / (shift - (shift - 1) * GRID)
    expected = density(cfg, before) * shift / (shift - (shift - 1) * GRID).square()
    shares = torch.stack([part.mean() for part in expected.tensor_split(20)]).float() / 20
    assert shares.sum().item() == pytest.approx(1, abs=2e-3)
    torch.testing.assert_close(found, shares, atol=2.5e-3, rtol=0)


def test_the_default_times_are_the_published_ones_bit_for_bit() -> None:
    normal = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    level = (torch.sigmoid(normal) * 1000).floor().clamp(max=999)
    assert torch.equal(flow.time_of_normal(normal, FlowConfig()), (level + 1) / 1000)
    assert FlowConfig().at_size(1024 * 1024) == FlowConfig()


def test_times_stay_within_their_bounds_at_the_ends_of_every_density() -> None:
    normal = torch.tensor([-40.0, -6.0, 0.0, 6.0, 40.0])
    for name in get_args(TimeDensity):
        for scale in (-1.0, 1.75):
            t = flow.time_of_normal(normal, FlowConfig(time_density=name, mode_scale=scale, shift=3.0))
            assert (t > 0).all()
            assert (t <= 1).all()


def test_the_shift_of_training_grows_with_the_square_root_of_the_pixels() -> None:
    cfg = FlowConfig(shift=1.5, shift_from_size=512)
    assert [cfg.at_size(pixels).shift for pixels in (512**2, 1024**2, 256**2, 512 * 1024)] == pytest.approx(
        [1.5, 3.0, 0.75, 1.5 * math.sqrt(2)]
    )
    # SD3, section 5.3.2: the time at m pixels as noisy as t at n has sqrt(m / n) t / (1 + (sqrt(m / n) - 1) t).
    t, ratio = torch.linspace(0, 1, 11), math.sqrt(1024**2 / 256**2)
    cfg = FlowConfig(shift_from_size=256).at_size(1024**2)
    torch.testing.assert_close(flow.shifted(t, cfg.shift), ratio * t / (1 + (ratio - 1) * t))


def test_stratified_times_are_one_in_each_bin_and_spread_over_it() -> None:
    times = flow.stratified_times(25, 10)
    assert torch.equal(times, flow.stratified_times(25, 10))
    assert torch.equal((times * 10).floor(), torch.arange(10.0).expand(25, 10))
    slices = (times * 250).floor().long() - 25 * torch.arange(10)
    assert all(sorted(column.tolist()) == list(range(25)) for column in slices.T)
