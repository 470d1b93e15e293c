"""Transformers from disk: ours, the published D-DiT checkpoints', SD3's and SD3.5's; the mask embedding.

The only file that knows foreign names. Weights are read from safetensors alone, and nothing that could hold a
pickle is ever executed; the one other file is the published mask embedding, a lone `.pth` tensor, read
with `weights_only`.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises when it refuses a file
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddit.files import SafetensorsFiles, check_names, list_names, read_json, write_tensors
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.config import SWITCHES
from ddit.model.folders import is_sd3_folder

TRANSFORMER_STEM = "diffusion_pytorch_model"

# ours -> diffusers'; hidden_size, which they write as heads x width of a head, is mapped by hand
CONFIG_NAMES = {
    "in_channels": "in_channels",
    "patch_size": "patch_size",
    "depth": "num_layers",
    "num_heads": "num_attention_heads",
    "text_dim": "joint_attention_dim",
    "vocab_size": "vocab_size",
    "sample_size": "sample_size",
    "pos_embed_max_size": "pos_embed_max_size",
    "qk_norm": "qk_norm",
    "dual_attention_layers": "dual_attention_layers",
    **{name: name for name in SWITCHES},
    "stem": "stem",
    "refiner": "refiner",
}
OPTIONAL_KEYS = {"qk_norm", "dual_attention_layers", "stem", "refiner", *SWITCHES}
CHECKED_KEYS = {"attention_head_dim", "caption_projection_dim", "out_channels"}
DROPPED_KEYS = {"pooled_projection_dim"}  # SD3's CLIP conditioning, which D-DiT does without


def config_from_dict(
    values: Mapping[str, Any], source: str = "config.json", **overrides: Any
) -> DualDiTConfig:
    """A diffusers-style transformer configuration (D-DiT's or SD3's) as ours.

    Args:
        source: where the values come from, for messages.
        overrides: fields of `DualDiTConfig` that the values lack, such as SD3's vocab_size.

    Raises:
        ValueError: on a missing or unknown key, or on sizes that contradict one another.
    """
    known = set(CONFIG_NAMES.values()) | CHECKED_KEYS | DROPPED_KEYS
    unknown = sorted(key for key in values if key not in known and not key.startswith("_"))
    if unknown:
        raise ValueError(f"{source}: unknown key {list_names(unknown)}")
    needed = {name for ours, name in CONFIG_NAMES.items() if ours not in overrides} - OPTIONAL_KEYS
    missing = sorted((needed | {"attention_head_dim"}) - set(values))
    if missing:
        raise ValueError(f"{source}: missing key {list_names(missing)}")
    ours = {field: values[name] for field, name in CONFIG_NAMES.items() if name in values}
    ours["hidden_size"] = values["num_attention_heads"] * values["attention_head_dim"]
    for name in ("dual_attention_layers", "stem"):
        ours[name] = tuple(ours.get(name) or ())
    expectations = {"caption_projection_dim": ours["hidden_size"], "out_channels": ours["in_channels"]}
    for key, expected in expectations.items():
        if values.get(key) not in (None, expected):
            raise ValueError(f"{source}: {key} is {values[key]}, but this model needs {expected}")
    return DualDiTConfig(**{**ours, **overrides})


def config_to_dict(config: DualDiTConfig) -> dict[str, Any]:
    """Our configuration under diffusers' names, the inverse of `config_from_dict`.

    What is of 0.2 is left out where it is as in the paper: earlier versions refuse what they do not know.
    """
    values = {name: getattr(config, field) for field, name in CONFIG_NAMES.items()}
    for name in ("text_block_size", "text_input", "stem", "refiner"):
        if values[name] == getattr(DualDiTConfig, name):
            del values[name]
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    values["attention_head_dim"] = config.hidden_size // config.num_heads
    values["caption_projection_dim"] = config.hidden_size
    values["out_channels"] = config.in_channels
    return {"_class_name": "DualDiT", **dict(sorted(values.items()))}


def _shapes(model: DualDiT) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_transformer(
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **switches: Any,
) -> DualDiT:
    """A `DualDiT` from a diffusers-style `transformer/` folder, in the stored dtype unless told otherwise.

    Args:
        switches: fields of `config.SWITCHES` in place of the stored ones: the start of a conversion.

    Raises:
        ValueError: one line; the configuration or the tensors do not fit, and the first of them are named.
    """
    model, stored = _empty_transformer(Path(folder), dtype, **switches)
    model.load_state_dict(stored.read(stored.shapes, dtype, device), assign=True)
    return model


def _empty_transformer(
    folder: Path, dtype: torch.dtype | None, **switches: Any
) -> tuple[DualDiT, SafetensorsFiles]:
    """The model on the meta device, and its tensors, which fit it."""
    config = config_from_dict(read_json(folder / "config.json"), f"'{folder / 'config.json'}'")
    config = replace(config, **switches)
    with torch.device("meta"):
        model = DualDiT(config)
    stored = SafetensorsFiles(folder, TRANSFORMER_STEM, dtype)
    check_names(stored.shapes, _shapes(model), f"'{folder}'")
    return model, stored


def save_transformer(
    folder: str | os.PathLike[str],
    config: DualDiTConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes `config.json` and the weights (`files.write_tensors`) into a folder that exists.

    dtype: of the saved weights; None keeps each as it is.
    """
    folder = Path(folder)
    (folder / "config.json").write_text(json.dumps(config_to_dict(config), indent=2) + "\n")
    write_tensors(folder, TRANSFORMER_STEM, ((name, tensor.to(dtype)) for name, tensor in tensors))


