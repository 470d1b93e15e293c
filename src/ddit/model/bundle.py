"""A model with its encoders and settings: loaded, checked, compiled, moved and saved as one."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch

from ddit.devices import find_device, find_dtype
from ddit.model import DualDiT, folders
from ddit.model.adapters import load_adapters, merge_adapters
from ddit.model.folders import ModelSettings
from ddit.model.weights import load_mask_embedding

if TYPE_CHECKING:  # transformers and diffusers take seconds to import
    from ddit.model.encoders import ImageCodec, TextCodec


@dataclass(eq=False)
class ModelBundle:
    """A D-DiT with its frozen encoders and its settings, made ready to be used.

    Attributes:
        transformer: the two-headed model.
        image_codec, text_codec: pictures <-> latents, text <-> tokens and states.
        settings: defaults of sampling, lengths, the prompts' templates.
    """

    transformer: DualDiT
    image_codec: "ImageCodec"
    text_codec: "TextCodec"
    settings: ModelSettings

    def __post_init__(self) -> None:
        from ddit.prompts import PromptStyle

        self.style = PromptStyle.from_dict(self.settings.prompt_style)
        self.transformer.eval().requires_grad_(False)
        config, images, text = self.transformer.config, self.image_codec, self.text_codec
        if config.text_dim != text.width:
            raise ValueError(
                f"the transformer wants text states of {config.text_dim}, the encoder has {text.width}"
            )
        if config.in_channels != images.channels:
            raise ValueError(
                f"the transformer wants {config.in_channels} latent channels, not {images.channels}"
            )
        if config.vocab_size < text.vocab_size:
            raise ValueError(f"the text head has {config.vocab_size} rows for {text.vocab_size} tokens")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "mini",
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        mask_embedding: str | os.PathLike[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        text_encoder: Literal["whole", "int8"] = "whole",
        offload: bool = False,
    ) -> Self:
        """Loads "mini", a folder in the diffusers layout, or a repository of the hub.

        A folder of SD3 or SD3.5 gives a model to train: its pictures are SD3's without CLIP, its text is
        noise (`weights.from_sd3`; the new weights are those of seed 0).

        Args:
            dtype: of all parts; by default bfloat16 on CUDA and float32 elsewhere.
            device: by default CUDA where there is one.
            mask_embedding: file of a trained embedding of T5's mask token (`weights.load_mask_embedding`).
            adapter: folder of LoRA adapters, merged into the transformer (`lora.load_adapters`).
            text_encoder: "int8" keeps its matrices in 8 bit (`int8.quantize_text_encoder`).
            offload: the text encoder and the autoencoder stay on the CPU, and go to the device while they are used:
                for a card that cannot hold them beside the transformer.

        Raises:
            ValueError: in one line; unknown model, dtype or device, or a folder that is incomplete or broken.
        """
        device = find_device(device)
        dtype = find_dtype(dtype, device)
        embedding = None if mask_embedding is None else load_mask_embedding(mask_embedding)
        if text_encoder not in ("whole", "int8"):
            raise ValueError(f"text_encoder must be whole or int8, got {text_encoder!r}")
        codec_device = "cpu" if offload or text_encoder == "int8" else device
        folder = folders.resolve(name_or_path)
        loaded = folders.load_parts(folder, dtype=dtype, device=device, codec_device=codec_device)
        if embedding is not None:
            loaded.text_codec.set_mask_embedding(embedding)
        if adapter is not None:
            load_adapters(loaded.transformer, adapter)
            merge_adapters(loaded.transformer)
        if text_encoder == "int8":
            from ddit.model.int8 import quantize_text_encoder

            quantize_text_encoder(loaded.text_codec)
        for codec in (loaded.image_codec, loaded.text_codec):
            if offload:
                codec.offload_device = device
            else:
                codec.to(device=device)
        return cls(*loaded)

    def compile(self) -> Self:
        """Has the blocks of transformer and text encoder compiled when they first run: minutes, on new sizes anew."""
        self.transformer.compile_blocks()
        self.transformer.compile_text_step()
        self.text_codec.compile()
        return self

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Writes a folder that `from_pretrained` loads (`folders.save_pipeline`); None keeps the dtype."""
        folders.save_pipeline(
            folder,
            transformer=self.transformer,
            image_codec=self.image_codec,
            text_codec=self.text_codec,
            settings=self.settings,
            dtype=None if dtype is None else find_dtype(dtype),
        )

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Moves all parts to a device and a dtype; None leaves that one as it is. Offloaded parts stay on the CPU."""
        device = self.device if device is None else find_device(device)
        dtype = self.dtype if dtype is None else find_dtype(dtype)
        self.transformer.to(device=device, dtype=dtype)
        for codec in (self.image_codec, self.text_codec):
            if codec.offload_device is not None:
                codec.offload_device = device
            codec.to(device=device if codec.offload_device is None else "cpu", dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        return self.transformer.context_embedder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.context_embedder.weight.dtype
