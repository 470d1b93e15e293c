"""Model folders in the diffusers layout: where they are, and their settings. Needs no torch."""

import os
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from ddit.errors import near_misses
from ddit.files import read_json
from ddit.schema import list_options, parse, to_data
from ddit.settings import ImageSampling, ModelSettings, TextSampling, UnmaskingRule

HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]
SETTINGS_FILE = "ddit.json"
INT8_MARK = "text_encoder"
"""Key of `ddit.json`, there where the text encoder is stored in 8 bit; the headers of its files say it, too."""
PACKAGED = ("mini",)
"""Models that come with the package."""
OLD_TEXT_KEYS = ("text_order", "temperature", "writing")  # of version 0.1


def resolve(name_or_path: str | os.PathLike[str], *, only_stored: bool = False) -> Path:
    """The local folder of a model: one of `PACKAGED`, a folder, or a hub id, which is downloaded once.

    A folder that is called mini is "./mini", or a `Path`. With `only_stored` nothing is downloaded.

    Raises:
        ValueError: one line, if it is none of these.
    """
    name = os.fspath(name_or_path)
    if name_or_path in PACKAGED:
        packaged = Path(str(resources.files("ddit"))) / "assets" / name
        if not packaged.is_dir():
            raise ValueError(f"the packaged model '{name}' is missing from this installation")
        return packaged
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise ValueError(f"'{name}' is a file: a model is a folder in the diffusers layout")
    if not re.fullmatch(r"[\w-]+[\w.-]*/[\w.-]+", name, flags=re.ASCII):
        raise _unknown(name, "not a hub id (owner/name)")
    return _download(name, only_stored=only_stored)


def _unknown(name: str, reason: str) -> ValueError:
    packaged = " or ".join(PACKAGED)
    return ValueError(
        f"unknown model '{name}': not a folder, not packaged ({packaged}), and {reason}{_near_models(name)}"
    )


def _near_models(name: str) -> str:
    """The packaged models and the folders beside the path, as far as their names are like it."""
    above = Path(name).parent
    try:
        beside = [str(path) for path in above.iterdir() if (path / "transformer").is_dir()]
    except OSError:
        beside = []
    return near_misses(name, [*PACKAGED, *beside])


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
    raise _unknown(name, reason)


def settings_for(folder: Path, trained_size: int) -> ModelSettings:
    """`load_settings`; without a `ddit.json` the images' size is bounded by `trained_size`, or is that, if SD3's."""
    settings = load_settings(folder)
    if (folder / SETTINGS_FILE).is_file():
        return settings
    is_sd3 = is_sd3_folder(folder)
    return replace(settings, image_size=trained_size if is_sd3 else min(trained_size, settings.image_size))


def is_sd3_folder(folder: Path) -> bool:
    """Whether a folder is SD3's own, whose T5 is the third of three text encoders, though that may be missing."""
    return any((folder / name).is_dir() for name in ("text_encoder_2", "text_encoder_3"))


def text_folders(folder: Path) -> tuple[Path, Path]:
    """Where T5's encoder and its tokenizer are: two folders of a model, of SD3 the third ones, or T5's own for both.

    Raises:
        ValueError: as `check_t5`.
    """
    check_t5(folder)
    suffix = "_3" if is_sd3_folder(folder) else ""
    parts = folder / f"text_encoder{suffix}", folder / f"tokenizer{suffix}"
    config = folder / "config.json"
    if config.is_file() and not parts[0].is_dir() and read_json(config).get("model_type") == "t5":
        return folder, folder
    return parts


def check_t5(folder: Path) -> None:
    """Raises ValueError if a folder of SD3 lacks its third text encoder."""
    if is_sd3_folder(folder) and not all(
        (folder / part).is_dir() for part in ("text_encoder_3", "tokenizer_3")
    ):
        raise ValueError(
            f"'{folder}' is SD3 without T5, its third text encoder, which D-DiT needs: add text_encoder_3/ and "
            "tokenizer_3/ of stabilityai/stable-diffusion-3-medium-diffusers"
        )


def load_settings(folder: Path) -> ModelSettings:
    """The folder's `ddit.json`; without one, the published settings with the scheduler's shift.

    Raises:
        ValueError: on an unknown key or a value out of range.
    """
    path = folder / SETTINGS_FILE
    try:
        if path.is_file():
            return parse(ModelSettings, _from_0_1(read_json(path)))
        path = folder / "scheduler" / "scheduler_config.json"
        shift = read_json(path).get("shift", 3.0) if path.is_file() else 3.0
        return ModelSettings(image_sampling=ImageSampling(shift=shift))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}" if str(path) not in str(error) else str(error)) from None


def settings_to_dict(settings: ModelSettings) -> dict[str, Any]:
    """What `load_settings` reads. An option of 0.2 is left out at its default, so that 0.1, which refuses what it does
    not know, loads the folder."""
    values = to_data(settings)
    rule = values["text_sampling"]["rule"]
    if rule["edit_above"] == UnmaskingRule.edit_above:
        del rule["edit_above"]
    return values


def _from_0_1(values: dict[str, Any]) -> dict[str, Any]:
    """The settings in today's form; version 0.1 had those of images at the top, and those of texts in `writing`.

    Raises:
        ValueError: for a key of 0.1 beside the group of today that holds it.
    """
    values = {key: value for key, value in values.items() if (key, value) != (INT8_MARK, "int8")}
    today = [option.name for option in list_options(ImageSampling)]
    image_keys = {"solver" if name == "sampler" else name: name for name in today}
    for group, old_keys in (("image_sampling", image_keys), ("text_sampling", OLD_TEXT_KEYS)):
        beside = [key for key in old_keys if key in values and group in values]
        if beside:
            raise ValueError(f"{beside[0]} stands beside {group}, which holds it since 0.2")
    image = {new: values.pop(old) for old, new in image_keys.items() if old in values}
    values.setdefault("image_sampling", image)
    if "text_sampling" not in values:
        values["text_sampling"] = _text_sampling_from_0_1(values)
    style = values.get("prompt_style")
    if isinstance(style, dict) and "draw_padding" in style and "prompt_padding" not in style:
        values["prompt_style"] = {k: v for k, v in style.items() if k != "draw_padding"}
        values["prompt_style"]["prompt_padding"] = style["draw_padding"]
    return values


def _text_sampling_from_0_1(values: dict[str, Any]) -> dict[str, Any]:
    """Takes the sampling of texts out of the settings, where it was in one piece with its rule."""
    text = {"order": values.pop("text_order")} if "text_order" in values else {}
    text |= {"temperature": values.pop("temperature")} if "temperature" in values else {}
    writing = values.pop("writing", {})
    if not isinstance(writing, dict):
        raise ValueError(
            f"writing, which is text_sampling since 0.2, must be an object with keys, got {writing!r}"
        )
    text |= writing
    if text.get("order") == "first-hitting":
        text["order"] = "random"
    fields = [name for name in TextSampling.__dataclass_fields__ if name != "rule"]
    own = {name: text.pop(name) for name in fields if name in text}
    return {**own, "rule": text}
