"""A D-DiT as a pipeline of diffusers: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

The folders that we write hold a `pipeline.py` and component files that import these classes (`model.saving`): diffusers
runs such files where it is told to trust them, and finds the installed package.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ddit.inference.diffusers_style import GeneratedImages
from ddit.model import DualDiT
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.t5 import load_encoder
from ddit.model.weights import load_transformer, save_transformer
from ddit.pipeline import Pipeline
from ddit.schema import parse
from ddit.settings import ModelSettings

VERBS = ("generate", "inpaint", "vary", "caption", "answer", "infill", "score", "choose")


class DualDiTModel(DualDiT, ModelMixin):
    """The transformer, as a component that diffusers loads and saves."""

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device_map: Any = None,
        **_: Any,
    ) -> Self:
        """The `transformer/` folder of a model; diffusers' other options of loading change nothing.

        dtype: also as torch_dtype, diffusers' older name.

        Raises:
            ValueError: as `load_transformer`.
        """
        path = Path(pretrained_model_name_or_path) / (subfolder or "")
        plain = load_transformer(path, dtype=dtype or torch_dtype, device=_device(device_map))
        with torch.device("meta"):
            model = cls(plain.config)
        model.load_state_dict(plain.state_dict(), assign=True)
        return model.eval().requires_grad_(False)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike[str], **_: Any
    ) -> None:
        """Writes such a folder."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_transformer(save_directory, self.config, self.state_dict().items())


class PatchAutoencoderModel(torch.nn.Module):
    """Our own autoencoder, as a component that diffusers loads."""

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], torch_dtype: torch.dtype | None = None, **_: Any
    ) -> PatchAutoencoder:
        """A plain `PatchAutoencoder`."""
        return PatchAutoencoder.from_pretrained(Path(folder), torch_dtype or torch.float32)


class Int8TextEncoder(torch.nn.Module):
    """T5's encoder, of a folder that has it in 8 bit, as a component that diffusers loads."""

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], torch_dtype: torch.dtype | None = None, **_: Any
    ) -> Any:
        return load_encoder(Path(folder), torch_dtype or torch.float32)


def _device(device_map: Any) -> str | torch.device:
    """The device of diffusers' device_map for one component."""
    place = next(iter(device_map.values())) if isinstance(device_map, dict) else device_map
    return "cpu" if place is None else place


class DualDiffusionPipeline(DiffusionPipeline):
    """`ddit.Pipeline` with diffusers' loading: its call, its verbs, its folders.

    Args:
        transformer, vae, text_encoder, tokenizer, scheduler: the components. The scheduler stands there for its shift
            alone, which is one of the settings, too.
        settings: the model's, as in `ddit.json`.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
        )
        self.register_to_config(settings=settings)

    @cached_property
    def ddit(self) -> Pipeline:
        """The same parts as a `ddit.Pipeline`."""
        settings = parse(ModelSettings, dict(self.config["settings"] or {}))
        images, texts = ImageCodec(self.vae), TextCodec(self.tokenizer, self.text_encoder)
        return Pipeline(self.transformer, images, texts, settings)

    def __call__(self, *args: Any, **options: Any) -> GeneratedImages:
        """Images for prompts, with diffusers' options (`inference.diffusers_style`)."""
        return self.ddit(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ddit, name) if name in VERBS else super().__getattr__(name)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike[str], **options: Any
    ) -> None:
        """Writes a folder that ddit and diffusers load; push_to_hub=True uploads it, as `repo_id` if that is given.

        Raises:
            ValueError: for another option of diffusers', as none is followed.
        """
        push, repo_id = options.pop("push_to_hub", False), options.pop("repo_id", None)
        if options.pop("safe_serialization", True) is not True or options.pop("variant", None) is not None:
            raise ValueError("a D-DiT is saved as safetensors without a variant")
        self.ddit.save_pretrained(save_directory)
        if push:
            from ddit.hub import push_folder

            push_folder(Path(save_directory), repo_id or Path(save_directory).name, **options)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keeps text encoder and autoencoder on the CPU, except while they are used."""
        self.ddit.enable_model_cpu_offload(device if gpu_id is None else f"cuda:{gpu_id}")