class StreamedTransformer(NamedTuple):
    """A transformer's configuration and its tensors, one at a time: none is held."""

    config: DualDiTConfig
    tensors: Iterator[tuple[str, Tensor]]


def stream_transformer(
    folder: str | os.PathLike[str],
    names: Collection[str] | None = None,
    *,
    vocab_size: int | None = None,
    seed: int = 0,
) -> StreamedTransformer:
    """The transformer of a model folder, of SD3's as `from_sd3` makes it, in the stored dtype on the CPU.

    Args:
        names: of the tensors that are wanted, by default all.
        vocab_size, seed: of the new weights, if the folder is SD3's.

    Raises:
        ValueError: as `load_transformer` and `from_sd3`.
    """
    folder = Path(folder)
    if is_sd3_folder(folder):
        assert vocab_size is not None
        plan = _plan_sd3(folder / "transformer", vocab_size, None)
        generator = torch.Generator().manual_seed(seed)
        tensors = _sd3_tensors(plan, lambda name: next(plan.stored.stream([name]))[1], generator, names)
        return StreamedTransformer(plan.config, tensors)
    folder = folder / "transformer"
    model, stored = _empty_transformer(folder, None)
    wanted = [name for name in model.state_dict() if names is None or name in names]
    return StreamedTransformer(model.config, stored.stream(wanted))


