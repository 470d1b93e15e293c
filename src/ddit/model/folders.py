"""Model folders in the diffusers layout: find, load and save everything that a model needs."""

import contextlib
import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from ddit.config.parsing import build
from ddit.diffusion.flow import ImageSampling
from ddit.errors import near_misses
from ddit.files import SafetensorsFiles, check_names, find_variant, list_names, read_json
from ddit.inference.text_generator import TextSampling
from ddit.model import DualDiT
from ddit.model.weights import TRANSFORMER_STEM, from_sd3, load_transformer, save_transformer

if TYPE_CHECKING:  # transformers and diffusers take seconds to import
    from ddit.model.encoders import ImageCodec, TextCodec

HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]
SETTINGS_FILE = "ddit.json"


@dataclass(frozen=True)
class ModelSettings(ImageSampling):
    """How a model is to be used, saved beside it as `ddit.json`; the defaults are the published ones.

    Its way of drawing is `flow.ImageSampling`'s, key by key.

    Attributes:
        prompt_style: fields of `prompts.PromptStyle`; those left out are the published ones.
        image_size: side of the pictures it was trained on, in pixels.
        prompt_length: tokens of a prompt that is drawn.
        text_length: tokens of a caption, or of a question with its answer.
        caption_steps, answer_steps: of writing; filling in takes caption_steps.
        caption_length, answer_length: positions that are written after the prompt; None fills up text_length.
        writing: how it is written; files of earlier versions have `text_order` and `temperature` in its place.
    """

    prompt_style: dict[str, str | int] = field(default_factory=dict)
    image_size: int = 512
    prompt_length: int = 256
    text_length: int = 128
    caption_steps: int = 64
    answer_steps: int = 16
    caption_length: int | None = None
    answer_length: int | None = None
    writing: TextSampling = field(default_factory=TextSampling)

    def __post_init__(self) -> None:
        counts = ["image_size", "prompt_length", "text_length", "num_steps", "caption_steps", "answer_steps"]
        lengths = ("caption_length", "answer_length")
        for name in [*counts, *(name for name in lengths if getattr(self, name) is not None)]:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        super().__post_init__()


def resolve(name_or_path: str | os.PathLike[str], *, only_stored: bool = False) -> Path:
    """The local folder of a model: "mini" (packaged), a folder, or a hub id, which is downloaded once.

    A folder that is called mini is "./mini", or a `Path`. With `only_stored` nothing is downloaded.

    Raises:
        ValueError: one line, if it is none of these.
    """
    name = os.fspath(name_or_path)
    if name_or_path == "mini":
        packaged = Path(str(resources.files("ddit"))) / "assets" / "mini"
        if not packaged.is_dir():
            raise ValueError("the packaged model 'mini' is missing from this installation")
        return packaged
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise ValueError(f"'{name}' is a file: a model is a folder in the diffusers layout")
    if not re.fullmatch(r"[\w-]+[\w.-]*/[\w.-]+", name, flags=re.ASCII):
        reason = "not a hub id (owner/name)"
        raise ValueError(
            f"unknown model '{name}': not a folder, not 'mini', and {reason}{_near_models(name)}"
        )
    return _download(name, only_stored=only_stored)


def _near_models(name: str) -> str:
    """The packaged model and the folders beside the path, as far as their names are like it."""
    above = Path(name).parent
    try:
        beside = [str(path) for path in above.iterdir() if (path / "transformer").is_dir()]
    except OSError:
        beside = []
    return near_misses(name, ["mini", *beside])


def _download(name: str, *, only_stored: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS, local_files_only=only_stored))
    except LocalEntryNotFoundError:
        reason = "it has not been downloaded" if only_stored else "the hub cannot be reached"
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it needs a login"
    except HfHubHTTPError as error:
        reason = f"the hub refuses it ({str(error).splitlines()[0]})"
    except OSError as error:
        reason = f"the download failed ({str(error).splitlines()[0]})"
    raise ValueError(f"unknown model '{name}': not a folder, not 'mini', and {reason}{_near_models(name)}")


