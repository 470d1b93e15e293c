"""A model with its encoders and settings: loaded, checked, compiled, moved and saved as one."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from ddit.devices import DTYPES, find_device, find_dtype
from ddit.habits import guarded
from ddit.model.adapters import merge_stored
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.familiarity import Familiarity
from ddit.model.folders import resolve
from ddit.model.loading import fitting_dtype, load_parts
from ddit.model.offload import is_offloaded
from ddit.model.saving import save_parts
from ddit.model.weights import load_mask_embedding
from ddit.settings import ModelSettings


@dataclass(eq=False, repr=False)
class ModelBundle:
    """A D-DiT with its frozen encoders and its settings, made ready to be used.

    Attributes:
        transformer: the two-headed model.
        image_codec, text_codec: images <-> latents, text <-> tokens and states.
        settings: defaults of sampling, lengths, the prompts' templates.
        name: what it was loaded by, for `repr`.
        familiarity: what its training images were like, if that was stored: others are warned of.
    """

    transformer: DualDiT
    image_codec: ImageCodec
    text_codec: TextCodec
    settings: ModelSettings
    name: str = "model"
    familiarity: Familiarity | None = None

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

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.transformer.parameters())
        size, dtype = self.settings.image_size, str(self.dtype).removeprefix("torch.")
        of = f"{numbers / 1e9:.2f} B" if numbers >= 1e9 else f"{numbers / 1e6:.1f} M"
        place = f"{self.device}" + (", encoders on the CPU" if self.text_codec.offload_device else "")
        kind = type(self).__name__
        return (
            f"<{kind} {self.name}: transformer of {of} parameters, {size}x{size} pixels, {dtype} on {place}>"
        )

    @classmethod
    @partial(guarded, aliases={"torch_dtype": "dtype", "device_map": "device"})
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
        offload_blocks: bool = False,
        compile: bool = False,
    ) -> Self:
        """Loads "mini", a folder in the diffusers layout, or a repository of the hub.

        A folder of SD3 or SD3.5 gives a model to train: its images are SD3's without CLIP, its text is
        noise (`weights.from_sd3`; the new weights are those of seed 0).

        Args:
            device: by default CUDA where there is one; also as device_map, and dtype as torch_dtype.
            dtype: of all parts; by default bfloat16 on CUDA, elsewhere float32 if that fits (`loading.fitting_dtype`).
            mask_embedding: file of a trained embedding of T5's mask token (`weights.load_mask_embedding`).
            adapter: folder of LoRA adapters, or a LoRA file made for SD3 by diffusers or kohya's scripts, merged into
                the transformer (`adapters.merge_stored`).
            int8: keeps the text encoder's matrices in 8 bit (`int8.quantize`), as one that was saved so is anyway.
            offload: keeps the text encoder and the autoencoder on the CPU, except while they are used: for a card that
                cannot hold them beside the transformer.
            offload_blocks: does so too, and keeps the blocks of transformer and text encoder on the CPU, except for the
                one that is used and the one after it: for a card that cannot hold the transformer, of 8 to 12 GB.
            compile: see `compile`.

        Raises:
            ValueError: in one line; unknown model, dtype or device, or a folder that is incomplete or broken.
        """
        device = find_device(device)
        given = None if dtype in (None, "auto") else find_dtype(dtype)
        embedding = None if mask_embedding is None else load_mask_embedding(mask_embedding)
        if offload_blocks and compile:
            raise ValueError("offloaded blocks cannot be compiled: leave out compile or offload_blocks")
        offload = offload or offload_blocks
        folder = resolve(name_or_path)
        parts = load_parts(
            folder,
            dtype=given or fitting_dtype(folder, device, int8=int8),
            device="cpu" if offload_blocks else device,
            codec_device="cpu" if offload else device,
            int8=int8,
        )
        if embedding is not None:
            parts.text_codec.set_mask_embedding(embedding)
        if adapter is not None:
            merge_stored(parts.transformer, adapter)
        for codec in (parts.image_codec, parts.text_codec):
            codec.offload_device = device if offload else None
        if offload_blocks:
            parts.transformer.offload_blocks(device)
            parts.text_codec.offload_blocks(device)
        bundle = cls(*parts, name=os.fspath(name_or_path), familiarity=Familiarity.load(folder))
        return bundle.compile() if compile else bundle

    def compile(self) -> Self:
        """Compiles the blocks of transformer and text encoder when they first run: minutes, again for a new size."""
        self.transformer.compile_blocks()
        self.transformer.compile_text_step()
        self.text_codec.compile()
        return self

    @guarded
    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Writes a folder that `from_pretrained` loads (`saving.save_parts`); None keeps the dtype, 8 bit stay so."""
        save_parts(
            folder,
            transformer=self.transformer,
            image_codec=self.image_codec,
            text_codec=self.text_codec,
            settings=self.settings,
            familiarity=self.familiarity,
            dtype=None if dtype is None else find_dtype(dtype),
        )

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """Moves all parts to a device and a dtype; None leaves that one as it is. Offloaded parts stay on the CPU.

        A dtype may also stand first: `to(torch.bfloat16)`.

        Raises:
            ValueError: if the blocks are offloaded.
        """
        place: Any = device
        if isinstance(place, torch.dtype) or str(place).removeprefix("torch.") in DTYPES:
            place, dtype = dtype, place
        device = self.device if place is None else find_device(place)
        dtype = self.dtype if dtype is None else find_dtype(dtype)
        if is_offloaded(self.transformer.transformer_blocks[0]):
            if (device, dtype) != (self.device, self.dtype):
                raise ValueError("offloaded blocks cannot be moved: load the model again")
            return self
        self.transformer.to(device=device, dtype=dtype)
        for codec in (self.image_codec, self.text_codec):
            if codec.offload_device is not None:
                codec.offload_device = device
            codec.to(device=device if codec.offload_device is None else "cpu", dtype=dtype)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keeps text encoder and autoencoder on the CPU except while they are used, and the transformer on a device.

        As `from_pretrained(..., offload=True)`. device: by default CUDA where there is one.
        """
        for codec in (self.image_codec, self.text_codec):
            codec.offload_device = find_device(device)
        self.to(find_device(device))

    @property
    def device(self) -> torch.device:
        return self.transformer.context_embedder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.context_embedder.weight.dtype


ModelBundle.__init__ = guarded(ModelBundle.__init__)