def load_mask_embedding(path: str | os.PathLike[str]) -> Tensor:
    """A trained embedding of the mask token, (D,): the published lone `.pth` tensor, or safetensors.

    Raises:
        ValueError: if the file holds anything but one tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such mask embedding: '{path}'")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                values: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"'{path}' cannot be read as a lone tensor: {reason}") from None
    if isinstance(values, dict) and len(values) == 1:
        values = next(iter(values.values()))
    if not isinstance(values, Tensor):
        raise ValueError(f"'{path}' should hold one tensor, not a {type(values).__name__}")
    return values.flatten()


class SD3Report(NamedTuple):
    """What became of each tensor, by name.

    adapted: SD3's last text modulation, put in its new place.
    """

    copied: tuple[str, ...]
    adapted: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


class SD3Start(NamedTuple):
    """What `from_sd3` returns."""

    transformer: DualDiT
    report: SD3Report


SD3_RENAMED = {"norm_out.": "image_norm_out.", "proj_out.": "image_proj_out."}
SD3_DROPPED = "time_text_embed.text_embedder."


def _from_sd3_name(name: str) -> str:
    for theirs, ours in SD3_RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def from_sd3(
    folder: str | os.PathLike[str],
    *,
    vocab_size: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **switches: Any,
) -> SD3Start:
    """Starts a D-DiT from the transformer of an SD3 or SD3.5 diffusers folder.

    Everything whose name and shape agree is copied, the image head under its new name. New are the null
    image, the text head, and the text side of the last block behind its keys and values: there SD3 ends its
    text stream. That block's text modulation holds scale and shift only; they are put where ours keeps them
    and the rest starts at zero, so that the velocity is SD3's own, but for the pooled CLIP text, which is
    dropped.

    Args:
        folder: the pipeline's folder, with `transformer/` in it.
        vocab_size: rows of the text head.
        generator: of the new weights, on the CPU.
        switches: fields of `config.SWITCHES`.

    Raises:
        ValueError: if the folder's configuration or tensors are not SD3's.
    """
    plan = _plan_sd3(Path(folder) / "transformer", vocab_size, dtype, **switches)
    stored = plan.stored.read(plan.theirs.values(), dtype, device)
    tensors = {n: t.to(device) for n, t in _sd3_tensors(plan, stored.__getitem__, generator)}
    with torch.device("meta"):
        model = DualDiT(plan.config)
    model.load_state_dict(tensors, assign=True)
    copied = tuple(name for name in plan.theirs if name not in plan.adapted)
    dropped = tuple(name for name in plan.stored.shapes if name.startswith(SD3_DROPPED))
    return SD3Start(model, SD3Report(copied, plan.adapted, tuple(plan.new), dropped))


class _SD3Plan(NamedTuple):
    """Where each tensor of ours comes from: theirs, by their name, or new, with its shape."""

    config: DualDiTConfig
    stored: SafetensorsFiles
    theirs: dict[str, str]
    adapted: tuple[str, ...]
    new: dict[str, tuple[int, ...]]


def _plan_sd3(folder: Path, vocab_size: int, dtype: torch.dtype | None, **switches: Any) -> _SD3Plan:
    source = f"'{folder}'"
    values = read_json(folder / "config.json")
    config = config_from_dict(values, source, vocab_size=vocab_size, **switches)
    with torch.device("meta"):
        shapes = _shapes(DualDiT(config))
    stored = SafetensorsFiles(folder, TRANSFORMER_STEM, dtype)
    last = f"transformer_blocks.{config.depth - 1}."
    new_prefixes = (f"{last}attn.to_add_out.", f"{last}ff_context.", "text_proj_out.", "null_image_embd")
    adapted = (f"{last}norm1_context.linear.weight", f"{last}norm1_context.linear.bias")

    ours_of = {name: _from_sd3_name(name) for name in stored.shapes if not name.startswith(SD3_DROPPED)}
    found = {ours: stored.shapes[theirs] for theirs, ours in ours_of.items()}
    wanted = {name: shape for name, shape in shapes.items() if not name.startswith(new_prefixes)}
    wanted |= {name: (2 * config.hidden_size, *shapes[name][1:]) for name in adapted}
    check_names(found, wanted, source)
    theirs_of = {ours: theirs for theirs, ours in ours_of.items()}
    theirs = {name: theirs_of[name] for name in wanted}
    return _SD3Plan(config, stored, theirs, adapted, {n: shapes[n] for n in shapes if n not in wanted})


def _sd3_tensors(
    plan: _SD3Plan,
    read: Callable[[str], Tensor],
    generator: torch.Generator | None,
    names: Collection[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of ours, all or those of `names`; `read` gives theirs by their names. The new ones are drawn in the
    model's order."""
    for name, theirs in plan.theirs.items():
        if names is not None and name not in names:
            continue
        tensor = read(theirs)
        if name in plan.adapted:
            scale, shift = tensor.chunk(2)
            rest = shift.new_zeros(4 * plan.config.hidden_size, *shift.shape[1:])
            tensor = torch.cat([shift, scale, rest])
        yield name, tensor
    dtype = read(plan.theirs["context_embedder.weight"]).dtype
    for name, shape in plan.new.items():
        tensor = _fresh(name, shape, generator).to(dtype)
        if names is None or name in names:
            yield name, tensor


def _fresh(name: str, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Fresh weights as in `DualDiT.init_weights`: Xavier matrices, zero biases, a small normal null image."""
    if name == "null_image_embd":
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    if name.endswith("bias"):
        return torch.zeros(shape)
    bound = (6 / sum(shape)) ** 0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
