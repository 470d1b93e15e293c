"""What users of diffusers type on a pipeline, beside its verbs; other names of theirs are in `habits`."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from ddit.habits import missing_attribute
from ddit.inference.batching import Samples, Seed, StepCallback, as_list, drawn_seeds, repeated
from ddit.inference.inputs import verb
from ddit.model.bundle import ModelBundle
from ddit.settings import ImageOptions


class GeneratedImages(NamedTuple):
    """What calling a pipeline gives, as in diffusers: `pipeline(prompt).images[0]`; with the seed of each image."""

    images: Any
    seeds: list[int]


class DiffusersStyle(ModelBundle):
    """A bundle that is called as diffusers' pipelines are; a subclass generates."""

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Samples[Image.Image]:
        """An image a prompt."""
        raise NotImplementedError

    @verb(ImageOptions)
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        best_of: int = 1,
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> GeneratedImages:
        """`generate` under diffusers' names: `pipeline(prompt).images[0]`.

        Args:
            prompt: one or many.
            num_inference_steps: num_steps.
            num_images_per_prompt: images in a row for each prompt, from seeds in a row.
            generator: draws the seed of the first sample; of a list, each that of its own sample. A generator that is
                used again draws another one. The noise is not diffusers', so that its images are not either.
            output_type: "pil" images, "np" an array (B, H, W, 3) or "pt" a tensor (B, 3, H, W), float32 from 0 to 1.
            best_of, seed, on_step: as in `generate`.

        Raises:
            ValueError, TypeError: as `generate`; ValueError on another output_type.
        """
        if output_type not in ("pil", "np", "pt"):
            hint = "; on_step is given the latents, step.state.latents" if output_type == "latent" else ""
            raise ValueError(f"output_type must be pil, np or pt, got {output_type!r}{hint}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        prompts = repeated(as_list(prompt, "prompt"), num_images_per_prompt)
        negatives = options.get("negative_prompt")
        if negatives is not None and len(negatives := as_list(negatives, "negative_prompt")) > 1:
            options["negative_prompt"] = repeated(negatives, num_images_per_prompt)
        if num_inference_steps is not None:
            if options.get("num_steps") is not None:
                raise TypeError("num_inference_steps is num_steps: give one of them")
            options["num_steps"] = num_inference_steps
        if generator is not None:
            seed = drawn_seeds(generator)
        images = self.generate(prompts, best_of=best_of, seed=seed, on_step=on_step, **options)
        if output_type == "pil":
            return GeneratedImages(images, images.seeds)
        pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
        made = pixels if output_type == "np" else torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return GeneratedImages(made, images.seeds)

    def set_progress_bar_config(self, **config: Any) -> None:
        """Does nothing: no verb shows a bar; `on_step` is called after every step."""

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)
