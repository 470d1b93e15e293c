"""GenEval's two networks from transformers: objects by a Mask2Former of COCO's classes, and colours by a CLIP.

The official scorer (Ghosh et al. 2023, github.com/djghosh13/geneval) runs mmdet's Mask2Former (Swin-S) and open_clip's
ViT-L/14. What an image goes through on its way in, how masks become boxes with scores, which of them count, and what
CLIP is asked, follow that scorer and mmdet's Mask2Former. The networks are read in float32.
Shapes: Q queries, H, W an image's rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddit.files import list_names, read_json
from ddit.model.folders import resolve
from ddit.world import COLORS
from ddit.world.scenes import Box

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes in their order, by GenEval's names."""

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32
MAX_INSTANCES = 100
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_NORM = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
COLOR_TEXTS = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
BEHIND = "#999"
"""What stands around an object while its colour is asked for."""


class FoundObject(NamedTuple):
    """An object in an image; its mask is (H, W), bool, or None if the detector gives boxes alone."""

    class_name: str
    box: Box
    score: float
    mask: np.ndarray | None = None


def keep_objects(
    found: Sequence[FoundObject], *, threshold: float, max_objects: int = 16, max_overlap: float = 1.0
) -> list[FoundObject]:
    """The objects that count, class by class, the most confident first: the official rule.

    Args:
        threshold: of the score, which must be above it.
        max_objects: of a class.
        max_overlap: of two objects of a class, as `overlap`; at 1 all stay.
    """
    kept: list[FoundObject] = []
    by_class: dict[str, list[FoundObject]] = {}
    for one in sorted(found, key=lambda one: -one.score):
        if one.score > threshold:
            by_class.setdefault(one.class_name, []).append(one)
    for name in COCO_CLASSES:
        left = by_class.get(name, [])[:max_objects]
        while left:
            best = left.pop(0)
            kept.append(best)
            if max_overlap != 1:
                left = [one for one in left if overlap(best.box, one.box) < max_overlap]
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, of boxes whose last pixel is in them: GenEval's convention."""
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1, 0) for i in (0, 1)]
    areas = [max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0) for box in (a, b)]
    union = sum(areas) - sides[0] * sides[1]
    return sides[0] * sides[1] / union if union else 0.0


