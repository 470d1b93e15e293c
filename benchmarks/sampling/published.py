"""The published pipeline, from the user's own checkout, with the tensors of one of our pipelines."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from ddit.images import fit_image, to_images, to_tensor
from ddit.inference.batching import sample_generators
from ddit.model.encoders import ImageCodec
from ddit.pipeline import Pipeline
from ddit.prompts import answer_prompt, caption_prompt, empty_prompt, t2i_prompt
from ddit.settings import ImageSampling

TOLERANCE = 1e-4


class Vae:
    """An autoencoder of ours with the interface that diffusers' pipelines need."""

    def __init__(self, codec: ImageCodec) -> None:
        levels = codec.downsample.bit_length()
        self.dtype = torch.float32
        self.config = SimpleNamespace(
            scaling_factor=codec.scale, shift_factor=codec.shift, block_out_channels=[0] * levels,
            latent_channels=codec.channels,
        )  # fmt: skip
        self._autoencoder = codec.autoencoder
        self.encode = codec.autoencoder.encode

    def decode(self, latents: Tensor, return_dict: bool = True, generator: Any = None) -> tuple[Tensor]:
        return (self._autoencoder.decode(latents).sample,)


class Published:
    """The published pipeline with the weights of `pipeline`, by name, and its frozen encoders.

    Raises:
        ValueError: if there is no such checkout, or if it cannot hold this model.
    """

    def __init__(self, checkout: str, pipeline: Pipeline) -> None:
        with _importing(checkout):
            try:
                from sd3_modules.dual_diff_pipeline import (  # type: ignore[import-not-found]
                    DualDiffSD3Pipeline,
                )
                from sd3_modules.sd3_model import SD3JointModelFlexible  # type: ignore[import-not-found]
            except ModuleNotFoundError as error:
                raise ValueError(f"'{checkout}' is no checkout of the published code: {error}") from None
        self.ours, codec, config = pipeline, pipeline.text_codec, pipeline.transformer.config
        if not config.image_attends_text:
            raise ValueError("the published code has no isolated image side: give it the joint model")
        self.model = SD3JointModelFlexible(
            config.vocab_size, sample_size=config.sample_size, patch_size=config.patch_size,
            in_channels=config.in_channels, num_layers=config.depth,
            attention_head_dim=config.hidden_size // config.num_heads, num_attention_heads=config.num_heads,
            joint_attention_dim=config.text_dim, caption_projection_dim=config.hidden_size,
            out_channels=config.in_channels, pos_embed_max_size=config.pos_embed_max_size,
        ).eval().requires_grad_(False)  # fmt: skip
        self.model.load_state_dict(pipeline.transformer.state_dict(), assign=True)
        with _quiet():
            self.pipe = DualDiffSD3Pipeline(
                transformer=self.model,
                scheduler=FlowMatchEulerDiscreteScheduler(shift=ImageSampling().shift),
                vae=Vae(pipeline.image_codec),
                text_encoder=codec.encoder,
                tokenizer=codec.tokenizer,
            )
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.text_sampler.mask_index = codec.mask_token_id  # 32099 in their code

    @torch.no_grad()
    def sample_text(
        self, image: Image.Image, question: str | None, *, window: int, num_steps: int, seed: int
    ) -> str:
        """An answer, or without a question a caption, by their sampler: one at a time, as their pipeline does it."""
        codec, style = self.ours.text_codec, self.ours.style
        if question is None:
            ids, answer_mask = caption_prompt(codec, 1, window, style=style)
        else:
            ids, answer_mask = answer_prompt(codec, [question], window, style=style)
        side, sampler = self.ours.settings.image_size, self.pipe.text_sampler
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels = to_tensor([fit_image(image, side, side)])
            sampler.register_condition(self.pipe.prepare_image_inputs(pixels, "cpu"), ids, ~answer_mask)
            ids = sampler.sample(window, num_steps, device="cpu")
        return codec.decode(ids[0][answer_mask[0]])

    @torch.no_grad()
    def sample_images(
        self, prompts: Sequence[str], *, seed: int, num_steps: int = ImageSampling().num_steps
    ) -> list[Image.Image]:
        """Images in their setting, all in one batch, of our prompts' ids and our noise."""
        ours = self.ours
        codec, length, side = ours.text_codec, ours.settings.prompt_length, ours.settings.image_size
        rows = side // ours.image_codec.downsample
        generators = sample_generators(range(seed, seed + len(prompts)))
        shape = (ours.image_codec.channels, rows, rows)
        with _quiet():
            self.pipe.set_sampling_mode("t2i")
            images = self.pipe(
                height=side, width=side, num_inference_steps=num_steps,
                guidance_scale=ImageSampling().guidance_scale, prompt=None,
                prompt_embeds=codec.states(t2i_prompt(codec, prompts, length, style=ours.style)),
                negative_prompt_embeds=codec.states(
                    empty_prompt(codec, len(prompts), length, style=ours.style)
                ),
                latents=torch.stack([torch.randn(shape, generator=each) for each in generators]),
            )  # fmt: skip
        return to_images(images.clamp(-1, 1))

    @torch.no_grad()
    def check_same(self) -> float:
        """The largest difference d / (1 + |x|) of both heads' outputs x on the same random input.

        Raises:
            ValueError: if that is more than TOLERANCE: then the weights or the models are not the same.
        """
        codec, model = self.ours.text_codec, self.ours.transformer
        g, config = torch.Generator().manual_seed(0), model.config
        side = config.sample_size
        latents = torch.randn(2, config.in_channels, side, side, generator=g)
        states = codec.states(torch.randint(0, codec.vocab_size, (2, 12), generator=g))
        worst = 0.0
        for t, index in ((0.0, 1), (0.7, 0)):  # i2t and t2i
            times = torch.full((2,), t)
            with _quiet():
                theirs = self.model(
                    hidden_states=latents, timestep=1000 * times, encoder_hidden_states=states
                )[index]
            out = model(latents, times, states, num_t2i=0 if index else 2)
            ours = out.logits if index else out.velocity
            worst = max(worst, ((ours - theirs).abs() / (1 + theirs.abs())).max().item())
        if not worst <= TOLERANCE:
            raise ValueError(f"the published model and ours differ by {worst:.1e} on the same input")
        return worst


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its autocast is CUDA's, under a name that torch has replaced
        yield


@contextmanager
def _importing(checkout: str) -> Iterator[None]:
    """The checkout can be imported; also without torchvision, which it needs only for what is not used here."""
    import diffusers.loaders
    import diffusers.models.transformers  # noqa: F401  # both ask whether torchvision is there: before the stand-in is

    names = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
    missing = names if importlib.util.find_spec("torchvision") is None else []
    sys.path.insert(0, checkout)
    sys.modules.update({name: MagicMock() for name in missing})
    try:
        with _quiet():
            yield
    finally:
        sys.path.remove(checkout)
        for name in missing:
            del sys.modules[name]
