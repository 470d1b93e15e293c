"""Drawing pictures: what can be told about it, and the engine under `Pipeline.generate`, `inpaint` and `vary`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from PIL import Image
from torch import Tensor

from ddit.diffusion.flow import ImageSampling, Known, Sampler, sample_latents
from ddit.images import to_images, to_tensor
from ddit.inference.batching import StepCallback, as_list, matched, parts, sample_generators, sample_seeds
from ddit.inference.editing import Grid, Originals
from ddit.model import DualDiT
from ddit.model.folders import ModelSettings

if TYPE_CHECKING:  # transformers and diffusers take seconds to import
    from ddit.model.encoders import ImageCodec, TextCodec
    from ddit.prompts import PromptStyle


class DrawOptions(TypedDict, total=False):
    """What every verb that draws can be told; None, or none given, is the model's own setting.

    seed: of the first sample (0); the next ones count on from it. Or one a sample.
    num_steps, guidance_scale: by default the sampler's; a scale of at most 1 is no guidance.
    sampler: by default the model's settings; "paper" for the published ones, a solver's name for that solver, or a
        `flow.ImageSampling` with everything.
    height, width: in pixels, by default the model's.
    negative_prompt: what guidance leads away from, one for all or one a sample; by default nothing.
    batch_size: pictures drawn at a time (16).
    on_step: called after every step.
    """

    seed: int | Sequence[int]
    num_steps: int | None
    guidance_scale: float | None
    sampler: Sampler | ImageSampling | None
    height: int | None
    width: int | None
    negative_prompt: str | Sequence[str] | None
    batch_size: int
    on_step: StepCallback | None


@dataclass(frozen=True, kw_only=True)
class DrawCall:
    """`DrawOptions`, resolved."""

    seed: int | Sequence[int] = 0
    num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: Sampler | ImageSampling | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | Sequence[str] | None = None
    batch_size: int = 16
    on_step: StepCallback | None = None


@dataclass
class ImageGenerator:
    """Draws the pictures of one call."""

    transformer: DualDiT
    image_codec: "ImageCodec"
    text_codec: "TextCodec"
    settings: ModelSettings
    style: "PromptStyle"

    @torch.inference_mode()
    def draw(
        self,
        prompts: list[str],
        call: DrawCall,
        originals: Originals | None = None,
        *,
        draws: Sequence[int] | None = None,
    ) -> list[Image.Image]:
        """A picture a prompt, each from the noise of its own generator.

        originals: what they are made of, one a prompt (`grid`).
        draws: which noise of its generator each takes, from 0; by default the first.

        Raises:
            ValueError: on an empty prompt, a size that the model cannot draw, or an option out of range.
        """
        grid = self.grid(call)
        cfg = self._config(call, grid)
        ids, negative_ids = self._token_ids(prompts, call.negative_prompt)
        times = cfg.times_from(1.0 if originals is None else originals.strength)
        is_guided = any(cfg.is_guided(t) for t in times[:-1].tolist())
        shape = (self.image_codec.channels, grid.rows, grid.columns)
        seeds = sample_seeds(call.seed, len(prompts))
        images: list[Image.Image] = []
        for part, step in parts(len(prompts), call.batch_size, cfg.num_steps, call.on_step):
            states = self._states(torch.cat([negative_ids[part], ids[part]]) if is_guided else ids[part])
            noise = draw_noise(seeds[part], shape, draws and draws[part]).to(states.device)
            known = None if originals is None else self._known(originals, part)
            latents = sample_latents(self._velocity_fn(states), noise, cfg=cfg, known=known, on_step=step)
            images += self.decode(latents)
        return images

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, H, W)."""
        return to_images(self.image_codec.decode(latents.to(self._dtype)))

    def grid(self, call: DrawCall) -> Grid:
        """The cells of the pictures that a call draws. Raises ValueError for a size that the model cannot draw."""
        return Grid(*self.latent_size(call.height, call.width), self.image_codec.downsample)

    def _config(self, call: DrawCall, grid: Grid) -> ImageSampling:
        """The model's way of drawing with what is told of another, for that size."""
        cfg = self.settings.but(call.sampler, num_steps=call.num_steps, guidance_scale=call.guidance_scale)
        return cfg.at_size(grid.rows * grid.columns * grid.cell**2, self.settings.image_size**2)

    def _known(self, originals: Originals, part: slice) -> Known:
        """What is given of some samples' latents, each picture encoded once."""
        pictures = originals.pictures[part]
        numbers = {id(picture): number for number, picture in enumerate(pictures)}
        distinct = {key: place for place, key in enumerate(numbers)}
        latents = self.image_codec.encode(to_tensor([pictures[number] for number in numbers.values()]))
        index = torch.tensor([distinct[id(picture)] for picture in pictures], device=latents.device)
        keep = originals.keep(part)
        latents = latents[index].to(self._device)
        return Known(latents, None if keep is None else keep.to(self._device), originals.strength)

    def latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the latents for a picture's in pixels, which must be one that the model can take."""
        config, downsample = self.transformer.config, self.image_codec.downsample
        unit = downsample * config.patch_size
        largest = unit * config.pos_embed_max_size
        sizes = []
        for name, given in (("height", height), ("width", width)):
            pixels = self.settings.image_size if given is None else given
            if pixels < unit or pixels % unit or pixels > largest:
                below = min(max(pixels // unit, 1) * unit, largest)
                near = below if below == largest else f"{below} or {below + unit}"
                raise ValueError(
                    f"{name} {pixels} is not a multiple of {unit} between {unit} and {largest}: try {near}"
                )
            sizes.append(pixels // downsample)
        return sizes[0], sizes[1]

    @property
    def _device(self) -> torch.device:
        return self.transformer.context_embedder.weight.device

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.context_embedder.weight.dtype

    def _token_ids(
        self, prompts: list[str], negative_prompt: str | Sequence[str] | None
    ) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) of the prompts, and of what guidance leads away from."""
        from ddit.prompts import empty_prompt, t2i_prompt

        length = self.settings.prompt_length
        ids = t2i_prompt(self.text_codec, prompts, length, style=self.style)
        if negative_prompt is None:
            return ids, empty_prompt(self.text_codec, len(prompts), length, style=self.style)
        negatives = matched(as_list(negative_prompt), len(prompts), "negative prompts", "prompts")
        return ids, t2i_prompt(self.text_codec, negatives, length, style=self.style)

    def _states(self, ids: Tensor) -> Tensor:
        """States (B, L, D) of prompts' ids (B, L), each prompt encoded once however often it stands there.

        That is all of the text side that pictures and steps can share exactly: in the blocks the text attends to the
        noisy picture, also with `image_attends_text=False`, which is about pictures that are read.
        """
        distinct, which = torch.unique(ids, dim=0, return_inverse=True)
        return self.text_codec.states(distinct)[which.to(self._device)]

    def _velocity_fn(self, states: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Velocities under states (B, L, D); of fewer rows than B, under the last states, the conditional ones."""

        def velocity(latents: Tensor, t: Tensor) -> Tensor:
            given = states[-len(latents) :]
            drawn = self.transformer(latents.to(self._dtype), t, given, num_t2i=len(latents)).velocity
            assert drawn is not None
            return drawn

        return velocity


def draw_noise(seeds: Sequence[int], shape: Sequence[int], draws: Sequence[int] | None = None) -> Tensor:
    """Noise of each seed's generator, (B, *shape) on the CPU: the first, or that of the number given, from 0."""
    noise = []
    for generator, number in zip(sample_generators(seeds), draws or [0] * len(seeds), strict=True):
        for _ in range(number):
            torch.randn(shape, generator=generator)
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise)
