"""A small convolutional detector of the world's sprites, after CenterNet (Zhou et al. 2019).

It finds centres as peaks of one heat map a class, and predicts box and colour there.
Shapes: B batch, C channels; a cell is 4 pixels, so a 64 px image has 16x16 cells.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .geneval import Detection
from .presets import CLASSES, COLORS
from .scenes import Box, Scene
from .wide.presets import WIDE_CLASSES
from .wide.scenes import WideScene

CELL = 4
BOX_UNIT = 16.0
"""Boxes' sizes are predicted in units of so many pixels."""
PALETTE: tuple[str | None, ...] = (None, *COLORS)


class DetectorOutput(NamedTuple):
    heat: Tensor  # (B, classes, H/4, W/4), logits
    color: Tensor  # (B, 11, H/4, W/4), logits over PALETTE
    box: Tensor  # (B, 4, H/4, W/4): centre within the cell (cells), width and height (BOX_UNIT)


class ResidualLayer(nn.Module):
    """Two normalised 3x3 convolutions beside the identity: (B, channels, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class DetectorNet(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to heat maps, colours and boxes; H and W multiples of 8."""

    def __init__(self, width: int = 64, classes: Sequence[str] = CLASSES) -> None:
        super().__init__()
        self.width = width
        self.classes = tuple(classes)
        self.stem = nn.Sequential(_down(3, width // 2), _down(width // 2, width))
        self.fine = nn.Sequential(ResidualLayer(width), ResidualLayer(width))
        self.coarse = nn.Sequential(
            _down(width, width * 3 // 2), *(ResidualLayer(width * 3 // 2) for _ in range(2))
        )
        self.lift = nn.Conv2d(width * 3 // 2, width, 1)
        self.merge = ResidualLayer(width)
        self.heads = nn.Conv2d(width, len(self.classes) + len(PALETTE) + 4, 1)
        bias = torch.zeros(self.heads.out_channels)
        bias[: len(self.classes)] = -4.0  # few cells hold a centre
        self.heads.bias = nn.Parameter(bias)

    def layers(self, images: Tensor) -> list[Tensor]:
        """Features at four depths, the last of which the heads see: (B, channels, H/4, W/4), the third H/8, W/8."""
        stem = self.stem(images)
        fine = self.fine(stem)
        coarse = self.coarse(fine)
        lifted = F.interpolate(self.lift(coarse), scale_factor=2.0, mode="nearest")
        return [stem, fine, coarse, self.merge(fine + lifted)]

    def features(self, images: Tensor) -> Tensor:
        """The last features before the heads: (B, width, H/4, W/4)."""
        return self.layers(images)[-1]

    def forward(self, images: Tensor) -> DetectorOutput:
        out = self.heads(self.features(images)).float()
        return DetectorOutput(*out.split([len(self.classes), len(PALETTE), 4], dim=1))

    def save(self, path: Path) -> None:
        """Writes safetensors: convolutions in float16, statistics in float32."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: (value.half() if value.ndim == 4 else value).contiguous()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        about = {"width": self.width, "classes": self.classes, "colors": COLORS}
        save_file(tensors, path, metadata={"detector": json.dumps(about)})


def load_detector(path: Path | None = None, *, classes: Sequence[str] | None = CLASSES) -> DetectorNet:
    """A trained detector of `classes`, in evaluation mode: the package's own, or one that `DetectorNet.save` wrote.

    The package has those of `CLASSES` and of `WIDE_CLASSES`, made by tools/train_detector.py. None: a file's own.
    """
    if path is None:
        return _packaged(tuple(classes or CLASSES))
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("detector", "{}"))
        classes = about.get("classes", []) if classes is None else classes
        if not classes or about.get("classes") != list(classes) or about.get("colors") != list(COLORS):
            raise ValueError(f"{path} is no detector of this world's classes and colours")
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    net = DetectorNet(about["width"], classes)
    keys = net.load_state_dict(tensors, strict=False)
    missing = [name for name in keys.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or keys.unexpected_keys:
        raise ValueError(f"{path}: missing {missing}, unexpected {keys.unexpected_keys}")
    return net.eval().requires_grad_(False)


@cache
def _packaged(classes: tuple[str, ...]) -> DetectorNet:
    folder = files("ddit.world") / "wide" if classes == WIDE_CLASSES else files("ddit.world")
    with as_file(folder / "detector.safetensors") as path:
        return load_detector(path, classes=classes)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"need uint8 images (B, H, W, 3), got {images.dtype} {images.shape}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def detect(
    images: np.ndarray,
    *,
    net: DetectorNet | None = None,
    threshold: float = 0.3,
    batch_size: int = 64,
    keep_all: bool = False,
) -> list[list[Detection]]:
    """The objects in each image, the most confident first; images are uint8 (B, H, W, 3).

    `keep_all`: also those that cover the place of a more confident one.
    """
    net = net or load_detector()
    found: list[list[Detection]] = []
    for start in range(0, len(images), batch_size):
        out = net(to_tensor(images[start : start + batch_size]).to(net.heads.weight.device))
        heat = out.heat.sigmoid()
        is_peak = (heat == F.max_pool2d(heat, 3, stride=1, padding=1)) & (heat > threshold)
        peaks: list[list[Detection]] = [[] for _ in heat]
        for b, c, row, column in is_peak.nonzero().tolist():
            dx, dy, width, height = out.box[b, :, row, column].tolist()
            x, y = (column + dx) * CELL, (row + dy) * CELL
            half_width, half_height = width * BOX_UNIT / 2, height * BOX_UNIT / 2
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            color = PALETTE[int(out.color[b, :, row, column].argmax())]
            peaks[b].append(Detection(net.classes[c], color, box, float(heat[b, c, row, column])))
        found += peaks if keep_all else [_suppress(p) for p in peaks]
    return found


def _suppress(peaks: list[Detection]) -> list[Detection]:
    """Those of highest confidence among the ones that cover the same place."""
    kept: list[Detection] = []
    for peak in sorted(peaks, key=lambda d: -d.score):
        if all(iou(peak.box, other.box) < 0.5 for other in kept):
            kept.append(peak)
    return kept


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inside = max(width, 0.0) * max(height, 0.0)
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return inside / max(areas - inside, 1e-6)


def scene_is_right(
    scene: Scene | WideScene, detections: Sequence[Detection], *, min_iou: float = 0.5
) -> bool:
    """Whether the detections are the scene's objects exactly: number, classes, colours and places."""
    left = list(detections)
    for item in scene.objects:
        same = [d for d in left if (d.class_name, d.color) == (item.class_name, item.color)]
        best = max(same, key=lambda d: iou(d.box, item.box), default=None)
        if best is None or iou(best.box, item.box) < min_iou:
            return False
        left.remove(best)
    return not left
