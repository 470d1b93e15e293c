"""LoRA files made for SD3 and SD3.5, as changes to a `DualDiT`'s weights; and our adapters in diffusers' form.

It reads diffusers' `pytorch_lora_weights.safetensors` ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
peft's own folders of an SD3 transformer, and kohya's files with SD3's original names
("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight" with an alpha), whose queries, keys and values are one
matrix.

A file changes W to W + alpha / rank * B A. Where it says nothing of alpha, that is B A, as in diffusers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddit.files import SafetensorsFiles, list_names, read_json
from ddit.model.weights import SD3_RENAMED

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps the adapters' configuration, in the file's header."""
_PEFT_FILES = "adapter_config.json", "adapter_model"
_PREFIXES = re.compile(
    r"^(base_model\.model\.|transformer\.|model\.diffusion_model\.|diffusion_model\.|lora_unet_|lora_transformer_)+"
)
_MATRIX = re.compile(r"^(.+?)\.(lora_A|lora_down|lora\.down|lora_B|lora_up|lora\.up)(?:\.default)?\.weight$")
_STREAMS = {
    "x_block": {
        "attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn_proj": ("attn.to_out.0",),
        "attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "attn2_proj": ("attn2.to_out.0",),
        "mlp_fc1": ("ff.net.0.proj",),
        "mlp_fc2": ("ff.net.2",),
        "adaLN_modulation_1": ("norm1.linear",),
    },
    "context_block": {
        "attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn_proj": ("attn.to_add_out",),
        "mlp_fc1": ("ff_context.net.0.proj",),
        "mlp_fc2": ("ff_context.net.2",),
        "adaLN_modulation_1": ("norm1_context.linear",),
    },
}
_ORIGINAL = {
    "x_embedder_proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "final_layer_linear": "image_proj_out",
    "final_layer_adaLN_modulation_1": "image_norm_out.linear",
}


class _Change(NamedTuple):
    """A pair of matrices in a file, and which part of their product's rows belongs to a layer of ours."""

    down: str
    up: str
    scale: float
    part: int = 0
    num_parts: int = 1
    is_original: bool = False


