"""Load and save model folders: ours, the published D-DiT checkpoints, SD3 and SD3.5.

The only file that knows foreign names. Weights are read from safetensors alone, and nothing that could hold a
pickle is ever executed; the one other file is the published mask embedding, a lone `.pth` tensor, which is read
with `weights_only`.
"""

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises when it refuses a file
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddit.model import DualDiT, DualDiTConfig
from ddit.stored import StoredTensors, check_names, list_names, read_json

if TYPE_CHECKING:
    from ddit.encoders import ImageCodec, TextCodec

TRANSFORMER_STEM = "diffusion_pytorch_model"
HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]
SETTINGS_FILE = "ddit.json"

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
    "image_attends_text": "image_attends_text",
}
OPTIONAL_KEYS = {"qk_norm", "dual_attention_layers", "image_attends_text"}
CHECKED_KEYS = {"attention_head_dim", "caption_projection_dim", "out_channels"}
DROPPED_KEYS = {"pooled_projection_dim"}  # SD3's CLIP conditioning, which D-DiT does without


@dataclass(frozen=True)
class ModelSettings:
    """How a model is to be used, saved beside it as `ddit.json`; the defaults are the published ones.

    Attributes:
        prompt_style: fields of `prompts.PromptStyle`; those left out are the published ones.
        image_size: side of the pictures it was trained on, in pixels.
        prompt_length: tokens of a prompt that is drawn.
        text_length: tokens of a caption, or of a question with its answer.
        num_steps, guidance_scale, shift: of drawing, see `flow.sample_latents`.
        caption_steps, answer_steps: of writing; filling in takes caption_steps.
        text_order, temperature: of writing, see `masked.sample_text`.
    """

    prompt_style: dict[str, str | int] = field(default_factory=dict)
    image_size: int = 512
    prompt_length: int = 256
    text_length: int = 128
    num_steps: int = 28
    guidance_scale: float = 7.0
    shift: float = 3.0
    caption_steps: int = 64
    answer_steps: int = 16
    text_order: Literal["random", "confidence"] = "random"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        counts = ("image_size", "prompt_length", "text_length", "num_steps", "caption_steps", "answer_steps")
        for name in counts:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        if self.text_order not in ("random", "confidence"):
            raise ValueError(f"text_order must be 'random' or 'confidence', got {self.text_order!r}")


# --- configuration ---


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
    ours["dual_attention_layers"] = tuple(ours.get("dual_attention_layers") or ())
    expectations = {"caption_projection_dim": ours["hidden_size"], "out_channels": ours["in_channels"]}
    for key, expected in expectations.items():
        if values.get(key) not in (None, expected):
            raise ValueError(f"{source}: {key} is {values[key]}, but this model needs {expected}")
    return DualDiTConfig(**{**ours, **overrides})


def config_to_dict(config: DualDiTConfig) -> dict[str, Any]:
    """Our configuration under diffusers' names, the inverse of `config_from_dict`."""
    values = {name: getattr(config, field) for field, name in CONFIG_NAMES.items()}
    values["dual_attention_layers"] = list(config.dual_attention_layers)
    values["attention_head_dim"] = config.hidden_size // config.num_heads
    values["caption_projection_dim"] = config.hidden_size
    values["out_channels"] = config.in_channels
    return {"_class_name": "DualDiT", **dict(sorted(values.items()))}


