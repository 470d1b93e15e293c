"""Model folders written, whole or not at all: of a loaded model, or part by part, without one in memory."""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddit.files import SafetensorsFiles, find_weights, link_file, read_json, set_row, write_folder_atomically
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.adapters import find_sd3_lora, load_adapters, merged_tensors, stored_vocabulary
from ddit.model.autoencoder import downsample_of
from ddit.model.encoders import MASK_TOKEN, ImageCodec, TextCodec
from ddit.model.familiarity import Familiarity
from ddit.model.folders import INT8_MARK, SETTINGS_FILE, settings_for, settings_to_dict, text_folders
from ddit.model.sd3_lora import is_sd3_lora
from ddit.model.t5 import SHARED, STEM, TIED, is_int8_folder, load_tokenizer, save_int8
from ddit.model.weights import TRANSFORMER_STEM, save_transformer, stream_transformer
from ddit.settings import ModelSettings

_PART_FILE = "ddit_part"
_LOADED_BY_DIFFUSERS = '''"""diffusers runs this where it is told trust_remote_code=True; it needs the package ddit."""

from ddit.diffusers_pipeline import {name}

__all__ = ["{name}"]
'''


def save_parts(
    folder: str | os.PathLike[str],
    *,
    transformer: DualDiT,
    image_codec: ImageCodec,
    text_codec: TextCodec,
    settings: ModelSettings,
    familiarity: Familiarity | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a loaded model as a folder in the diffusers layout, whole or not at all.

    Args:
        folder: new, or a model folder, which is replaced.
        dtype: of the saved weights, but those in 8 bit; None keeps each as it is.

    Raises:
        ValueError: if the folder exists and holds something else.
    """
    with _new_model_folder(Path(folder)) as part:
        for name in ("transformer", "vae"):
            (part / name).mkdir()
        save_transformer(
            part / "transformer", transformer.config, transformer.state_dict().items(), dtype=dtype
        )
        type(image_codec)(_cast(image_codec.autoencoder, dtype)).save_pretrained(part / "vae")
        text_codec.save_pretrained(part / "tokenizer", part / "text_encoder", dtype=dtype)
        if familiarity is not None:
            familiarity.save(part)
        _write_settings(part, settings)
        mode = (part / SETTINGS_FILE).stat().st_mode
        for path in (part / "vae").glob("*.safetensors"):  # written for the owner alone, by the library
            path.chmod(mode)


class EncoderFolders(NamedTuple):
    """Where the frozen parts of a model are, each in a folder of its own."""

    vae: Path
    text_encoder: Path
    tokenizer: Path

    @classmethod
    def find(cls, vae: Path, text: Path) -> "EncoderFolders":
        """The autoencoder in `vae/vae` or in `vae` itself, T5 and its tokenizer in `text` (`text_folders`).

        Raises:
            ValueError: in one line, if one of them is missing.
        """
        vae = vae if (vae / "config.json").is_file() else vae / "vae"
        found = cls(vae, *text_folders(text))
        for folder, stem in ((found.vae, TRANSFORMER_STEM), (found.text_encoder, STEM)):
            find_weights(folder, stem)
            read_json(folder / "config.json")
        if not found.tokenizer.is_dir():
            raise ValueError(f"'{text}' is incomplete: it has no folder {found.tokenizer.name}/")
        return found


def save_folder(
    folder: Path,
    config: DualDiTConfig,
    tensors: Iterable[tuple[str, Tensor]],
    encoders: EncoderFolders,
    settings: ModelSettings,
    *,
    dtype: torch.dtype = torch.bfloat16,
    mask_embedding: Tensor | None = None,
    int8: bool = False,
) -> None:
    """Writes a model folder whose transformer comes tensor by tensor, and whose encoders are never loaded.

    The files of autoencoder, text encoder and tokenizer are hard links where the disk has them, else copies: they are
    as they were stored, and a file that is written to in place changes under all of its names.

    Args:
        folder: new, or a model folder, which is replaced.
        dtype: of the transformer.
        mask_embedding: (D,) in place of the text encoder's own for the mask token; the file that holds it is copied.
        int8: the text encoder is written in 8 bit instead (`t5.save_int8`).

    Raises:
        ValueError: if the folder exists and holds something else.
        OSError: if the disk is full.
    """
    with _new_model_folder(folder) as part:
        (part / "transformer").mkdir()
        save_transformer(part / "transformer", config, tensors, dtype=dtype)
        _link_folder(encoders.vae, part / "vae", TRANSFORMER_STEM, dtype)
        _link_folder(encoders.tokenizer, part / "tokenizer")
        if int8 and not is_int8_folder(encoders.text_encoder):
            (part / "text_encoder").mkdir()
            save_int8(encoders.text_encoder, part / "text_encoder", dtype)
        else:
            _link_folder(encoders.text_encoder, part / "text_encoder", STEM, dtype)
        if mask_embedding is not None:
            row = load_tokenizer(part / "tokenizer").convert_tokens_to_ids(MASK_TOKEN)
            assert isinstance(row, int)
            _set_embedding(part / "text_encoder", row, mask_embedding, dtype)
        _write_settings(part, settings)


def merge_adapter(base: Path, adapter: Path, out: Path, *, dtype: torch.dtype) -> None:
    """Writes the model folder `base` with the adapters of `adapter`, a D-DiT's or SD3's, in its weights, to `out`.

    The sums are float32, `dtype` is that of the transformer written. No more than a tensor of the base and a shard of
    the result are in memory (see `save_folder`).

    Raises:
        ValueError: in one line, if one of the folders does not hold what it should, or they do not fit.
    """
    encoders = EncoderFolders.find(base, base)
    if is_sd3_lora(adapter):
        vocab_size = max(load_tokenizer(encoders.tokenizer).get_vocab().values()) + 1
    else:
        vocab_size = stored_vocabulary(adapter)
    config, tensors = stream_transformer(base, vocab_size=vocab_size)
    with torch.device("meta"):
        adapters = DualDiT(config)
    lora = find_sd3_lora(adapter, adapters)
    if lora is None:
        load_adapters(adapters, adapter)
    downsample = downsample_of(read_json(encoders.vae / "config.json"))
    settings = settings_for(base, config.sample_size * downsample)
    merged = merged_tensors(adapters, tensors) if lora is None else lora.merged(tensors)
    save_folder(out, config, merged, encoders, settings, dtype=dtype)


@contextlib.contextmanager
def _new_model_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled, in whose place an empty one or another model's may be."""
    folder = folder.absolute()
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "model_index.json").is_file():
        raise ValueError(f"'{folder}' exists and is not a model folder: it is left alone")
    with write_folder_atomically(folder) as part:
        yield part


