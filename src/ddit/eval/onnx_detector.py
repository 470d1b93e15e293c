"""A small second detector for GenEval, in ONNX: boxes in place of Mask2Former's masks.

It has the form in which transformers' RT-DETR and its like are exported: `pixel_values` in, `logits` and `pred_boxes`
out, and beside the file the `config.json` and `preprocessor_config.json` of the model. onnxruntime runs it; what comes
before and after is transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddit.eval.detectors import COCO_CLASSES, FoundObject
from ddit.files import read_json

SUFFIX = ".onnx"
OUTPUTS = ["logits", "pred_boxes"]


class _Outputs(NamedTuple):
    """What transformers' post-processing asks for. logits: (1, Q, classes). pred_boxes: (1, Q, 4)."""

    logits: Tensor
    pred_boxes: Tensor


class OnnxDetector:
    """run: pixels (1, 3, H, W) in float32 to logits and boxes, as the exported model. processor: transformers' own."""

    def __init__(self, run: Callable[[np.ndarray], Sequence[Any]], processor: Any):
        self.run, self.processor = run, processor

    @classmethod
    def from_file(cls, path: str | Path) -> OnnxDetector:
        """Of a file, whose settings lie beside it or one folder up.

        Raises:
            ValueError: in one line, if onnxruntime or a file is missing, or the model is of another kind.
        """
        from transformers import AutoImageProcessor

        path = Path(path)
        if not path.is_file():
            raise ValueError(f"'{path}' does not exist: give --detector the file of a detector in ONNX")
        places = [place for place in (path.parent, path.parent.parent) if (place / "config.json").is_file()]
        if not places or not (places[0] / "preprocessor_config.json").is_file():
            raise ValueError(
                f"'{path}' has no config.json and preprocessor_config.json beside it: take those of the model that it "
                "was exported from"
            )
        labels = read_json(places[0] / "config.json").get("id2label") or {}
        if len(labels) != len(COCO_CLASSES):
            raise ValueError(f"'{path}' knows {len(labels)} classes: GenEval's detector knows COCO's 80")
        try:
            import onnxruntime
        except ImportError:
            raise ValueError("a detector in ONNX needs onnxruntime: pip install 'ddit[geneval]'") from None
        try:
            session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime's own classes have no common base
            raise ValueError(f"'{path}' cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        missing = [name for name in OUTPUTS if name not in {output.name for output in session.get_outputs()}]
        if missing or [one.name for one in session.get_inputs()] != ["pixel_values"]:
            raise ValueError(
                f"'{path}' is no detector as transformers exports it: pixel_values in, logits and pred_boxes out"
            )
        processor = AutoImageProcessor.from_pretrained(places[0], backend="pil")
        return cls(lambda pixels: session.run(OUTPUTS, {"pixel_values": pixels}), processor)

    def find(self, image: Image.Image, *, threshold: float) -> list[FoundObject]:
        """The objects of an RGB image whose score is above the threshold, the most confident first."""
        pixels = self.processor(images=image, return_tensors="np")["pixel_values"]
        outputs = _Outputs(*map(torch.from_numpy, self.run(pixels.astype(np.float32))))
        (found,) = self.processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[image.size[::-1]]
        )
        objects = [
            FoundObject(COCO_CLASSES[label], _clipped(box, image.size), score)
            for score, label, box in zip(
                *(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True
            )
        ]
        return sorted(objects, key=lambda one: -one.score)


def _clipped(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box within the image."""
    left, top, right, bottom = (min(max(side, 0.0), float(size[i % 2])) for i, side in enumerate(box))
    return left, top, right, bottom
