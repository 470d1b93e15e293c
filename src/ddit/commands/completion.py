"""What the shell completes for an option. The names stand here once more, since a key press cannot wait for PyTorch."""

import os
from collections.abc import Callable
from pathlib import Path

ORDERS = ("random", "first-hitting", "confidence", "margin", "threshold", "entropy")
SAMPLERS = ("paper", "euler", "adams", "dpm")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
TASKS = ("geneval", "vqav2", "vizwiz", "gqa", "pope", "mme", "caption")
PRESETS = ("fixed-1", "fixed", "fixed-3", "grid", "free")
SPLITS = ("train", "val", "test", "heldout", "detector")
FORMS = ("scenes", "json", "tar", "llava", "questions", "parquet")
_BIG = [
    f"{size}-{stage}"
    for size in ("sd3-medium", "sd3.5-medium")
    for stage in ("stage1", "stage2", "stage2_512", "stage3", "lora")
]
_SMALL = (
    "vae", "text", "teacher", "latents", "latents_mixed", "image", "stage1", "stage2", "stage3", "stage4",
    "isolated", "stage4_128",
)  # fmt: skip
RECIPES = ("mini", "tiny", *_BIG, *(f"{family}-{stage}" for family in ("mini", "tiny") for stage in _SMALL))

Complete = Callable[[str], list[str]]


def among(*names: str) -> Complete:
    """Completes to these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """`mini`, hub ids that were downloaded, model folders; where there is none, the shell completes folders."""
    above = Path(incomplete if incomplete.endswith("/") else os.path.dirname(incomplete))
    try:
        folders = [str(path) for path in sorted(above.iterdir()) if (path / "transformer").is_dir()]
    except OSError:
        folders = []
    return among("mini", *_downloaded(), *folders)(incomplete)


def _downloaded() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    found = sorted(Path(HF_HUB_CACHE).glob("models--*--*"))
    return [path.name.removeprefix("models--").replace("--", "/", 1) for path in found]
