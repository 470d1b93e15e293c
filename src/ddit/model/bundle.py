"""A model with its encoders and settings: loaded, checked, compiled, moved and saved as one."""

import os
from dataclasses import dataclass
from typing import Self

import torch

from ddit.devices import find_device, find_dtype
from ddit.model.adapters import load_adapters, merge_adapters
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import resolve
from ddit.model.int8 import quantize_text_encoder
from ddit.model.loading import load_parts, save_parts
from ddit.model.weights import load_mask_embedding
from ddit.settings import ModelSettings


@dataclass(eq=False)
class ModelBundle:
    """A D-DiT with its frozen encoders and its settings, made ready to be used.

    Attributes:
        transformer: the two-headed model.
        image_codec, text_codec: images <-> latents, text <-> tokens and states.
        settings: defaults of sampling, lengths, the prompts' templates.
    """

    transformer: DualDiT
    image_codec: ImageCodec
    text_codec: TextCodec
    settings: ModelSettings

    def __post_init__(self) -> None:
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
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        mask_embedding: str | os.PathLike[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        int8: bool = False,
        offload: bool = False,
        compile: bool = False,
    ) -> Self:
        """Loads "mini", a folder in the diffusers layout, or a repository of the hub.

        A folder of SD3 or SD3.5 gives a model to train: its images are SD3's without CLIP, its text is
        noise (`weights.from_sd3`; the new weights are those of seed 0).

        Args:
            device: by default CUDA where there is one.
            dtype: of all parts; by default bfloat16 on CUDA and float32 elsewhere.
            mask_embedding: file of a trained embedding of T5's mask token (`weights.load_mask_embedding`).
            adapter: folder of LoRA adapters, merged into the transformer (`adapters.load_adapters`).
            int8: keeps the text encoder's matrices in 8 bit (`int8.quantize_text_encoder`).
            offload: keeps the text encoder and the autoencoder on the CPU, except while they are used: for a card that
                cannot hold them beside the transformer.
            compile: see `compile`.

        Raises:
            ValueError: in one line; unknown model, dtype or device, or a folder that is incomplete or broken.
        """
        device = find_device(device)
        dtype = find_dtype(dtype, device)
        embedding = None if mask_embedding is None else load_mask_embedding(mask_embedding)
        codec_device = "cpu" if offload or int8 else device
        parts = load_parts(resolve(name_or_path), dtype=dtype, device=device, codec_device=codec_device)
        if embedding is not None:
            parts.text_codec.set_mask_embedding(embedding)
        if adapter is not None:
            load_adapters(parts.transformer, adapter)
            merge_adapters(parts.transformer)
        if int8:
            quantize_text_encoder(parts.text_codec)
        for codec in (parts.image_codec, parts.text_codec):
            if offload:
                codec.offload_device = device
            else:
                codec.to(device=device)
        bundle = cls(*parts)
        return bundle.compile() if compile else bundle

    def compile(self) -> Self:
        """Compiles the blocks of transformer and text encoder when they first run: minutes, again for a new size."""
        self.transformer.compile_blocks()
        self.transformer.compile_text_step()
        self.text_codec.compile()
        return self

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Writes a folder that `from_pretrained` loads (`loading.save_parts`); None keeps the dtype."""
        save_parts(
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
