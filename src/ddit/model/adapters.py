"""Low-rank adapters (LoRA, arXiv 2106.09685) on a `DualDiT`, through the library peft, extra `[lora]`.

Adapters sit on the attention and MLP linears of both streams. The parts that SD3 has no trained form of, the text head
and the null image, are trained whole beside them; everything else is frozen. The folders are peft's own
(`adapter_config.json`, `adapter_model.safetensors`), so that `peft.PeftModel.from_pretrained` reads them too; beside
them, the image path's adapters alone are in diffusers' form for SD3 (`sd3_lora`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddit.files import SafetensorsFiles, check_names, list_names, read_json
from ddit.model import DualDiT
from ddit.model.sd3_lora import WEIGHTS_FILE, SD3Lora, diffusers_state, is_sd3_lora, read_sd3_lora

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = (
    r"transformer_blocks\.\d+\."
    r"(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2))"
)
"""Full names of the linears that get an adapter, as a regular expression."""
WHOLE = ("text_proj_out", "null_image_embd")
"""Parts that are trained whole."""

CONFIG_FILE, STEM, NAME = "adapter_config.json", "adapter_model", "default"
_PREFIX = "base_model.model."  # what peft puts before the names in its files


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA adapters need the library peft: pip install 'ddit[lora]'") from None
    return peft


def add_adapters(
    transformer: DualDiT,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
) -> None:
    """Puts fresh adapters on `transformer`, in place, and leaves only them and the `WHOLE` parts trainable.

    A fresh adapter changes nothing: its second matrix is zero. A weight W becomes W + alpha / rank * B A. Dropout, if
    any, draws from torch's global generator.

    Args:
        seed: of the first matrices.
        frozen_dtype: what is frozen is cast to this; None leaves it.

    Raises:
        ValueError: in one line, on a rank below 1 or adapters that are there already, or if peft is not installed.
    """
    if rank < 1:
        raise ValueError(f"adapters need a rank of at least 1, got {rank}")
    config = _peft().LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGETS)
    _inject(transformer, config, seed=seed)
    if frozen_dtype is not None:
        for parameter in transformer.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(frozen_dtype)


def _inject(transformer: DualDiT, config: LoraConfig, *, seed: int) -> None:
    if adapter_scale(transformer) is not None:
        raise ValueError("the transformer has adapters already: merge them first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _peft().inject_adapter_in_model(config, transformer, adapter_name=NAME)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(WHOLE))


def _layers(transformer: nn.Module) -> dict[str, Any]:
    """The adapted linears by name: peft's layers, which hold the frozen one as `base_layer`."""
    return {name: module for name, module in transformer.named_modules() if hasattr(module, "lora_A")}


def adapter_scale(transformer: nn.Module) -> float | None:
    """alpha / rank of the adapters, or None if there are none."""
    return next((layer.scaling[NAME] for layer in _layers(transformer).values()), None)


def trained_names(transformer: nn.Module) -> list[str]:
    """Names of the trainable parameters, in the model's order."""
    return [name for name, parameter in transformer.named_parameters() if parameter.requires_grad]


