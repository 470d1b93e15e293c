"""The parts of a model folder, loaded: transformer, autoencoder, text encoder, tokenizer, settings."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from ddit.devices import available_memory, find_dtype, multiplies_bfloat16
from ddit.files import SafetensorsFiles, check_names, find_variant, read_json
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import is_sd3_folder, settings_for, text_folders
from ddit.model.t5 import is_int8_folder
from ddit.model.weights import TRANSFORMER_STEM, from_sd3, load_transformer
from ddit.settings import ModelSettings

MARGIN = 1.15
"""Memory for a model over that of its weights."""


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
    int8: bool = False,
) -> ModelParts:
    """Everything in a model folder: ours, a published checkpoint's, or SD3's (then see `from_sd3`; seed 0).

    codec_device: of the autoencoder and the text encoder, if it is another. int8: as in `load_text_codec`.

    Raises:
        ValueError: in one line, if a part is missing, incomplete or broken.
    """
    if not (folder / "transformer").is_dir():
        raise ValueError(f"'{folder}' is not a model folder: it has no transformer/")
    is_sd3 = is_sd3_folder(folder)
    transformer = None if is_sd3 else load_transformer(folder / "transformer", dtype=dtype, device=device)
    codec_device = codec_device or device
    image_codec = load_image_codec(folder, dtype=dtype, device=codec_device)
    text_codec = load_text_codec(folder, dtype=dtype, device=codec_device, int8=int8)
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
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    int8: bool = False,
) -> TextCodec:
    """The T5 encoder and its tokenizer in `folder` (`text_folders`); `ValueError` in one line if that fails.

    int8: the encoder's matrices in 8 bit, quantised one by one on the device.
    """
    encoder_folder, tokenizer_folder = text_folders(folder)
    for part in (encoder_folder, tokenizer_folder):
        if not part.is_dir():
            raise ValueError(f"'{folder}' is incomplete: it has no folder {part.name}/")
    _check_tokenizer(tokenizer_folder)
    with _one_line(encoder_folder):
        return TextCodec.from_pretrained(tokenizer_folder, encoder_folder, dtype, device=device, int8=int8)


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
    if (folder / "tokenizer.json").is_file() or not (folder / "spiece.model").is_file():
        read_json(folder / "tokenizer.json")


def _check_complete(module: nn.Module, folder: Path, stem: str, dtype: torch.dtype) -> None:
    """ValueError if tensors are missing from the files: the library only warns, and draws them at random."""
    stored = SafetensorsFiles(folder, stem, dtype).shapes
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_names({name: shape for name, shape in stored.items() if name in wanted}, wanted, f"'{folder}'")


def fitting_dtype(folder: Path, device: torch.device, *, int8: bool = False) -> torch.dtype:
    """The dtype for a model of which none was asked for: bfloat16 on CUDA, and elsewhere float32 if that fits.

    If it does not fit a CPU's free memory, bfloat16, and a warning says so.
    """
    free = available_memory()
    if device.type != "cpu" or free is None:
        return find_dtype(None, device)
    try:
        full, half = (
            _num_bytes(folder, dtype.itemsize, int8=int8) for dtype in (torch.float32, torch.bfloat16)
        )
    except ValueError:  # a broken folder, which loading it describes better
        return torch.float32
    if full * MARGIN <= free:
        return torch.float32
    reason = (
        f"float32 needs {full / 1e9:.1f} GB of memory for the weights, of which {free / 1e9:.1f} GB are free"
    )
    if half * MARGIN > free:
        reason += f", and bfloat16 {half / 1e9:.1f} GB" + ("" if int8 else ": int8 needs less")
    elif not multiplies_bfloat16(device):
        reason += "; this CPU has no quick products in bfloat16, so it will be slow"
    warnings.warn(f"loaded in bfloat16: {reason}", stacklevel=2)
    return torch.bfloat16


def _num_bytes(folder: Path, width: int, *, int8: bool) -> int:
    """Of all weights at so many bytes a number, from the headers of their files."""
    suffix = "_3" if is_sd3_folder(folder) else ""
    text = folder / f"text_encoder{suffix}"
    total = 0
    for part, stem in (
        (folder / "transformer", TRANSFORMER_STEM),
        (folder / "vae", TRANSFORMER_STEM),
        (text, "model"),
    ):
        shapes = SafetensorsFiles(part, stem, None).shapes
        is_int8 = part is text and (int8 or is_int8_folder(text))
        total += sum(
            math.prod(shape) * (1 if is_int8 and len(shape) > 1 and "embed" not in name else width)
            for name, shape in shapes.items()
        )
    return total
