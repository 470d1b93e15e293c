"""T5's encoder and its tokenizer from files and to files, its linear layers in 8 bit where that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from ddit.files import SafetensorsFiles, check_names, write_tensors
from ddit.model.int8 import quantize, quantize_linears

STEM = "model"
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"
"""T5 keeps one matrix under two names."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder: `tokenizer.json` as it stands, or a lone `spiece.model`, which is converted.

    Raises:
        ValueError: if the conversion needs libraries that are not installed.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / "spiece.model").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise ValueError(
            f"'{folder}' has a spiece.model and no tokenizer.json: to convert it, pip install 'ddit[sentencepiece]'"
        )
    return T5Tokenizer.from_pretrained(folder)


def load_encoder(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    int8: bool = False,
) -> T5EncoderModel:
    """T5's encoder, of a folder that may hold all of T5; one that is stored in 8 bit stays so.

    What needs no conversion stays mapped to its file. int8: each linear layer is read and quantised by itself on the
    device, so that no more than one is ever there in full.

    Raises:
        ValueError: if files or tensors are missing or of other shapes.
    """
    encoder, stored = _empty_encoder(folder), SafetensorsFiles(folder, STEM, dtype)
    is_stored_int8 = _is_int8(stored)
    if int8 or is_stored_int8:
        quantize_linears(encoder)
    own = encoder.state_dict()
    in_8_bit = {name for name, tensor in own.items() if tensor.dtype == torch.int8}
    scales = {_scale_of(name) for name in in_8_bit}
    theirs = _names(stored, {n: t for n, t in own.items() if is_stored_int8 or n not in scales}, folder)
    plain = {ours: name for ours, name in theirs.items() if ours not in in_8_bit | scales}
    # as transformers has it: the last product of each block overflows in float16
    in_float32 = {n for n in plain if dtype == torch.float16 and n.endswith(".wo.weight")}
    tensors: dict[str, Tensor] = {}
    for names, wanted in ((plain.keys() - in_float32, dtype), (in_float32, torch.float32)):
        found = stored.read([plain[name] for name in names], wanted, device)
        tensors |= {name: found[plain[name]] for name in names}
    if is_stored_int8:
        kept = [*in_8_bit, *scales]
        found = stored.read([theirs[name] for name in kept], None, device)
        tensors |= {name: found[theirs[name]] for name in kept}
    else:
        for name in in_8_bit:
            weight = stored.read([theirs[name]], None, device)[theirs[name]]
            tensors[name], tensors[_scale_of(name)] = quantize(weight)
    tensors[TIED] = tensors[SHARED]
    encoder.load_state_dict(tensors, assign=True)
    encoder.set_input_embeddings(encoder.shared)  # one parameter again
    return encoder.eval()


def save_encoder(folder: Path, encoder: T5EncoderModel, dtype: torch.dtype | None = None) -> None:
    """Writes `config.json` and the weights, those in 8 bit as they are; dtype: of all others, None keeps each."""
    _save_config(folder, encoder.config, dtype or encoder.dtype)
    state = encoder.state_dict()
    scales = {_scale_of(name) for name, tensor in state.items() if tensor.dtype == torch.int8}
    tensors = (
        (n, t if n in scales or t.dtype == torch.int8 else t.to(dtype)) for n, t in state.items() if n != TIED
    )
    write_tensors(folder, STEM, tensors)


def save_int8(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes the encoder of another folder in 8 bit, layer by layer; dtype: of embeddings and norms."""
    encoder = _empty_encoder(source)
    _save_config(folder, encoder.config, dtype)
    stored = SafetensorsFiles(source, STEM, dtype)
    is_stored_int8 = _is_int8(stored)
    theirs = _names(stored, encoder.state_dict(), source)
    quantize_linears(encoder)
    in_8_bit = {name for name, tensor in encoder.state_dict().items() if tensor.dtype == torch.int8}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for ours, name in theirs.items():
            ((_, tensor),) = stored.stream([name])
            if ours not in in_8_bit:
                yield ours, tensor.to(dtype)
            elif is_stored_int8:
                yield ours, tensor
                yield from stored.stream([_scale_of(name)])
            else:
                integers, scale = quantize(tensor)
                yield ours, integers
                yield _scale_of(ours), scale

    write_tensors(folder, STEM, tensors())


def is_int8_folder(folder: Path) -> bool:
    """Whether the encoder in a folder is stored in 8 bit."""
    return _is_int8(SafetensorsFiles(folder, STEM, None))


def _is_int8(stored: SafetensorsFiles) -> bool:
    return any(name.startswith("encoder.") and name.endswith(".scale") for name in stored.shapes)


def _scale_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.scale"


def _empty_encoder(folder: Path) -> T5EncoderModel:
    config = T5Config.from_pretrained(folder)
    with torch.device("meta"):
        return T5EncoderModel(config)


def _names(stored: SafetensorsFiles, own: dict[str, Tensor], folder: Path) -> dict[str, str]:
    """The stored name of each tensor of the encoder, the embeddings once; ValueError if they do not fit."""
    theirs = {name: name for name in own if name != TIED}
    if SHARED not in stored.shapes and TIED in stored.shapes:
        theirs[SHARED] = TIED
    wanted = {theirs[name]: tuple(own[name].shape) for name in theirs}
    check_names({n: shape for n, shape in stored.shapes.items() if n in wanted}, wanted, f"'{folder}'")
    return theirs


def _save_config(folder: Path, config: T5Config, dtype: torch.dtype) -> None:
    config = copy.deepcopy(config)
    config.architectures, config.dtype = ["T5EncoderModel"], dtype
    config.save_pretrained(folder)
