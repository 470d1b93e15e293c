"""What lmms-eval finds under the entry point `lmms_eval.models`: the name `ddit` and where its class is."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of `lmms_model.DDiT`, which is imported when a run asks for it."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest(model_id="ddit", simple_class_path="ddit.eval.lmms_model.DDiT")
