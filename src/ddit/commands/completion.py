"""What the shell completes for an option: quickly, so nothing here needs PyTorch."""

import os
from collections.abc import Callable
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps", "xpu")
FORMS = ("scenes", "json", "tar", "llava", "questions", "parquet")

Complete = Callable[[str], list[str]]


def among(*names: str) -> Complete:
    """Completes to these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def presets(incomplete: str) -> list[str]:
    """Presets of the small world."""
    from ddit.world import PRESETS

    return among(*PRESETS)(incomplete)


def all_presets(incomplete: str) -> list[str]:
    """Presets of the small world and of the wide world."""
    from ddit.world import PRESETS
    from ddit.world.wide import WIDE_PRESETS

    return among(*PRESETS, *WIDE_PRESETS)(incomplete)


def splits(incomplete: str) -> list[str]:
    """Splits of both worlds."""
    from ddit.world import SPLITS

    return among(*SPLITS)(incomplete)


def recipes(incomplete: str) -> list[str]:
    """Stages of training, and whole chains of them."""
    from ddit.recipes import list_recipes

    stages = list_recipes()
    tiny = [f"tiny-{name.removeprefix('mini-')}" for name in stages if name.startswith("mini-")]
    return among("mini", "tiny", "wide", *stages, *tiny)(incomplete)


def models(incomplete: str) -> list[str]:
    """Packaged models, hub ids that were downloaded, and folders; where there is none, the shell completes folders."""
    from ddit.model.folders import PACKAGED

    above = Path(incomplete if incomplete.endswith("/") else os.path.dirname(incomplete))
    try:
        folders = [str(path) for path in sorted(above.iterdir()) if (path / "transformer").is_dir()]
    except OSError:
        folders = []
    return among(*PACKAGED, *_downloaded(), *folders)(incomplete)


def _downloaded() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    found = sorted(Path(HF_HUB_CACHE).glob("models--*--*"))
    return [path.name.removeprefix("models--").replace("--", "/", 1) for path in found]