def save_adapters(
    folder: str | os.PathLike[str],
    transformer: DualDiT,
    *,
    base: str | None = None,
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the adapters and the parts trained whole to `folder`, without the model that they belong to.

    Also writes those that SD3 has a counterpart of as `pytorch_lora_weights.safetensors`, which diffusers'
    `load_lora_weights` reads.

    Args:
        base: name or folder of that model, noted in the file.
        state: other values under the names of `trained_names`, such as averaged or gathered ones.
        dtype: of the saved tensors; None keeps each as it is.

    Raises:
        ValueError: if there are no adapters, or `state` lacks one of the tensors.
    """
    layers, names = _layers(transformer), trained_names(transformer)
    if not layers:
        raise ValueError("the transformer has no adapters to save")
    tensors = dict(transformer.named_parameters()) if state is None else dict(state)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"the state has no {missing[0]}, and {len(missing) - 1} more are missing")
    layer = next(iter(layers.values()))
    config = _peft().LoraConfig(
        r=layer.r[NAME], lora_alpha=layer.lora_alpha[NAME], lora_dropout=_dropout(layer), target_modules=TARGETS,
        modules_to_save=[WHOLE[0]], inference_mode=True, base_model_name_or_path=base,
    )  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    stored = {
        _PREFIX + name.replace(f".{NAME}.", "."): tensors[name].detach().to("cpu", dtype).contiguous()
        for name in names
    }
    save_file(stored, folder / f"{STEM}.safetensors", metadata={"format": "pt"})
    about = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": TARGETS}
    plain = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    tensors, header = diffusers_state(plain, transformer.config.depth - 1, about)
    save_file(tensors, folder / WEIGHTS_FILE, metadata=header)


def _dropout(layer: Any) -> float:
    return getattr(layer.lora_dropout[NAME], "p", 0.0)  # no dropout is an Identity


def load_adapters(transformer: DualDiT, folder: str | os.PathLike[str]) -> None:
    """Puts the adapters of a folder on `transformer`, in place, in its dtype and on its device.

    Raises:
        ValueError: in one line, if the folder holds no adapters, or those of a model of another shape.
    """
    folder, peft = Path(folder), _peft()
    values = read_json(folder / CONFIG_FILE)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"'{folder / CONFIG_FILE}' describes {values.get('peft_type')!r}, not LORA adapters")
    config = peft.LoraConfig.from_pretrained(str(folder))
    config.modules_to_save = None  # ours stand in the model itself, not in a copy beside it
    head = transformer.text_proj_out.weight
    _inject(transformer, config, seed=0)
    transformer.to(head.dtype)
    own = {_PREFIX + name.replace(f".{NAME}.", "."): name for name in trained_names(transformer)}
    wanted = {theirs: tuple(transformer.get_parameter(name).shape) for theirs, name in own.items()}
    stored = SafetensorsFiles(folder, STEM, head.dtype)
    check_names(stored.shapes, wanted, f"'{folder}'")
    tensors = stored.read(stored.shapes, head.dtype, "cpu" if head.is_meta else head.device)
    state = {name: tensors[theirs] for theirs, name in own.items()}
    transformer.load_state_dict(state, strict=False, assign=head.is_meta)


def find_sd3_lora(path: str | os.PathLike[str], transformer: nn.Module) -> SD3Lora | None:
    """The changes of a LoRA file made for SD3, or of a folder with one; None if these are a D-DiT's own adapters.

    Warns of what a D-DiT has no counterpart of.

    Raises:
        ValueError: in one line, as `read_sd3_lora`.
    """
    if not is_sd3_lora(Path(path)):
        return None
    found = read_sd3_lora(Path(path), {name: tuple(p.shape) for name, p in transformer.named_parameters()})
    if found.left_out:
        warnings.warn(
            f"{found.source}: {len(found.left_out):,} modules are left out, since a D-DiT has none such: "
            f"{list_names(found.left_out)}",
            stacklevel=3,
        )
    return found


def merge_stored(transformer: DualDiT, path: str | os.PathLike[str]) -> None:
    """Adds what a folder of adapters or a LoRA file for SD3 holds to a model's weights, in place.

    Raises:
        ValueError: as `load_adapters` and `find_sd3_lora`.
    """
    lora = find_sd3_lora(path, transformer)
    if lora is not None:
        lora.merge_into(transformer)
    else:
        load_adapters(transformer, path)
        merge_adapters(transformer)


def stored_vocabulary(folder: Path) -> int:
    """Rows of the text head that a folder of adapters holds; ValueError if it holds none."""
    read_json(folder / CONFIG_FILE)
    shapes, name = SafetensorsFiles(folder, STEM, None).shapes, f"{_PREFIX}text_proj_out.weight"
    if name not in shapes:
        raise ValueError(f"'{folder}' has no {name}: these are not adapters of a D-DiT")
    return shapes[name][0]


@torch.no_grad()
def merged_tensors(adapters: DualDiT, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """A model's tensors with the adapters added to them in float32, one at a time: none is held.

    Args:
        adapters: a transformer on the meta device, but for its adapters and the `WHOLE` parts.
        tensors: of the model without them, by the names of a plain `DualDiT`.
    """
    layers = _layers(adapters)
    for name, tensor in tensors:
        layer = layers.get(name.removesuffix(".weight"))
        if name.startswith(WHOLE):
            yield name, adapters.get_parameter(name).detach()
        elif layer is None:
            yield name, tensor
        else:
            base = layer.get_base_layer()
            base.weight = nn.Parameter(tensor.to(torch.float32, copy=True), requires_grad=False)
            layer.merge(adapter_names=[NAME])
            yield name, base.weight.detach()
            base.weight = nn.Parameter(base.weight.detach().to("meta"), requires_grad=False)


@torch.no_grad()
def merge_adapters(transformer: DualDiT) -> None:
    """Adds the adapters to the weights that they stand beside and takes them off, in place; all is trainable again.

    What remains is a plain `DualDiT` with the names and shapes of one.

    Raises:
        ValueError: if there are no adapters.
    """
    layers = _layers(transformer)
    if not layers:
        raise ValueError("the transformer has no adapters to merge")
    for name, layer in layers.items():
        layer.merge(adapter_names=[NAME])
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config
    transformer.requires_grad_(True)
