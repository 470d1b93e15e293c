"""What is compared: models of ours with random weights, and the rivals of the same size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sampling.published import Vae
from ddit.images import fit_image, to_tensor
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.small_text import build_tokenizer, tiny_t5
from ddit.pipeline import Pipeline
from ddit.prompts import MINI, answer_prompt, caption_prompt, empty_prompt, t2i_prompt
from ddit.schema import to_data
from ddit.settings import ImageSampling, ModelSettings

SIDE, CHANNELS, PROMPT_LENGTH = 16, 16, 64  # patches of 2 x 2: 64 image tokens
SIZES: dict[str, tuple[int, int, int, int]] = {"20M": (256, 8, 256, 4), "300M": (1024, 8, 512, 8)}
"""Width and depth of the transformer, in which heads are of 64; width and depth of T5."""


def random_pipeline(size: str, vocab: int) -> Pipeline:
    """A model of random weights with no zero-initialised path, which fills the whole window of a text."""
    width, depth, text_width, text_depth = SIZES[size]
    tokenizer = build_tokenizer(["q:", "a:", *(f"w{i}" for i in range(vocab - 9))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = tiny_t5(
            vocab, d_model=text_width, num_layers=text_depth, num_heads=text_width // 64, d_ff=2 * text_width
        )
        autoencoder = PatchAutoencoder(latent_channels=CHANNELS)
    codec = TextCodec(tokenizer, encoder)
    config = DualDiTConfig(
        in_channels=CHANNELS, patch_size=2, hidden_size=width, depth=depth, num_heads=width // 64,
        text_dim=text_width, vocab_size=vocab, sample_size=SIDE, pos_embed_max_size=SIDE,
    )  # fmt: skip
    transformer = DualDiT(config)
    g = torch.Generator().manual_seed(0)
    transformer.init_weights(g)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))
        transformer.text_proj_out.bias[codec.eos_token_id] = -1e4
    settings = ModelSettings(
        prompt_style=to_data(MINI), image_size=SIDE * 4, prompt_length=PROMPT_LENGTH, text_length=128
    )
    return Pipeline(transformer, ImageCodec(autoencoder), codec, settings)


def isolated(pipeline: Pipeline) -> Pipeline:
    """The same tensors in a model whose image side does not see the text: as fast as a trained one, but not trained."""
    transformer = DualDiT(replace(pipeline.transformer.config, image_attends_text=False))
    transformer.load_state_dict(pipeline.transformer.state_dict(), assign=True)
    return Pipeline(transformer, pipeline.image_codec, pipeline.text_codec, pipeline.settings)


def in_bfloat16(pipeline: Pipeline) -> Pipeline:
    """A copy."""
    return copy.deepcopy(pipeline).to(dtype=torch.bfloat16)


def noise_images(count: int, side: int) -> list[Image.Image]:
    g = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


class Autoregressive:
    """A decoder of the transformer's width and depth with a cache of keys and values, given the same latents.

    Its layers have as many weights as one stream: the gated feed-forward is of 8/3 of the width, the plain one of 4.
    """

    def __init__(self, pipeline: Pipeline, dtype: torch.dtype) -> None:
        self.ours, config = pipeline, pipeline.transformer.config
        width, patch = config.hidden_size, config.patch_size
        llama = LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=width, num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads, intermediate_size=round(width * 8 / 3 / 64) * 64,
            max_position_embeddings=1024, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model: Any = LlamaForCausalLM(llama).eval().requires_grad_(False)
            self.model.to(dtype=dtype)
            self.embed_image = nn.Linear(config.in_channels * patch**2, width).to(dtype)

    @torch.inference_mode()
    def generate(self, images: Sequence[Image.Image], questions: Sequence[str] | None, length: int) -> Tensor:
        """The likeliest `length` tokens after each question (all as long), or the caption's prefix: ids (B, length)."""
        ours, dtype = self.ours, self.embed_image.weight.dtype
        side, patch = ours.settings.image_size, ours.transformer.config.patch_size
        latents = ours.image_codec.encode(to_tensor([fit_image(image, side, side) for image in images]))
        patches = nn.functional.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)
        if questions is None:
            prompt = caption_prompt(ours.text_codec, len(images), 64, style=ours.style)
        else:
            prompt = answer_prompt(ours.text_codec, questions, 64, style=ours.style)
        given = prompt.input_ids[:, : int((~prompt.answer_mask[0]).sum())]
        tokens = self.model.get_input_embeddings()(given)
        embedded = torch.cat([self.embed_image(patches.to(dtype)), tokens], dim=1)
        return self.model.generate(
            inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            max_new_tokens=length, min_new_tokens=length, do_sample=False,
        )  # fmt: skip


class StableDiffusion3:
    """diffusers' own SD3 pipeline: a transformer of the same size, our autoencoder and T5, CLIP's part zero."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.ours, config = pipeline, pipeline.transformer.config
        self.pooled = 64
        self.model = SD3Transformer2DModel(
            sample_size=config.sample_size, patch_size=config.patch_size, in_channels=config.in_channels,
            num_layers=config.depth, attention_head_dim=config.hidden_size // config.num_heads,
            num_attention_heads=config.num_heads, joint_attention_dim=config.text_dim,
            caption_projection_dim=config.hidden_size, pooled_projection_dim=self.pooled,
            out_channels=config.in_channels, pos_embed_max_size=config.pos_embed_max_size,
        ).eval().requires_grad_(False)  # fmt: skip
        parts: dict[str, Any] = dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        )
        parts |= {
            "transformer": self.model, "vae": Vae(pipeline.image_codec),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=ImageSampling().shift),
        }  # fmt: skip
        self.pipe: Any = StableDiffusion3Pipeline(**parts)
        self.pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], *, seed: int, num_steps: int) -> list[Image.Image]:
        ours, n = self.ours, len(prompts)
        codec, length = ours.text_codec, ours.settings.prompt_length
        side = ours.settings.image_size
        found = self.pipe(
            height=side, width=side, num_inference_steps=num_steps,
            guidance_scale=ImageSampling().guidance_scale,
            prompt_embeds=codec.states(t2i_prompt(codec, prompts, length, style=ours.style)),
            negative_prompt_embeds=codec.states(empty_prompt(codec, n, length, style=ours.style)),
            pooled_prompt_embeds=torch.zeros(n, self.pooled),
            negative_pooled_prompt_embeds=torch.zeros(n, self.pooled),
            generator=torch.Generator().manual_seed(seed), output_type="pil",
        )  # fmt: skip
        return found.images
