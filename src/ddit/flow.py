"""The image process: rectified flow. Time density, noising, loss, schedule, Euler sampler, guidance.

t in [0, 1]; t = 1 is pure noise. x_t = (1 - t) x + t e with e ~ N(0, I); the velocity to regress is e - x.
Nothing here knows a model: a `VelocityFn` maps noisy latents (B, C, H, W) and times (B,) to a velocity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NUM_TRAIN_LEVELS = 1000

VelocityFn = Callable[[Tensor, Tensor], Tensor]
StepCallback = Callable[[int, int, Tensor], None]
"""Called after every step with (steps done, number of steps, state)."""


@dataclass(frozen=True)
class FlowConfig:
    """Training objective of the image process.

    Attributes:
        weighting: "velocity" regresses the velocity, as in the paper; "x0" is the published code's loss on
            x_t - t v, which is the velocity loss times t^2.
        logit_mean, logit_std: logit-normal density of t, on 1000 discrete levels (SD3: 0, 1).
    """

    weighting: Literal["velocity", "x0"] = "velocity"
    logit_mean: float = 0.0
    logit_std: float = 1.0


def sample_t(
    batch_size: int,
    cfg: FlowConfig,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Times (B,) in {0.001, 0.002, ..., 1}: logit-normal u, on SD3's 1000 levels (u = 0 is the noisiest)."""
    normal = torch.randn(batch_size, generator=generator, device=generator.device if generator else device)
    return time_of_normal(normal, cfg).to(device)


def time_of_normal(normal: Tensor, cfg: FlowConfig) -> Tensor:
    """The times of `sample_t` for standard normal numbers (B,) drawn elsewhere."""
    u = torch.sigmoid(cfg.logit_mean + cfg.logit_std * normal)
    level = (u * NUM_TRAIN_LEVELS).floor().clamp(max=NUM_TRAIN_LEVELS - 1)
    # The published code indexes timesteps that descend from 1000; by symmetry of the density at mean 0 either
    # direction serves, and here a larger mean means more noise.
    return (level + 1) / NUM_TRAIN_LEVELS


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


def flow_sigmas(num_steps: int, shift: float) -> Tensor:
    """Times of the Euler steps, (num_steps + 1,) in float32, from 1 down to 0.

    As diffusers' FlowMatchEulerDiscreteScheduler with a static shift: evenly spaced between the two ends of the
    shifted training levels, shifted by s t / (1 + (s - 1) t), and a final 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    def shifted(level: Tensor) -> Tensor:
        return shift * level / (1 + (shift - 1) * level)

    last = shifted(torch.tensor(1 / NUM_TRAIN_LEVELS, dtype=torch.float64)).item()
    levels = torch.linspace(1.0, last, num_steps, dtype=torch.float64)
    return torch.cat([shifted(levels), levels.new_zeros(1)]).float()


def sample_latents(
    velocity_fn: VelocityFn,
    noise: Tensor,
    *,
    num_steps: int,
    guidance_scale: float = 1.0,
    shift: float = 3.0,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Integrates from noise (t = 1) to latents (t = 0) by Euler steps: (B, C, H, W) -> the same.

    With a guidance scale g above 1, `velocity_fn` gets a doubled batch, the unconditional half first, and the
    step uses v_0 + g (v_c - v_0). The state is kept in float32.
    """
    sigmas = flow_sigmas(num_steps, shift)
    guided = guidance_scale > 1
    latents = noise.float()
    for step in range(num_steps):
        x = torch.cat([latents, latents]) if guided else latents
        t = sigmas[step].to(x.device).expand(len(x))
        velocity = velocity_fn(x.to(noise.dtype), t).float()
        if guided:
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + guidance_scale * (conditional - unconditional)
        latents = latents + (sigmas[step + 1] - sigmas[step]).item() * velocity
        if on_step is not None:
            on_step(step + 1, num_steps, latents)
    return latents.to(noise.dtype)