def _load(kind: str, model_type: str, name: str, device: torch.device | str) -> tuple[Path, Any]:
    """A network of transformers in float32, and its folder; ValueError in one line if it cannot be had whole."""
    import transformers

    folder = resolve(name)
    values = read_json(folder / "config.json")
    if values.get("model_type") != model_type:
        raise ValueError(f"'{name}' is no {kind}: its config.json says {values.get('model_type')!r}")
    try:
        network, about = getattr(transformers, kind).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except ImportError as error:  # Mask2Former's class needs scipy
        missing = "scipy" if "scipy" in str(error) else str(error).strip().splitlines()[0]
        raise ValueError(f"{kind} needs {missing}: pip install 'ddit[geneval]'") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(f"'{name}' cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if about["missing_keys"]:  # they would be random
        raise ValueError(f"'{name}' lacks {list_names(sorted(about['missing_keys']))}")
    return folder, network.eval().requires_grad_(False).to(device)


def _normalized(image: Image.Image, norm: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """An RGB image as (3, H, W), float32."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    mean, std = (torch.tensor(values) for values in norm)
    return ((pixels - mean) / std).permute(2, 0, 1)


@dataclass(frozen=True)
class CocoDetector:
    """A Mask2Former for instances of COCO's 80 classes."""

    network: Any
    device: torch.device | str

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device | str = "cpu") -> CocoDetector:
        """Of a folder or a hub id, such as facebook/mask2former-swin-small-coco-instance.

        Raises:
            ValueError: in one line, if it is no Mask2Former of 80 classes.
        """
        _, network = _load("Mask2FormerForUniversalSegmentation", "mask2former", name, device)
        if network.config.num_labels != len(COCO_CLASSES):
            raise ValueError(
                f"'{name}' knows {network.config.num_labels} classes: GenEval's detector finds instances of COCO's 80"
            )
        return cls(network, device)

    @torch.inference_mode()
    def find(self, image: Image.Image, *, threshold: float) -> list[FoundObject]:
        """The objects of an RGB image whose score is above the threshold, the most confident first."""
        pixels, (rows, columns) = prepare(image)
        out = self.network(pixel_values=pixels[None].to(self.device))
        logits, masks = out.class_queries_logits[0].float(), out.masks_queries_logits[0].float()
        top = best_classes(logits, threshold)
        grown = F.interpolate(
            masks[None, top.queries], pixels.shape[1:], mode="bilinear", align_corners=False
        )
        grown = grown[..., :rows, :columns]
        grown = F.interpolate(grown, image.size[::-1], mode="bilinear", align_corners=False)[0]
        found = instances(top, grown)
        return sorted((one for one in found if one.score > threshold), key=lambda one: -one.score)


def prepare(image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
    """An RGB image as the detector reads it, (3, H', W'), and its rows and columns within the padding."""
    scale = min(SHORT_SIDE / min(image.size), LONG_SIDE / max(image.size))
    columns, rows = (max(int(side * scale + 0.5), 1) for side in image.size)
    pixels = _normalized(image.resize((columns, rows), Image.Resampling.BILINEAR), IMAGENET)
    return F.pad(pixels, (0, -columns % DIVISOR, 0, -rows % DIVISOR)), (rows, columns)


class TopClasses(NamedTuple):
    """The likeliest pairs of query and class (N,): the query, the class, the class's probability."""

    queries: Tensor
    classes: Tensor
    scores: Tensor


def best_classes(logits: Tensor, threshold: float = 0.0) -> TopClasses:
    """The `MAX_INSTANCES` likeliest pairs of query and class among (Q, classes + 1) logits, the last being no object.

    An instance's score is this probability times its mask's, at most 1: those below the threshold are left out here.
    """
    scores = logits.softmax(-1)[:, :-1]
    found = scores.flatten().topk(min(MAX_INSTANCES, scores.numel()))
    enough = found.values > threshold
    index = found.indices[enough]
    return TopClasses(index // scores.shape[1], index % scores.shape[1], found.values[enough])


def instances(top: TopClasses, masks: Tensor) -> list[FoundObject]:
    """The instances of N pairs with their mask logits (N, H, W): boxes about the masks, by mmdet's rule.

    A score is the class's probability times the mean of the mask's own probability within it.
    """
    inside = masks > 0
    areas = inside.flatten(1).sum(1)
    sure = (masks.sigmoid() * inside).flatten(1).sum(1) / (areas + 1e-6)
    found = []
    for class_index, score, mask in zip(
        top.classes.tolist(), (top.scores * sure).tolist(), inside.cpu().numpy(), strict=True
    ):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(columns):
            box = float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
            found.append(FoundObject(COCO_CLASSES[class_index], box, score, mask))
    return found


class ColorModel:
    """A CLIP that says which of GenEval's ten colours an object has."""

    def __init__(self, network: Any, tokenizer: Any, device: torch.device | str):
        self.network, self.tokenizer, self.device = network, tokenizer, device
        self._classifiers: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device | str = "cpu") -> ColorModel:
        """Of a folder or a hub id, such as openai/clip-vit-large-patch14; ValueError if it is none."""
        from transformers import AutoTokenizer

        folder, network = _load("CLIPModel", "clip", name, device)
        return cls(network, AutoTokenizer.from_pretrained(folder), device)

    @torch.inference_mode()
    def colors(self, image: Image.Image, objects: Sequence[FoundObject]) -> list[str]:
        """The colour of each object of an RGB image, all of one class."""
        if not objects:
            return []
        crops = torch.stack([self._prepare(crop(image, one)) for one in objects]).to(self.device)
        features = self.network.visual_projection(self.network.vision_model(pixel_values=crops).pooler_output)
        similar = F.normalize(features, dim=-1) @ self._classifier(objects[0].class_name).T
        return [COLORS[index] for index in similar.argmax(-1).tolist()]

    def _classifier(self, class_name: str) -> Tensor:
        """A direction a colour (10, D): the mean of its texts'."""
        if class_name not in self._classifiers:
            directions = []
            for color in COLORS:
                texts = [text.format(color=color, name=class_name) for text in COLOR_TEXTS]
                tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
                pooled = self.network.text_model(**tokens).pooler_output
                features = F.normalize(self.network.text_projection(pooled), dim=-1)
                directions.append(F.normalize(features.mean(0), dim=-1))
            self._classifiers[class_name] = torch.stack(directions)
        return self._classifiers[class_name]

    @cached_property
    def _side(self) -> int:
        return self.network.config.vision_config.image_size

    def _prepare(self, image: Image.Image) -> Tensor:
        """CLIP's own preparation: the short side to its size by cubic interpolation, then the middle."""
        short = min(image.size)
        width, height = (int(self._side * side / short) for side in image.size)
        left, top = (round((side - self._side) / 2) for side in (width, height))
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return _normalized(resized.crop((left, top, left + self._side, top + self._side)), CLIP_NORM)


def crop(image: Image.Image, one: FoundObject) -> Image.Image:
    """An object alone: its box, with what is not of its mask in grey."""
    if one.mask is not None:
        blank = Image.new("RGB", image.size, BEHIND)
        image = Image.composite(image, blank, Image.fromarray(one.mask))
    left, top, right, bottom = map(round, one.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