class ModelParts(NamedTuple):
    """What a model folder holds, loaded."""

    transformer: DualDiT
    image_codec: "ImageCodec"
    text_codec: "TextCodec"
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


def settings_for(folder: Path, trained_size: int) -> ModelSettings:
    """`load_settings`; without a `ddit.json` the pictures' size is bounded by `trained_size`, or is that, if SD3's."""
    settings = load_settings(folder)
    if (folder / SETTINGS_FILE).is_file():
        return settings
    is_sd3 = is_sd3_folder(folder)
    return replace(settings, image_size=trained_size if is_sd3 else min(trained_size, settings.image_size))


def is_sd3_folder(folder: Path) -> bool:
    """Whether a folder is SD3's own: its T5 is the third of three text encoders."""
    return (folder / "text_encoder_3").is_dir()


def load_image_codec(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> "ImageCodec":
    """The autoencoder in `folder/vae`, or in `folder` itself; `ValueError` in one line if that fails."""
    from ddit.model.encoders import ImageCodec

    vae = folder if (folder / "config.json").is_file() else folder / "vae"
    with _one_line(vae):
        variant = find_variant(vae, TRANSFORMER_STEM, dtype)
        codec = ImageCodec.from_pretrained(vae, dtype, variant=variant).to(device=device)
    _check_complete(codec.autoencoder, vae, TRANSFORMER_STEM, dtype)
    return codec


def load_text_codec(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> "TextCodec":
    """The T5 encoder and its tokenizer in `folder` (SD3's third); `ValueError` in one line if that fails."""
    from ddit.model.encoders import TextCodec

    suffix = "_3" if is_sd3_folder(folder) else ""
    encoder_folder, tokenizer_folder = folder / f"text_encoder{suffix}", folder / f"tokenizer{suffix}"
    _check_tokenizer(tokenizer_folder)
    with _one_line(encoder_folder):
        variant = find_variant(encoder_folder, "model", dtype)
        codec = TextCodec.from_pretrained(tokenizer_folder, encoder_folder, dtype, variant=variant)
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
    earlier = {"text_order": "order", "temperature": "temperature"}
    writing = {new: values.pop(old) for old, new in earlier.items() if old in values}
    writing |= values.pop("writing", {})
    unknown = sorted(set(values) - {item.name for item in fields(ModelSettings)})
    if unknown:
        near = near_misses(unknown[0], [item.name for item in fields(ModelSettings)])
        raise ValueError(f"'{path}': unknown key {list_names(unknown)}{near}")
    try:
        return ModelSettings(**values, writing=build(TextSampling, writing, "writing"))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None


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
    if next((True for t in text_codec.encoder.state_dict().values() if t.dtype == torch.int8), False):
        raise ValueError("a text encoder in 8 bit is for use, not for saving: load the model without int8")
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
        "tokenizer": ["transformers", type(text_codec.tokenizer).__name__],
        "transformer": ["ddit.model.dual_dit", "DualDiT"],
        "vae": ["ddit.model.autoencoder" if autoencoder == "PatchAutoencoder" else "diffusers", autoencoder],
    }
    for name, values in {
        "scheduler/scheduler_config.json": scheduler,
        SETTINGS_FILE: asdict(settings),
        "model_index.json": index,
    }.items():
        (aside / name).write_text(json.dumps(values, indent=2) + "\n")
    mode = (aside / "model_index.json").stat().st_mode
    for path in aside.rglob("*.safetensors"):  # written for their owner alone, by the library
        path.chmod(mode)
    _swap(aside, folder)


def _cast(module: Any, dtype: torch.dtype | None) -> Any:
    """The module itself, or a copy in another dtype."""
    if dtype is None or next(module.parameters()).dtype == dtype:
        return module
    return torch.nn.Module.to(copy.deepcopy(module), dtype)  # past diffusers' own `to`, which prints


def _swap(aside: Path, folder: Path) -> None:
    """Puts a finished folder in the place of one that may exist."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
