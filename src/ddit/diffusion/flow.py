"""The image process: rectified flow. Time density, noising, loss, schedule, samplers, guidance.

t in [0, 1]; t = 1 is pure noise. x_t = (1 - t) x + t e with e ~ N(0, I); the velocity to regress is e - x.
Nothing here knows a model: a `VelocityFn` maps noisy latents (B, C, H, W) and times (B,) to a velocity.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddit.objectives import FlowConfig
from ddit.settings import ImageSampling, Sampler

NUM_TRAIN_LEVELS = 1000

VelocityFn = Callable[[Tensor, Tensor], Tensor]


class ImageState(NamedTuple):
    """Latents (B, C, H, W) after a step, and the clean latents that were predicted in it."""

    latents: Tensor
    clean: Tensor


OnStep = Callable[[int, int, ImageState], None]
"""Called after every step with (steps done, number of steps, state)."""


def sample_t(
    batch_size: int,
    cfg: FlowConfig,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Times (B,) of the configuration's density, in {0.001, 0.002, ..., 1} before their shift."""
    normal = torch.randn(batch_size, generator=generator, device=generator.device if generator else device)
    return time_of_normal(normal, cfg).to(device)


def time_of_normal(normal: Tensor, cfg: FlowConfig) -> Tensor:
    """The times of `sample_t` for standard normal numbers (B,) drawn elsewhere."""
    assert cfg.shift_from_size is None, "FlowConfig.at_size comes first"
    if cfg.time_density == "logit_normal":
        u = torch.sigmoid(cfg.logit_mean + cfg.logit_std * normal)
    else:
        u = time_of_quantile(torch.special.ndtr(normal), cfg)
    level = (u * NUM_TRAIN_LEVELS).floor().clamp(0, NUM_TRAIN_LEVELS - 1)
    # The published code indexes timesteps that descend from 1000; by symmetry of the density at mean 0 either
    # direction serves, and here a larger mean means more noise.
    level = (level + 1) / NUM_TRAIN_LEVELS
    return level if cfg.shift == 1 else shifted(level, cfg.shift)


def time_of_quantile(u: Tensor, cfg: FlowConfig) -> Tensor:
    """Times (B,) of uniform numbers in [0, 1): SD3's other densities (arXiv 2403.03206, section 3.1)."""
    if cfg.time_density == "mode":
        return 1 - u - cfg.mode_scale * ((math.pi / 2 * u).cos().square() - 1 + u)
    if cfg.time_density == "cosmap":
        return 1 - 1 / ((math.pi / 2 * u).tan() + 1)
    assert cfg.time_density == "uniform"
    return u


