"""Image process: closed forms, diffusers' schedule as an oracle, guidance."""

import pytest
import torch

from ddit.flow import FlowConfig, add_noise, flow_loss, flow_sigmas, sample_latents, sample_t


def latents_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 4, 6, generator=generator), torch.randn(5, 3, 4, 6, generator=generator)


@pytest.mark.parametrize("weighting", ["velocity", "x0"])
def test_an_oracle_velocity_has_no_loss(weighting: str) -> None:
    latents, noise = latents_and_noise()
    loss = flow_loss(lambda x, t: noise - latents, latents, cfg=FlowConfig(weighting=weighting), noise=noise)
    torch.testing.assert_close(loss, torch.zeros(5))


def test_a_constant_error_costs_its_square_and_in_x0_form_times_t_squared() -> None:
    latents, noise = latents_and_noise()
    t = torch.tensor([0.1, 0.25, 0.5, 0.75, 1.0])
    losses = [
        flow_loss(
            lambda x, t: noise - latents + 0.5, latents, cfg=FlowConfig(weighting=weighting), noise=noise, t=t
        )
        for weighting in ("velocity", "x0")
    ]
    torch.testing.assert_close(losses[0], torch.full((5,), 0.25))
    torch.testing.assert_close(losses[1], 0.25 * t.square())


def test_the_x0_form_is_the_published_regression_of_the_clean_latents() -> None:
    latents, noise = latents_and_noise()
    t = torch.linspace(0.1, 0.9, 5)

    def velocity_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x)

    x_t = add_noise(latents, noise, t)
    x0 = x_t - t.view(-1, 1, 1, 1) * velocity_fn(x_t, t)
    expected = (x0 - latents).square().flatten(1).mean(1)
    loss = flow_loss(velocity_fn, latents, cfg=FlowConfig(weighting="x0"), t=t, noise=noise)
    torch.testing.assert_close(loss, expected)


def test_noise_interpolates_between_the_latents_and_pure_noise() -> None:
    latents, noise = latents_and_noise()
    torch.testing.assert_close(add_noise(latents, noise, torch.zeros(5)), latents)
    torch.testing.assert_close(add_noise(latents, noise, torch.ones(5)), noise)


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


@pytest.mark.parametrize(("num_steps", "shift"), [(1, 3.0), (8, 3.0), (28, 1.0), (28, 3.0), (50, 2.0)])
def test_the_schedule_is_that_of_diffusers(num_steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    torch.testing.assert_close(flow_sigmas(num_steps, shift), scheduler.sigmas, atol=1e-6, rtol=1e-6)


def test_a_straight_flow_is_integrated_exactly_in_any_number_of_steps() -> None:
    latents, noise = latents_and_noise()
    for num_steps in (1, 3, 17):
        sample = sample_latents(lambda x, t: noise - latents, noise, num_steps=num_steps)
        torch.testing.assert_close(sample, latents, atol=1e-5, rtol=1e-5)


def test_a_gaussian_flow_ends_with_the_data_s_mean_and_spread() -> None:
    """For x ~ N(m, s^2) the velocity is known; many Euler steps carry N(0, 1) to N(m, s^2)."""
    mean, std = 2.0, 0.5

    def velocity_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * std**2 + t**2
        deviation = x - (1 - t) * mean
        return t / variance * deviation - (mean + (1 - t) * std**2 / variance * deviation)

    noise = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    sample = sample_latents(velocity_fn, noise, num_steps=400, shift=1.0)
    assert sample.mean().item() == pytest.approx(mean, abs=0.03)
    assert sample.std().item() == pytest.approx(std, abs=0.03)


def test_guidance_extrapolates_from_the_unconditional_half() -> None:
    _, noise = latents_and_noise()
    sizes = []

    def velocity_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return (
            torch.cat([torch.full_like(noise, 1.0), torch.full_like(noise, 3.0)])
            if len(x) == 10
            else x * 0 + 3.0
        )

    guided = sample_latents(velocity_fn, noise, num_steps=1, guidance_scale=4.0)
    torch.testing.assert_close(guided, noise - (1.0 + 4.0 * 2.0), atol=1e-5, rtol=1e-5)
    plain = sample_latents(velocity_fn, noise, num_steps=1)
    torch.testing.assert_close(plain, noise - 3.0, atol=1e-5, rtol=1e-5)
    assert sizes == [10, 5]


def test_every_step_is_reported() -> None:
    _, noise = latents_and_noise()
    seen = []
    sample_latents(
        lambda x, t: x, noise, num_steps=3, on_step=lambda done, total, x: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        sample_latents(lambda x, t: x, noise, num_steps=0)
