"""Tiny random models made on the fly, for the tests of what loads, saves and uses them."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

from ddit.model import DualDiT, DualDiTConfig
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.small_text import build_tokenizer, tiny_t5
from ddit.pipeline import Pipeline
from ddit.prompts import MINI
from ddit.settings import ImageSampling, ModelSettings

WORDS = "a photo of the dog cat car red blue green is there what color how many one two three yes no q: a:"


def randomize(module: torch.nn.Module, seed: int, scale: float = 0.2) -> None:
    """Fills every parameter with noise, so that no path is dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def tiny_image_codec(latent_channels: int = 4) -> ImageCodec:
    """An AutoencoderKL that reduces each side by 4."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=latent_channels,
            norm_num_groups=4,
            layers_per_block=1,
            scaling_factor=1.5,
            shift_factor=0.1,
        )
    return ImageCodec(autoencoder)


def tiny_text_codec() -> TextCodec:
    tokenizer = build_tokenizer(WORDS.split())
    with torch.random.fork_rng():
        torch.manual_seed(2)
        encoder = tiny_t5(len(tokenizer), d_model=24, num_layers=1, num_heads=2, d_ff=32)
    return TextCodec(tokenizer, encoder)


def tiny_pipeline(**changes) -> Pipeline:
    """A pipeline of random weights that generates 32-pixel images; `changes` go to the transformer's config."""
    images, text = tiny_image_codec(), tiny_text_codec()
    sizes = {
        "in_channels": 4,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 4,
        "text_dim": text.width,
        "vocab_size": text.vocab_size + 3,
        "sample_size": 8,
        "pos_embed_max_size": 6,
    }
    transformer = DualDiT(DualDiTConfig(**{**sizes, **changes}))
    randomize(transformer, 3, scale=0.3)
    with torch.no_grad():
        transformer.text_proj_out.bias[text.eos_token_id] -= 5  # texts of some length
    settings = ModelSettings(
        prompt_style=asdict(MINI),
        image_size=32,
        prompt_length=10,
        text_length=12,
        image_sampling=ImageSampling(num_steps=3, guidance_scale=2.0),
        caption_steps=4,
        answer_steps=3,
    )
    return Pipeline(transformer, images, text, settings)


SD3_SIZES = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 6,
}
SD35_SIZES = {**SD3_SIZES, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}


def save_sd3_folder(folder: Path, sizes: dict) -> SD3Transformer2DModel:
    """Writes a pipeline folder laid out like SD3's, without the parts that D-DiT has no use for."""
    sd3 = SD3Transformer2DModel(**sizes)
    randomize(sd3, 4)
    sd3.save_pretrained(folder / "transformer")
    tiny_image_codec().save_pretrained(folder / "vae")
    tiny_text_codec().save_pretrained(folder / "tokenizer_3", folder / "text_encoder_3")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    return sd3.eval()


def publish(folder: Path) -> Pipeline:
    """Rewrites a saved folder the way the published checkpoints are laid out; returns what it holds."""
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder)
    (folder / "ddit.json").unlink()
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "DualDiffSD3Pipeline",
                "_diffusers_version": "0.30.0",
                "transformer": ["sd3_modules.sd3_model", "SD3JointModelFlexible"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text()) | {
        "_class_name": "SD3JointModelFlexible",
        "pooled_projection_dim": 2048,
    }
    del config["image_attends_text"], config["qk_norm"], config["dual_attention_layers"]
    path.write_text(json.dumps(config))
    return pipeline