def _link_folder(
    source: Path, target: Path, stem: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Links a folder's files; of weights none, or those of `stem` that a model in `dtype` would be loaded from."""
    target.mkdir()
    chosen = set() if stem is None else {path.name for path in find_weights(source, stem, dtype)}
    for path in source.iterdir():
        is_weights = path.suffix in (".safetensors", ".bin", ".h5", ".msgpack")
        wanted = path.suffix == ".json" or path.name in chosen if stem else not is_weights
        if path.is_file() and wanted:
            link_file(path, target / path.name)


def _set_embedding(folder: Path, row: int, values: Tensor, dtype: torch.dtype) -> None:
    """Replaces a row of the text encoder's embeddings, in copies of the files that hold them."""
    stored = SafetensorsFiles(folder, STEM, dtype)
    for name in (SHARED, TIED):
        if name not in stored.shapes:
            continue
        path = stored.file_of[name]
        own = path.with_name(f"{path.name}.part")
        shutil.copyfile(path, own)
        set_row(own, name, row, values)
        own.replace(path)


def _write_settings(folder: Path, settings: ModelSettings) -> None:
    """The files that describe a model whose parts are written, beside them."""
    (folder / "scheduler").mkdir()
    autoencoder = read_json(folder / "vae" / "config.json")["_class_name"]
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    kind = read_json(tokenizer).get("tokenizer_class") if tokenizer.is_file() else None
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": settings.image_sampling.shift,
    }
    own = {"transformer": "DualDiTModel"}
    own |= {"vae": "PatchAutoencoderModel"} if autoencoder == "PatchAutoencoder" else {}
    is_int8 = is_int8_folder(folder / "text_encoder")
    own |= {"text_encoder": "Int8TextEncoder"} if is_int8 else {}
    index = {
        "_class_name": ["pipeline", "DualDiffusionPipeline"],
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "settings": settings_to_dict(settings),
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", kind or "T5Tokenizer"],
        "vae": ["diffusers", autoencoder],
    } | {part: [_PART_FILE, name] for part, name in own.items()}
    for part, name in {"": "DualDiffusionPipeline", **own}.items():
        file = folder / part / f"{_PART_FILE if part else 'pipeline'}.py"
        file.write_text(_LOADED_BY_DIFFUSERS.format(name=name))
    mark = {INT8_MARK: "int8"} if is_int8 else {}
    for name, values in {
        "scheduler/scheduler_config.json": scheduler,
        SETTINGS_FILE: settings_to_dict(settings) | mark,
        "model_index.json": index,
    }.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def _cast(module: Any, dtype: torch.dtype | None) -> Any:
    """The module itself, or a copy in another dtype."""
    if dtype is None or next(module.parameters()).dtype == dtype:
        return module
    return torch.nn.Module.to(copy.deepcopy(module), dtype)  # past diffusers' own `to`, which prints
