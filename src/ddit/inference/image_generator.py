"""Images from prompts: the engine under `Pipeline.generate`, `inpaint` and `vary`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ddit.diffusion.flow import Known, sample_latents, sampling_times
from ddit.images import to_images, to_tensor
from ddit.inference.batching import (
    Seed,
    StepCallback,
    as_list,
    matched,
    parts,
    sample_generators,
    sample_seeds,
)
from ddit.inference.callables import velocity_fn
from ddit.inference.editing import Grid, Originals
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.prompts import PromptStyle, empty_prompt, t2i_prompt
from ddit.settings import ImageOptions, ImageSize, ModelSettings


@dataclass
class ImageGenerator:
    """Generates the images of one call."""

    transformer: DualDiT
    image_codec: ImageCodec
    text_codec: TextCodec
    settings: ModelSettings
    style: PromptStyle

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[str],
        options: ImageOptions,
        originals: Originals | None = None,
        *,
        seed: Seed = 0,
        candidates: Sequence[int] | None = None,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """An image a prompt, each from the noise of its own generator.

        originals: the images to be changed, one a prompt (`grid`).
        candidates: which noise of its generator each takes, from 0; by default the first.

        Raises:
            ValueError: on an empty prompt, or a size that the model cannot generate.
        """
        grid = self.grid(options.size)
        num_pixels = grid.rows * grid.columns * grid.cell**2
        cfg = options.sampling.at_size(num_pixels, self.settings.image_size**2)
        ids, negative_ids = self._token_ids(prompts, options.negative_prompt)
        times = sampling_times(cfg, 1.0 if originals is None else originals.strength)
        is_guided = any(cfg.is_guided(t) for t in times[:-1].tolist())
        shape = (self.image_codec.channels, grid.rows, grid.columns)
        seeds = sample_seeds(seed, len(prompts))
        images: list[Image.Image] = []
        for part, step in parts(len(prompts), options.batch_size, cfg.num_steps, on_step):
            states = self._states(torch.cat([negative_ids[part], ids[part]]) if is_guided else ids[part])
            noise = make_noise(seeds[part], shape, candidates and candidates[part]).to(states.device)
            known = None if originals is None else self._known(originals, part)
            velocity = velocity_fn(self.transformer, states)
            latents = sample_latents(velocity, noise, cfg=cfg, known=known, on_step=step)
            images += self.decode(latents)
        return images

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Images of latents (B, C, H, W)."""
        return to_images(self.image_codec.decode(latents.to(self.transformer.context_embedder.weight.dtype)))

    def grid(self, size: ImageSize) -> Grid:
        """The latents' cells of images of a size. Raises ValueError for one that the model cannot take."""
        return Grid(*self.latent_size(size), self.image_codec.downsample)

    def latent_size(self, size: ImageSize) -> tuple[int, int]:
        """Height and width of the latents for an image's in pixels, which must be one that the model can take."""
        config, downsample = self.transformer.config, self.image_codec.downsample
        unit = downsample * config.patch_size
        largest = unit * config.pos_embed_max_size
        sizes = []
        for name, given in (("height", size.height), ("width", size.width)):
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

    def _known(self, originals: Originals, part: slice) -> Known:
        """What is given of some samples' latents, each image encoded once."""
        images = originals.images[part]
        numbers = {id(image): number for number, image in enumerate(images)}
        distinct = {key: place for place, key in enumerate(numbers)}
        latents = self.image_codec.encode(to_tensor([images[number] for number in numbers.values()]))
        index = torch.tensor([distinct[id(image)] for image in images], device=latents.device)
        keep = originals.keep(part)
        latents = latents[index].to(self._device)
        return Known(latents, None if keep is None else keep.to(self._device), originals.strength)

    def _token_ids(
        self, prompts: list[str], negative_prompt: str | Sequence[str] | None
    ) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) of the prompts, and of what guidance leads away from."""
        length = self.settings.prompt_length
        ids = t2i_prompt(self.text_codec, prompts, length, style=self.style)
        if negative_prompt is None:
            return ids, empty_prompt(self.text_codec, len(prompts), length, style=self.style)
        negatives = matched(as_list(negative_prompt), len(prompts), "negative prompts", "prompts")
        negative_ids = empty_prompt(self.text_codec, len(prompts), length, style=self.style)
        rows = [row for row, text in enumerate(negatives) if text]  # "" is the empty prompt
        if rows:
            given = [negatives[row] for row in rows]
            negative_ids[rows] = t2i_prompt(self.text_codec, given, length, style=self.style)
        return ids, negative_ids

    def _states(self, ids: Tensor) -> Tensor:
        """States (B, L, D) of prompts' ids (B, L), each prompt encoded once.

        That is all of the text side that images and steps can share exactly: in the blocks the text attends to the
        noisy image, also with `image_attends_text=False`, which concerns i2t samples.
        """
        distinct, which = torch.unique(ids, dim=0, return_inverse=True)
        return self.text_codec.states(distinct)[which.to(self._device)]


def make_noise(seeds: Sequence[int], shape: Sequence[int], candidates: Sequence[int] | None = None) -> Tensor:
    """Noise of each seed's generator, (B, *shape) on the CPU: the first, or that of the number given, from 0."""
    noise = []
    for generator, number in zip(sample_generators(seeds), candidates or [0] * len(seeds), strict=True):
        for _ in range(number):
            torch.randn(shape, generator=generator)
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise)