@dataclass(frozen=True)
class SD3Lora:
    """The changes of a file to the weights of a `DualDiT`.

    Attributes:
        left_out: modules of the file that a D-DiT has no counterpart of, such as those of CLIP.
    """

    files: SafetensorsFiles
    changes: Mapping[str, list[_Change]]
    left_out: tuple[str, ...]
    source: str

    def change(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """What is added to the weight `name`, of that shape, in float32; None if nothing is."""
        changes = self.changes.get(name)
        if changes is None:
            return None
        total = torch.zeros(shape)
        for one in changes:
            stored = self.files.read([one.down, one.up], torch.float32, "cpu")
            product = one.scale * (stored[one.up].flatten(1) @ stored[one.down].flatten(1))
            rows = product.chunk(one.num_parts)[one.part]
            total += _in_our_order(name, rows, shape[0], is_original=one.is_original).view(shape)
        return total

    def merged(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """A model's tensors with the changes added in float32, one at a time."""
        for name, tensor in tensors:
            change = self.change(name, tuple(tensor.shape))
            yield name, tensor if change is None else tensor.float() + change.to(tensor.device)

    @torch.no_grad()
    def merge_into(self, transformer: nn.Module) -> None:
        """Adds the changes to a model's weights in float32, in place."""
        for name in self.changes:
            weight = transformer.get_parameter(name)
            change = self.change(name, tuple(weight.shape))
            assert change is not None
            weight.copy_(weight.float() + change.to(weight.device))


def _in_our_order(name: str, rows: Tensor, num_rows: int, *, is_original: bool) -> Tensor:
    """The rows of modulations as ours: diffusers has scale before shift where SD3 and our last text block have the
    reverse, and SD3's last text block has these two alone."""
    if name == "image_norm_out.linear.weight" and is_original:
        return torch.cat(rows.chunk(2)[::-1])
    if name.endswith("norm1_context.linear.weight") and 3 * len(rows) == num_rows:
        both = rows if is_original else torch.cat(rows.chunk(2)[::-1])
        return torch.cat([both, rows.new_zeros(num_rows - len(rows), rows.shape[1])])
    return rows


def is_sd3_lora(path: Path) -> bool:
    """Whether a file or folder holds such a LoRA, rather than a D-DiT's own adapters."""
    if path.is_file():
        return path.suffix == ".safetensors"
    if (path / _PEFT_FILES[0]).is_file():
        names = SafetensorsFiles(path, _PEFT_FILES[1], None).shapes
        return not any("text_proj_out" in name for name in names)
    return path.is_dir() and any(path.glob("*.safetensors"))


def read_sd3_lora(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> SD3Lora:
    """The changes of a file, or of a folder with one, to a model with parameters of these shapes; no tensor is read.

    Raises:
        ValueError: in one line; if the file holds no LoRA, another kind, or one of a model of another size.
    """
    files, config = _open(path)
    targets = _targets(shapes)
    changes: dict[str, list[_Change]] = {}
    left_out = []
    for module, (down, up) in _pairs(files, f"'{path}'").items():
        key = _PREFIXES.sub("", module).replace(".", "_")
        names = targets.get(key, ())
        if not names:
            left_out.append(module)
            continue
        rank = files.shapes[down][0]
        scale = _scale(files, config, module, rank)
        is_original = "joint_blocks" in key or "final_layer" in key
        for part, name in enumerate(names):
            changes.setdefault(name, []).append(_Change(down, up, scale, part, len(names), is_original))
    if not changes:
        raise ValueError(f"'{path}' changes nothing of an SD3 transformer: it holds {list_names(left_out)}")
    _check_sizes(files, changes, shapes, f"'{path}'")
    return SD3Lora(files, changes, tuple(left_out), f"'{path}'")


def _open(path: Path) -> tuple[SafetensorsFiles, dict[str, Any]]:
    """The tensors, and what is said of alpha: peft's configuration, its keys without a prefix."""
    if path.is_dir() and (path / _PEFT_FILES[0]).is_file():
        return SafetensorsFiles(path, _PEFT_FILES[1], None), read_json(path / _PEFT_FILES[0])
    file = path
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        file = path / WEIGHTS_FILE
        if file not in found:
            if len(found) != 1:
                raise ValueError(f"'{path}' has no {WEIGHTS_FILE}: name the file that is meant")
            file = found[0]
    files = SafetensorsFiles(file.parent, file.stem, None)
    with safe_open(file, framework="pt") as opened:
        stored = json.loads((opened.metadata() or {}).get(METADATA_KEY, "{}"))
    prefix = "transformer."
    return files, {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}


def _pairs(files: SafetensorsFiles, source: str) -> dict[str, tuple[str, str]]:
    """The names of both matrices of each module."""
    found: dict[str, dict[bool, str]] = {}
    others = []
    for name in files.shapes:
        match = _MATRIX.match(name)
        if match:
            found.setdefault(match[1], {})[match[2] in ("lora_A", "lora_down", "lora.down")] = name
        elif not name.endswith(".alpha"):
            others.append(name)
    others += [next(iter(both.values())) for both in found.values() if len(both) < 2]
    if others or not found:
        reason = f"{list_names(others)} is of another kind" if others else "it holds no tensor"
        raise ValueError(f"{source} is no plain LoRA: {reason}")
    return {module: (both[True], both[False]) for module, both in found.items()}


def _scale(files: SafetensorsFiles, config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank of a module: its own alpha, else that of the configuration, else 1."""
    if f"{module}.alpha" in files.shapes:
        alpha = files.read([f"{module}.alpha"], torch.float32, "cpu")[f"{module}.alpha"].item()
        return alpha / rank
    if "lora_alpha" not in config:
        return 1.0
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    own = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(own, config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _targets(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
    """Weights of ours by a file's name for their module, with _ for each dot; three for queries, keys and values."""
    found: dict[str, tuple[str, ...]] = {}
    for name in shapes:
        module, _, kind = name.rpartition(".")
        if kind == "weight" and not module.startswith("text_proj_out"):
            found[module.replace(".", "_")] = (name,)
            for theirs, ours in SD3_RENAMED.items():
                if f"{module}.".startswith(ours):
                    found[f"{module}.".replace(ours, theirs, 1).rstrip(".").replace(".", "_")] = (name,)
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("transformer_blocks.")}
    for index in blocks:
        for stream, modules in _STREAMS.items():
            for theirs, ours in modules.items():
                names = tuple(f"transformer_blocks.{index}.{one}.weight" for one in ours)
                found[f"joint_blocks_{index}_{stream}_{theirs}"] = names
    found |= {theirs: (f"{ours}.weight",) for theirs, ours in _ORIGINAL.items()}
    return {key: names for key, names in found.items() if all(name in shapes for name in names)}


def _check_sizes(
    files: SafetensorsFiles,
    changes: Mapping[str, list[_Change]],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """ValueError in one line for matrices that do not fit their weights, the first of them named."""
    wrong = []
    for name, own in changes.items():
        rows, columns = shapes[name][0], math.prod(shapes[name][1:])
        for one in own:
            up, down = files.shapes[one.up], files.shapes[one.down]
            fits = up[0] / one.num_parts in ({rows, rows / 3} if "norm1_context" in name else {rows})
            if not (fits and math.prod(down[1:]) == columns and math.prod(up[1:]) == down[0]):
                wrong.append(f"{one.up} {list(up)} and {one.down} {list(down)} for {rows} x {columns}")
    if wrong:
        raise ValueError(f"{source} belongs to a model of another size: {list_names(wrong)}")


def diffusers_state(
    tensors: Mapping[str, Tensor], last_block: int, config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A D-DiT's adapters as the tensors and the header of diffusers' file for SD3.

    What SD3 lacks is left out: the text side of its last block behind the keys and values.

    Args:
        tensors: by names such as "transformer_blocks.0.attn.to_q.lora_A.weight".
        config: peft's, of which rank and alpha are noted.
    """
    lacking = (
        f"transformer_blocks.{last_block}.attn.to_add_out.",
        f"transformer_blocks.{last_block}.ff_context.",
    )
    stored = {
        f"transformer.{name}": tensor
        for name, tensor in tensors.items()
        if ".lora_" in name and not name.startswith(lacking)
    }
    about = {f"transformer.{key}": value for key, value in config.items()}
    return stored, {"format": "pt", METADATA_KEY: json.dumps(about, sort_keys=True)}