def _shapes(model: DualDiT) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_transformer(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> DualDiT:
    """A `DualDiT` from a diffusers-style `transformer/` folder, in the stored dtype unless told otherwise.

    Raises:
        ValueError: one line; the configuration or the tensors do not fit, and the first of them are named.
    """
    folder = Path(folder)
    config = config_from_dict(read_json(folder / "config.json"), f"'{folder / 'config.json'}'")
    with torch.device("meta"):
        model = DualDiT(config)
    stored = StoredTensors(folder, TRANSFORMER_STEM, dtype)
    check_names(stored.shapes, _shapes(model), f"'{folder}'")
    model.load_state_dict(stored.read(stored.shapes, dtype, device), assign=True)
    return model


def save_transformer(
    folder: str | os.PathLike[str], model: DualDiT, *, dtype: torch.dtype | None = None
) -> None:
    """Writes `config.json` and one safetensors file into a folder that exists."""
    folder = Path(folder)
    (folder / "config.json").write_text(json.dumps(config_to_dict(model.config), indent=2) + "\n")
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / f"{TRANSFORMER_STEM}.safetensors", metadata={"format": "pt"})


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
    if isinstance(values, Mapping) and len(values) == 1:
        values = next(iter(values.values()))
    if not isinstance(values, Tensor):
        raise ValueError(f"'{path}' should hold one tensor, not a {type(values).__name__}")
    return values.detach().flatten()


# --- SD3 ---


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
    image_attends_text: bool = True,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> SD3Start:
    """Starts a D-DiT from the transformer of an SD3 or SD3.5 diffusers folder.

    Everything whose name and shape agree is copied, the image head under its new name. New are the null image,
    the text head, and the text side of the last block behind its keys and values: SD3 ends its text stream
    there. That block's text modulation holds scale and shift only; they are put where ours keeps them and the
    rest starts at zero, so that the velocity is SD3's own, but for the pooled CLIP text, which is dropped.

    Args:
        folder: the pipeline's folder, with `transformer/` in it.
        vocab_size: rows of the text head.
        generator: of the new weights, on the CPU.

    Raises:
        ValueError: if the folder's configuration or tensors are not SD3's.
    """
    folder = Path(folder) / "transformer"
    source = f"'{folder}'"
    values = read_json(folder / "config.json")
    config = config_from_dict(values, source, vocab_size=vocab_size, image_attends_text=image_attends_text)
    with torch.device("meta"):
        model = DualDiT(config)
    shapes = _shapes(model)
    stored = StoredTensors(folder, TRANSFORMER_STEM, dtype)
    last = f"transformer_blocks.{config.depth - 1}."
    new_prefixes = (f"{last}attn.to_add_out.", f"{last}ff_context.", "text_proj_out.", "null_image_embd")
    adapted = [f"{last}norm1_context.linear.weight", f"{last}norm1_context.linear.bias"]

    ours_of = {name: _from_sd3_name(name) for name in stored.shapes if not name.startswith(SD3_DROPPED)}
    found = {ours: stored.shapes[theirs] for theirs, ours in ours_of.items()}
    wanted = {name: shape for name, shape in shapes.items() if not name.startswith(new_prefixes)}
    wanted |= {name: (2 * config.hidden_size, *shapes[name][1:]) for name in adapted}
    check_names(found, wanted, source)

    tensors = {ours_of[name]: tensor for name, tensor in stored.read(ours_of, dtype, device).items()}
    for name in adapted:
        scale, shift = tensors[name].chunk(2)
        tensors[name] = torch.cat([shift, scale, shift.new_zeros(4 * config.hidden_size, *shift.shape[1:])])
    stored_dtype = tensors["context_embedder.weight"].dtype
    new = [name for name in shapes if name.startswith(new_prefixes)]
    for name in new:
        tensors[name] = _fresh(name, shapes[name], generator).to(device=device, dtype=stored_dtype)
    model.load_state_dict(tensors, assign=True)
    copied = tuple(name for name in shapes if name not in new and name not in adapted)
    dropped = tuple(name for name in stored.shapes if name.startswith(SD3_DROPPED))
    return SD3Start(model, SD3Report(copied, tuple(adapted), tuple(new), dropped))