def stratified_times(num_samples: int, num_bins: int, *, seed: int = 0) -> Tensor:
    """Times (num_samples, num_bins) in [0, 1]: a sample has one in each bin, and they are spread evenly over it.

    The times of bin k are the middles of `num_samples` equal parts of [k, k + 1] / num_bins, each given to one sample
    by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(num_samples, generator=generator) for _ in range(num_bins)], dim=1)
    return (torch.arange(num_bins) + (places + 0.5) / num_samples) / num_bins


def shifted(t: Tensor, shift: float) -> Tensor:
    """s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def add_noise(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x + t e: (B, C, H, W), (B, C, H, W), (B,) -> (B, C, H, W)."""
    t = t.view(-1, 1, 1, 1).to(latents.dtype)
    return (1 - t) * latents + t * noise


def flow_loss(
    velocity_fn: VelocityFn,
    latents: Tensor,
    *,
    cfg: FlowConfig,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted velocity, (B,) in float32.

    Args:
        latents: (B, C, H, W), clean.
        t, noise: drawn from `generator` unless given.
    """
    if t is None:
        t = sample_t(len(latents), cfg, generator=generator, device=latents.device)
    if noise is None:
        draw_on = generator.device if generator else latents.device
        noise = torch.randn(latents.shape, generator=generator, device=draw_on).to(latents)
    velocity = velocity_fn(add_noise(latents, noise, t), t)
    squared_error = (velocity.float() - (noise.float() - latents.float())).square().flatten(1).mean(1)
    return squared_error * t.float().square() if cfg.weighting == "x0" else squared_error


def sampling_times(cfg: ImageSampling, strength: float = 1.0) -> Tensor:
    """Times of the steps, (num_steps + 1,) in float32, from 1 down to 0; or from the shifted level `strength`."""
    published = cfg.sampler == "euler"
    return flow_sigmas(cfg.num_steps, cfg.shift, from_published_levels=published, start=strength)


def num_evaluations(cfg: ImageSampling) -> int:
    """Evaluations of the model for one image: one a step, two where guidance is on."""
    return sum(1 + cfg.is_guided(t) for t in sampling_times(cfg)[:-1].tolist())


def flow_sigmas(
    num_steps: int, shift: float, *, from_published_levels: bool = True, start: float = 1.0
) -> Tensor:
    """Times of the steps, (num_steps + 1,) in float32, from 1 down to 0; or from the shifted level `start`.

    As diffusers' FlowMatchEulerDiscreteScheduler with a static shift: evenly spaced between the two ends of the
    shifted training levels, shifted by s t / (1 + (s - 1) t), and a final 0. That makes the last step a very short
    one; without `from_published_levels` the times are evenly spaced down to 0, then shifted.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    if not from_published_levels:
        return shifted(torch.linspace(start, 0.0, num_steps + 1, dtype=torch.float64), shift).float()
    last = shifted(torch.tensor(1 / NUM_TRAIN_LEVELS, dtype=torch.float64), shift).item()
    levels = torch.linspace(start, min(last, start), num_steps, dtype=torch.float64)
    return torch.cat([shifted(levels, shift), levels.new_zeros(1)]).float()


class _Evaluation(NamedTuple):
    """What one evaluation found: at time t, in latents (B, C, H, W), a velocity of their shape."""

    t: float
    latents: Tensor
    velocity: Tensor
    guided: bool

    @property
    def clean(self) -> Tensor:
        return self.latents - self.t * self.velocity


class Known(NamedTuple):
    """Latents that are given, to be changed or completed.

    latents: (B, C, H, W), clean.
    keep: (B, 1, H, W), True where they stay as they are; None: nowhere.
    strength: level at which sampling starts, above 0 and at most 1. Below 1 it starts from these latents with noise, at
        the time s strength / (1 + (s - 1) strength) with the configuration's shift s.
    """

    latents: Tensor
    keep: Tensor | None = None
    strength: float = 1.0


def sample_latents(
    velocity_fn: VelocityFn,
    noise: Tensor,
    *,
    cfg: ImageSampling,
    known: Known | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Integrates from noise (t = 1) to latents (t = 0): (B, C, H, W) -> the same.

    Where guidance is on, `velocity_fn` gets a doubled batch, the unconditional half first; elsewhere it gets B rows,
    to be taken as the conditional ones. The state is kept in float32.

    What is known and to be kept moves on the straight line from its noise to its latents, so that `velocity_fn` sees
    all of an image at one time; it ends there exactly.
    """
    times = sampling_times(cfg, 1.0 if known is None else known.strength)
    latents, before = noise.float() if known is None else _noised_at(times[0], known.latents, noise), None

    def held(x: Tensor, t: Tensor) -> Tensor:
        """`x` with what is kept as it is at time t."""
        if known is None or known.keep is None:
            return x
        return torch.where(known.keep, _noised_at(t, known.latents, noise), x)

    for step in range(cfg.num_steps):
        now = _evaluate(velocity_fn, latents, times[step], cfg, noise.dtype)
        velocity = now.velocity
        # Guided and unguided velocities belong to different flows: where one follows the other, the step is Euler's.
        if before is not None and cfg.sampler != "euler" and before.guided == now.guided:
            velocity = velocity + _second_order(cfg.sampler, now, before, times[step + 1].item())
        latents = held(latents + (times[step + 1] - times[step]).item() * velocity, times[step + 1])
        before = now
        if on_step is not None:
            on_step(step + 1, cfg.num_steps, ImageState(latents, held(now.clean, times[-1])))
    return latents.to(noise.dtype)


def _noised_at(t: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    return add_noise(latents.float(), noise.float(), t.to(noise.device).expand(len(noise)))


def _evaluate(
    velocity_fn: VelocityFn, latents: Tensor, t: Tensor, cfg: ImageSampling, dtype: torch.dtype
) -> _Evaluation:
    guided = cfg.is_guided(t.item())
    x = torch.cat([latents, latents]) if guided else latents
    velocity = velocity_fn(x.to(dtype), t.to(x.device).expand(len(x))).float()
    if guided:
        unconditional, conditional = velocity.chunk(2)
        velocity = unconditional + cfg.guidance_scale * (conditional - unconditional)
        if cfg.guidance_rescale > 0:
            ratio = conditional.flatten(1).std(1) / velocity.flatten(1).std(1)
            velocity = velocity * (1 + cfg.guidance_rescale * (ratio - 1)).view(-1, 1, 1, 1)
    return _Evaluation(t.item(), latents, velocity, guided)


def _second_order(sampler: Sampler, now: _Evaluation, before: _Evaluation, until: float) -> Tensor:
    """What to add to the velocity so that the step from `now` to the time `until` is of second order."""
    if sampler == "adams":
        ratio = (until - now.t) / (now.t - before.t)
        return ratio / 2 * (now.velocity - before.velocity)
    # DPM-Solver++ 2M steps to (t'/t) x + (1 - t'/t) D, which is Euler's step with the velocity (x - D) / t, where D is
    # the clean latents extrapolated in log((1 - t) / t). That is infinite at both ends: there D is as predicted, and
    # the error of N steps falls like log(N) / N^2.
    if before.t >= 1 or until <= 0:
        return torch.zeros_like(now.velocity)
    ratio = (_log_snr(until) - _log_snr(now.t)) / (_log_snr(now.t) - _log_snr(before.t))
    return ratio / (2 * now.t) * (before.clean - now.clean)


def _log_snr(t: float) -> float:
    return math.log((1 - t) / t)
