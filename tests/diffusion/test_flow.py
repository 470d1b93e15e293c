"""Image process: closed forms, diffusers' schedule as an oracle, solvers, guidance."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ddit.diffusion import flow
from ddit.diffusion.flow import (
    Known,
    VelocityFn,
    add_noise,
    flow_loss,
    flow_sigmas,
    num_evaluations,
    sample_latents,
    sampling_times,
)
from ddit.objectives import FlowConfig
from ddit.settings import ImageSampling, ModelSettings, Sampler


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


@pytest.mark.parametrize(("num_steps", "shift"), [(1, 3.0), (8, 3.0), (28, 1.0), (28, 3.0), (50, 2.0)])
def test_the_schedule_is_that_of_diffusers(num_steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    torch.testing.assert_close(flow_sigmas(num_steps, shift), scheduler.sigmas, atol=1e-6, rtol=1e-6)


SAMPLERS: tuple[Sampler, ...] = ("euler", "adams", "dpm")


def plain(num_steps: int, **options: Any) -> ImageSampling:
    """No guidance, and no shift unless given."""
    return ImageSampling(num_steps=num_steps, guidance_scale=1.0, **{"shift": 1.0, **options})


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 3, 17])
def test_a_straight_flow_is_integrated_exactly_in_any_number_of_steps(
    sampler: Sampler, num_steps: int
) -> None:
    latents, noise = latents_and_noise()
    sample = sample_latents(
        lambda x, t: noise - latents, noise, cfg=plain(num_steps, sampler=sampler, shift=3.0)
    )
    torch.testing.assert_close(sample, latents, atol=1e-5, rtol=1e-5)


def mixture_velocity(means: list[float], stds: list[float], weights: list[float]) -> VelocityFn:
    """E[e - x | x_t] in closed form for x from a mixture of Gaussians, each element by itself."""
    mean, std, weight = (torch.tensor(values, dtype=torch.float64) for values in (means, stds, weights))

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        x, t = x.double()[..., None], t.double().view(-1, 1, 1, 1, 1)
        variance = (1 - t) ** 2 * std**2 + t**2
        deviation = x - (1 - t) * mean
        share = (weight.log() - variance.log() / 2 - deviation**2 / (2 * variance)).softmax(-1)
        clean = mean + (1 - t) * std**2 / variance * deviation
        return (share * (t / variance * deviation - clean)).sum(-1)

    return velocity_fn


THREE_MODES = mixture_velocity([-2.0, 0.3, 1.5], [0.3, 0.2, 0.5], [0.3, 0.5, 0.2])


def test_a_gaussian_flow_ends_with_the_data_s_mean_and_spread() -> None:
    """For x ~ N(m, s^2) the velocity is known; many Euler steps carry N(0, 1) to N(m, s^2)."""
    mean, std = 2.0, 0.5
    noise = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    sample = sample_latents(mixture_velocity([mean], [std], [1.0]), noise, cfg=plain(400))
    assert sample.mean().item() == pytest.approx(mean, abs=0.03)
    assert sample.std().item() == pytest.approx(std, abs=0.03)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1.0), ("adams", 2.0), ("dpm", 1.76)])
def test_twice_the_steps_divide_the_error_by_two_to_the_solvers_order(sampler: Sampler, order: float) -> None:
    """For x ~ N(m, s^2) the flow ends at m + s e exactly. The error of "dpm" falls like log(N) / N^2, from its ends."""
    mean, std = 1.0, 0.5
    noise = torch.randn(256, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    velocity_fn = mixture_velocity([mean], [std], [1.0])
    errors = [
        (sample_latents(velocity_fn, noise, cfg=plain(n, sampler=sampler)) - (mean + std * noise))
        .abs()
        .mean()
        for n in (80, 320)
    ]
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within diffusers
@pytest.mark.parametrize("num_steps", [2, 5, 16])
def test_dpm_is_that_of_diffusers(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(num_steps)
    _, noise = latents_and_noise()

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) - t.view(-1, 1, 1, 1)

    x = noise
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(velocity_fn(x, sigma.expand(5)), t, x).prev_sample
    monkeypatch.setattr(flow, "flow_sigmas", lambda *_, **__: scheduler.sigmas)  # its times begin below 1
    ours = sample_latents(velocity_fn, noise, cfg=plain(num_steps, sampler="dpm"))
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["adams", "dpm"])
def test_twenty_steps_of_second_order_come_closer_to_a_thousand_of_eulers_than_eighty_of_eulers(
    sampler: Sampler,
) -> None:
    noise = torch.randn(512, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    reference = sample_latents(THREE_MODES, noise, cfg=plain(1000))

    def error(num_steps: int, sampler: Sampler) -> float:
        sample = sample_latents(THREE_MODES, noise, cfg=plain(num_steps, sampler=sampler))
        return (sample - reference).abs().mean().item()

    assert error(20, sampler) < error(80, "euler") < error(20, "euler")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8), (0.0, 0.0)])
def test_the_evaluations_are_as_many_as_the_configuration_says(
    sampler: Sampler, interval: tuple[float, float]
) -> None:
    _, noise = latents_and_noise()
    rows, times = 0, []

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        times.append((t[0].item(), len(x)))
        return x

    cfg = ImageSampling(num_steps=9, guidance_scale=3.0, sampler=sampler, guidance_interval=interval)
    sample_latents(velocity_fn, noise, cfg=cfg)
    assert rows == num_evaluations(cfg) * len(noise)
    assert len(times) == 9
    assert all((size == 10) == (interval[0] <= t <= interval[1]) for t, size in times)
    assert num_evaluations(cfg) == {(0.0, 1.0): 18, (0.0, 0.0): 9}.get(interval, num_evaluations(cfg))
    assert num_evaluations(ImageSampling(num_steps=9, guidance_scale=1.0)) == 9


def two_halves(x: Tensor, t: Tensor) -> Tensor:
    """The unconditional half moves otherwise than the conditional one; ten rows are both."""
    scale = torch.ones(len(x), 1, 1, 1)
    if len(x) == 10:
        scale[:5] = 0.4
    return torch.sin(3 * x) * scale - t.view(-1, 1, 1, 1)


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

    guided = sample_latents(velocity_fn, noise, cfg=ImageSampling(num_steps=1, guidance_scale=4.0))
    torch.testing.assert_close(guided, noise - (1.0 + 4.0 * 2.0), atol=1e-5, rtol=1e-5)
    unguided = sample_latents(velocity_fn, noise, cfg=plain(1))
    torch.testing.assert_close(unguided, noise - 3.0, atol=1e-5, rtol=1e-5)
    assert sizes == [10, 5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_that_is_off_is_no_guidance_bit_for_bit(sampler: Sampler) -> None:
    _, noise = latents_and_noise()
    unguided = sample_latents(lambda x, t: two_halves(x, t), noise, cfg=plain(6, sampler=sampler))
    for off in ({"guidance_scale": 1.0}, {"guidance_scale": 5.0, "guidance_interval": (0.0, 0.0)}):
        cfg = ImageSampling(num_steps=6, shift=1.0, sampler=sampler, **off)
        assert torch.equal(sample_latents(two_halves, noise, cfg=cfg), unguided)


def test_the_whole_interval_and_no_rescaling_are_plain_guidance_bit_for_bit() -> None:
    _, noise = latents_and_noise()
    times, x = flow_sigmas(6, 3.0), noise
    for step in range(6):
        unconditional, conditional = two_halves(torch.cat([x, x]), times[step].expand(10)).chunk(2)
        velocity = unconditional + 5.0 * (conditional - unconditional)
        x = x + (times[step + 1] - times[step]).item() * velocity
    limits = ImageSampling(
        num_steps=6, guidance_scale=5.0, guidance_interval=(0.0, 1.0), guidance_rescale=0.0
    )
    assert torch.equal(sample_latents(two_halves, noise, cfg=limits), x)
    for change in ({"guidance_interval": (0.3, 1.0)}, {"guidance_rescale": 0.5}):
        assert not torch.equal(sample_latents(two_halves, noise, cfg=replace(limits, **change)), x)


@pytest.mark.parametrize(("rescale", "spread"), [(0.0, 3.0), (0.5, 2.0), (1.0, 1.0)])
def test_rescaling_gives_the_guided_velocity_the_conditional_ones_spread(
    rescale: float, spread: float
) -> None:
    _, noise = latents_and_noise()

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([0 * noise, noise])

    cfg = ImageSampling(num_steps=1, guidance_scale=3.0, guidance_rescale=rescale)
    torch.testing.assert_close(noise - sample_latents(velocity_fn, noise, cfg=cfg), spread * noise)


@pytest.mark.parametrize("sampler", ["adams", "dpm"])
def test_no_step_looks_back_over_the_edge_of_the_guidance_interval(sampler: Sampler) -> None:
    """Both flows are straight, so that any mixing of the two would miss the sum of their steps."""
    _, noise = latents_and_noise()

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([0 * noise, 2 + 0 * noise]) if len(x) == 10 else 1 + 0 * noise

    cfg = ImageSampling(
        num_steps=8, guidance_scale=3.0, shift=1.0, sampler=sampler, guidance_interval=(0.3, 0.7)
    )
    moved = noise - sample_latents(velocity_fn, noise, cfg=cfg)
    guided = sum(t - s for t, s in pairwise(sampling_times(cfg).tolist()) if cfg.is_guided(t))
    torch.testing.assert_close(moved, torch.full_like(noise, 6 * guided + (1 - guided)), atol=1e-5, rtol=0)


def test_the_shift_grows_with_the_square_root_of_the_pixels_where_that_is_asked_for() -> None:
    by_size, fixed = ImageSampling(shift=3.0, shift_by_size=True), ImageSampling(shift=3.0)
    assert by_size.at_size(1024**2, 512**2).shift == pytest.approx(6.0)
    assert by_size.at_size(512**2, 512**2).shift == 3.0
    assert fixed.at_size(1024**2, 512**2) == fixed
    # The rule composes: times shifted for the model's own size and then by the ratio are those shifted at once.
    t = flow_sigmas(8, 3.0, from_published_levels=False)
    again = 2 * t / (1 + t)
    torch.testing.assert_close(again, flow_sigmas(8, 6.0, from_published_levels=False))


def test_a_sampler_by_name_is_the_published_setting_or_a_solver() -> None:
    own = ImageSampling(num_steps=20, guidance_scale=3.0, shift=2.0, guidance_interval=(0.2, 0.9))
    settings = ModelSettings(image_sampling=own)

    def sampling(**given: Any) -> ImageSampling:
        return settings.image_options(given).sampling

    assert sampling() == own
    assert sampling(sampler="paper") == ImageSampling()
    assert ImageSampling() == ImageSampling(
        num_steps=28, guidance_scale=7.0, shift=3.0, sampler="euler", guidance_interval=(0.0, 1.0)
    )
    assert sampling(sampler="paper", num_steps=8) == ImageSampling(num_steps=8)
    assert sampling(sampler="dpm", guidance_scale=None) == replace(own, sampler="dpm")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"shift": 0.0}, "shift must be above 0, got 0"),
        ({"guidance_interval": (0.8, 0.2)}, "two rising times in 0 to 1, got .0.8, 0.2"),
        ({"guidance_interval": (0.8,)}, "guidance_interval.1"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be at most 1, got 1.5"),
        ({"sampler": "heun"}, "sampler must be euler, adams, dpm or paper, got 'heun'"),
    ],
)
def test_what_cannot_be_sampled_with_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSampling(**values)


def test_every_step_is_reported() -> None:
    _, noise = latents_and_noise()
    seen = []
    sample_latents(
        lambda x, t: x, noise, cfg=plain(3), on_step=lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- what is given of the latents ---

GUIDED = {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.9), "guidance_rescale": 0.5}


def some_kept() -> Tensor:
    return torch.rand(5, 1, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [{"guidance_scale": 1.0}, GUIDED], ids=["plain", "guided"])
def test_what_is_kept_ends_on_its_latents_exactly_and_is_seen_with_its_noise(
    sampler: Sampler, guidance: dict
) -> None:
    latents, noise = latents_and_noise()
    keep, cfg = some_kept().expand_as(latents), ImageSampling(num_steps=7, sampler=sampler, **guidance)
    seen, states = [], []

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return two_halves(x, t)

    sample = sample_latents(
        velocity_fn,
        noise,
        cfg=cfg,
        known=Known(latents, some_kept()),
        on_step=lambda *step: states.append(step[-1]),
    )
    assert torch.equal(sample[keep], latents[keep])
    assert not torch.isclose(sample[~keep], latents[~keep]).any()
    for x, t in seen:
        for half, time in zip(x.split(5), t.split(5), strict=True):
            assert torch.equal(half[keep], add_noise(latents, noise, time)[keep])
    assert all(torch.equal(state.clean[keep], latents[keep]) for state in states)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_kept_does_not_change_how_the_rest_is_integrated(sampler: Sampler) -> None:
    """Under a velocity of each element by itself, which a model's is not."""
    latents, noise = latents_and_noise()
    cfg, keep = (
        ImageSampling(num_steps=7, guidance_scale=3.0, sampler=sampler),
        some_kept().expand_as(latents),
    )
    sample = sample_latents(two_halves, noise, cfg=cfg, known=Known(latents, some_kept()))
    assert torch.equal(sample[~keep], sample_latents(two_halves, noise, cfg=cfg)[~keep])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shift", [1.0, 2.7, 3.0])
def test_a_strength_of_one_is_sampling_from_noise_bit_for_bit(sampler: Sampler, shift: float) -> None:
    latents, noise = latents_and_noise()
    cfg = ImageSampling(num_steps=6, guidance_scale=3.0, shift=shift, sampler=sampler)
    assert torch.equal(
        sample_latents(two_halves, noise, cfg=cfg, known=Known(latents, strength=1.0)),
        sample_latents(two_halves, noise, cfg=cfg),
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.0005, 0.4, 0.9])
def test_a_strength_starts_all_steps_from_its_shifted_level(sampler: Sampler, strength: float) -> None:
    latents, noise = latents_and_noise()
    seen = []

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return noise - latents

    cfg = plain(5, sampler=sampler, shift=3.0)
    sample = sample_latents(velocity_fn, noise, cfg=cfg, known=Known(latents, strength=strength))
    torch.testing.assert_close(sample, latents, atol=1e-5, rtol=1e-5)
    times = [t[0].item() for _, t in seen]
    assert len(times) == 5
    assert times[0] == pytest.approx(3 * strength / (1 + 2 * strength))
    assert times == sorted(times, reverse=True)
    torch.testing.assert_close(seen[0][0], add_noise(latents, noise, seen[0][1]))