def _fresh(name: str, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Fresh weights as in `DualDiT.init_weights`: Xavier matrices, zero biases, a small normal null image."""
    if name == "null_image_embd":
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    if name.endswith("bias"):
        return torch.zeros(shape)
    bound = (6 / sum(shape)) ** 0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


# --- folders ---


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The local folder of a model: "mini" (packaged), a folder, or a hub id, which is downloaded once.

    Raises:
        ValueError: one line, if it is none of these.
    """
    name = os.fspath(name_or_path)
    if name == "mini" and not Path(name).is_dir():
        packaged = Path(str(resources.files("ddit"))) / "assets" / "mini"
        if not packaged.is_dir():
            raise ValueError("the packaged model 'mini' is missing from this installation")
        return packaged
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise ValueError(f"'{name}' is a file: a model is a folder in the diffusers layout")
    if not re.fullmatch(r"[\w-]+[\w.-]*/[\w.-]+", name, flags=re.ASCII):
        raise ValueError(f"unknown model '{name}': not a folder, not 'mini', and not a hub id (owner/name)")
    return _download(name)


def _download(name: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached"
    except HfHubHTTPError as error:
        reason = f"the hub refuses it ({str(error).splitlines()[0]})"
    except (OSError, httpx.HTTPError) as error:
        reason = f"the download failed ({str(error).splitlines()[0]})"
    raise ValueError(f"unknown model '{name}': not a folder, not 'mini', and {reason}")


def load_settings(folder: Path) -> ModelSettings:
    """The folder's `ddit.json`; without one, the published settings with the scheduler's shift.

    Raises:
        ValueError: on an unknown key or a value out of range.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        scheduler = folder / "scheduler" / "scheduler_config.json"
        shift = read_json(scheduler).get("shift", 3.0) if scheduler.is_file() else 3.0
        return replace(ModelSettings(), shift=float(shift))
    values = read_json(path)
    unknown = sorted(set(values) - {item.name for item in fields(ModelSettings)})
    if unknown:
        raise ValueError(f"'{path}': unknown key {list_names(unknown)}")
    return ModelSettings(**values)


def save_pipeline(
    folder: str | os.PathLike[str],
    *,
    transformer: DualDiT,
    image_codec: "ImageCodec",
    text_codec: "TextCodec",
    settings: ModelSettings,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model folder in the diffusers layout, aside first and then renamed, never half.

    Args:
        folder: new, or a model folder, which is replaced.
        dtype: of the saved weights; None keeps each as it is.

    Raises:
        ValueError: if the folder exists and holds something else.
    """
    folder = Path(folder).absolute()
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "model_index.json").is_file():
        raise ValueError(f"'{folder}' exists and is not a model folder: it is left alone")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        (aside / part).mkdir(parents=True)
    save_transformer(aside / "transformer", transformer, dtype=dtype)
    type(image_codec)(_cast(image_codec.autoencoder, dtype)).save_pretrained(aside / "vae")
    text_codec = type(text_codec)(text_codec.tokenizer, _cast(text_codec.encoder, dtype))
    text_codec.save_pretrained(aside / "tokenizer", aside / "text_encoder")
    autoencoder = type(image_codec.autoencoder).__name__
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": settings.shift,
    }
    index = {
        "_class_name": "DualDiffusionPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["ddit.model", "DualDiT"],
        "vae": ["ddit.autoencoder" if autoencoder == "PatchAutoencoder" else "diffusers", autoencoder],
    }
    for name, values in {
        "scheduler/scheduler_config.json": scheduler,
        SETTINGS_FILE: asdict(settings),
        "model_index.json": index,
    }.items():
        (aside / name).write_text(json.dumps(values, indent=2) + "\n")
    _swap(aside, folder)


def _cast(module: Any, dtype: torch.dtype | None) -> Any:
    """The module itself, or a copy in another dtype."""
    if dtype is None or next(module.parameters()).dtype == dtype:
        return module
    return copy.deepcopy(module).to(dtype)


def _swap(aside: Path, folder: Path) -> None:
    """Puts a finished folder in the place of one that may exist."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
