"""The parts of a model folder, loaded and saved: transformer, autoencoder, text encoder, tokenizer, settings."""

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from ddit.files import (
    SafetensorsFiles,
    check_names,
    find_variant,
    is_sharded_variant,
    read_json,
    write_folder_atomically,
)
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import SETTINGS_FILE, check_t5, is_sd3_folder, settings_for
from ddit.model.weights import TRANSFORMER_STEM, from_sd3, load_transformer, save_transformer
from ddit.schema import to_data
from ddit.settings import ModelSettings


class ModelParts(NamedTuple):
    """What a model folder holds, loaded."""

    transformer: DualDiT
    image_codec: ImageCodec
    text_codec: TextCodec
    settings: ModelSettings


def load_parts(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    codec_device: torch.device | str | None = None,
) -> ModelParts:
    """Everything in a model folder: ours, a published checkpoint's, or SD3's (then see `from_sd3`; seed 0).

    codec_device: of the autoencoder and the text encoder, if it is another.

    Raises:
        ValueError: in one line, if a part is missing, incomplete or broken.
    """
    if not (folder / "transformer").is_dir():
        raise ValueError(f"'{folder}' is not a model folder: it has no transformer/")
    is_sd3 = is_sd3_folder(folder)
    transformer = None if is_sd3 else load_transformer(folder / "transformer", dtype=dtype, device=device)
    codec_device = codec_device or device
    image_codec = load_image_codec(folder, dtype=dtype, device=codec_device)
    text_codec = load_text_codec(folder, dtype=dtype, device=codec_device)
    if transformer is None:
        generator, vocab_size = torch.Generator().manual_seed(0), text_codec.vocab_size
        start = from_sd3(folder, vocab_size=vocab_size, generator=generator, dtype=dtype, device=device)
        transformer = start.transformer
    settings = settings_for(folder, transformer.config.sample_size * image_codec.downsample)
    return ModelParts(transformer, image_codec, text_codec, settings)


def load_image_codec(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ImageCodec:
    """The autoencoder in `folder/vae`, or in `folder` itself; `ValueError` in one line if that fails."""
    vae = folder if (folder / "config.json").is_file() else folder / "vae"
    with _one_line(vae):
        variant = find_variant(vae, TRANSFORMER_STEM, dtype)
        codec = ImageCodec.from_pretrained(vae, dtype, variant=variant).to(device=device)
    _check_complete(codec.autoencoder, vae, TRANSFORMER_STEM, dtype)
    return codec


def load_text_codec(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TextCodec:
    """The T5 encoder and its tokenizer in `folder` (SD3's third); `ValueError` in one line if that fails."""
    suffix = "_3" if is_sd3_folder(folder) else ""
    encoder_folder, tokenizer_folder = folder / f"text_encoder{suffix}", folder / f"tokenizer{suffix}"
    check_t5(folder)
    _check_tokenizer(tokenizer_folder)
    with _one_line(encoder_folder):
        variant = find_variant(encoder_folder, "model", dtype)
        tensors = None
        if is_sharded_variant(encoder_folder, "model", dtype):
            stored = SafetensorsFiles(encoder_folder, "model", dtype)
            tensors = stored.read(stored.shapes, dtype, "cpu")
        codec = TextCodec.from_pretrained(
            tokenizer_folder, encoder_folder, dtype, variant=variant, tensors=tensors
        )
        codec.to(device=device)
    _check_complete(codec.encoder, encoder_folder, "model", dtype)
    return codec


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Turns what the libraries raise over a broken folder into one line that names it."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, ImportError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        named = reason if str(folder) in reason else f"'{folder}' cannot be loaded: {reason}"
        raise ValueError(named) from None


def _check_tokenizer(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"'{folder.parent}' is incomplete: it has no folder {folder.name}/")
    if (folder / "tokenizer.json").is_file() or not (folder / "spiece.model").is_file():
        read_json(folder / "tokenizer.json")


def _check_complete(module: nn.Module, folder: Path, stem: str, dtype: torch.dtype) -> None:
    """ValueError if tensors are missing from the files: the libraries only warn, and draw them at random."""
    stored = SafetensorsFiles(folder, stem, dtype).shapes
    tied = {"shared.weight", "encoder.embed_tokens.weight"}  # T5 keeps one matrix under two names
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if tied & set(stored):
        wanted = {name: shape for name, shape in wanted.items() if name not in tied}
    check_names({name: shape for name, shape in stored.items() if name in wanted}, wanted, f"'{folder}'")


def save_parts(
    folder: str | os.PathLike[str],
    *,
    transformer: DualDiT,
    image_codec: ImageCodec,
    text_codec: TextCodec,
    settings: ModelSettings,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model folder in the diffusers layout, whole or not at all.

    Args:
        folder: new, or a model folder, which is replaced.
        dtype: of the saved weights; None keeps each as it is.

    Raises:
        ValueError: if the folder exists and holds something else.
    """
    if next((True for t in text_codec.encoder.state_dict().values() if t.dtype == torch.int8), False):
        raise ValueError("a text encoder in 8 bit is for use, not for saving: load the model without int8")
    folder = Path(folder).absolute()
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "model_index.json").is_file():
        raise ValueError(f"'{folder}' exists and is not a model folder: it is left alone")
    with write_folder_atomically(folder) as part:
        _write_parts(part, transformer, image_codec, text_codec, settings, dtype)


def _write_parts(
    folder: Path,
    transformer: DualDiT,
    image_codec: ImageCodec,
    text_codec: TextCodec,
    settings: ModelSettings,
    dtype: torch.dtype | None,
) -> None:
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir()
    save_transformer(folder / "transformer", transformer, dtype=dtype)
    type(image_codec)(_cast(image_codec.autoencoder, dtype)).save_pretrained(folder / "vae")
    text_codec = type(text_codec)(text_codec.tokenizer, _cast(text_codec.encoder, dtype))
    text_codec.save_pretrained(folder / "tokenizer", folder / "text_encoder")
    autoencoder = type(image_codec.autoencoder).__name__
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": settings.image_sampling.shift,
    }
    index = {
        "_class_name": "DualDiffusionPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", type(text_codec.tokenizer).__name__],
        "transformer": ["ddit.model", "DualDiT"],
        "vae": ["ddit.model.autoencoder" if autoencoder == "PatchAutoencoder" else "diffusers", autoencoder],
    }
    for name, values in {
        "scheduler/scheduler_config.json": scheduler,
        SETTINGS_FILE: to_data(settings),
        "model_index.json": index,
    }.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    mode = (folder / "model_index.json").stat().st_mode
    for path in folder.rglob("*.safetensors"):  # written for their owner alone, by the library
        path.chmod(mode)


def _cast(module: Any, dtype: torch.dtype | None) -> Any:
    """The module itself, or a copy in another dtype."""
    if dtype is None or next(module.parameters()).dtype == dtype:
        return module
    return torch.nn.Module.to(copy.deepcopy(module), dtype)  # past diffusers' own `to`, which prints
