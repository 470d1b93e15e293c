"""The wide world's detector: what a first net proposes, checked by a second one against the sprites that it would be.

The first net (`ddit.world.detector`) gives class, colour and box. The second sees that part of the image beside the
three sprites of that class and colour, so that it need not know what they look like, only whether this is one of them:
a chimera, a fragment, a two-tone sprite and a silhouette are not. Shapes: B batch; a view has 32x32 pixels.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..detector import DetectorNet, detect, iou, load_detector
from ..geneval import Detection
from ..presets import STYLES
from .presets import WIDE_CLASSES
from .sprites import make_sprite, measure_extent

PROPOSED = 0.15
"""Heat from which a place is looked at."""
VIEW, SPRITE = 32, 26
"""Side of a view, and of the sprite in its middle."""


class CheckNet(nn.Module):
    """Views (B, 15, 32, 32) in [-1, 1] to the logit (B,) that the image shows the sprite."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.width = width

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

        self.first = conv(3 + 4 * len(STYLES), width, 2)
        self.fine = nn.Sequential(conv(width, width), conv(width, width))
        self.down = conv(width, 2 * width, 2)
        self.coarse = nn.Sequential(conv(2 * width, 2 * width), conv(2 * width, 2 * width))
        self.head = nn.Linear(4 * width, 1)

    def forward(self, views: Tensor) -> Tensor:
        x = self.first(views)
        x = self.down(x + self.fine(x))
        x = x + self.coarse(x)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return self.head(pooled.float())[:, 0]

    def save(self, path: Path) -> None:
        """Writes safetensors: convolutions in float16, the rest in float32."""
        tensors = {
            name: (value.half() if value.ndim == 4 else value).contiguous()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        save_file(tensors, path)


def load_check(path: Path | None = None) -> CheckNet:
    """The trained second net, in evaluation mode: the package's own, or one that `CheckNet.save` wrote."""
    if path is None:
        return _packaged()
    tensors = {name: value.float() for name, value in load_file(path).items()}
    net = CheckNet(len(tensors["first.1.weight"]))
    net.load_state_dict(tensors, strict=False)
    return net.eval().requires_grad_(False)


@cache
def _packaged() -> CheckNet:
    with as_file(files("ddit.world.wide") / "check.safetensors") as path:
        return load_check(path)


@torch.no_grad()
def detect_checked(
    images: np.ndarray,
    *,
    net: DetectorNet | None = None,
    check: CheckNet | None = None,
    threshold: float = 0.5,
    batch_size: int = 64,
) -> list[list[Detection]]:
    """The objects in each image, the surest first; images are uint8 (B, H, W, 3), of about 64 pixels a side.

    A score is the second net's.
    """
    net, check = net or load_detector(classes=WIDE_CLASSES), check or load_check()
    proposed = detect(images, net=net, threshold=PROPOSED, batch_size=batch_size, keep_all=True)
    views = [view(image, d) for image, found in zip(images, proposed, strict=True) for d in found]
    looks = [(d.class_name, d.color) for found in proposed for d in found]
    scores: list[float] = []
    for start in range(0, len(views), 256):
        chosen = slice(start, start + 256)
        given = to_input(np.stack(views[chosen]), looks[chosen]).to(check.head.weight.device)
        scores += check(given).sigmoid().tolist()
    rest = iter(scores)
    return [_keep([d._replace(score=next(rest)) for d in found], threshold) for found in proposed]


def _keep(found: list[Detection], threshold: float) -> list[Detection]:
    """Those of high scores, of several that cover the same place the surest."""
    kept: list[Detection] = []
    for one in sorted(found, key=lambda d: -d.score):
        if one.score >= threshold and all(iou(one.box, other.box) < 0.5 for other in kept):
            kept.append(one)
    return kept


def view(image: np.ndarray, found: Detection) -> np.ndarray:
    """The part of an image around a detection, so that its sprite would have `SPRITE` pixels: uint8 (32, 32, 3)."""
    left, top, right, bottom = found.box
    across, down = measure_extent(found.class_name, STYLES[0])
    size = max((right - left) / across, (bottom - top) / down, 6.0) * VIEW / SPRITE
    x, y = (left + right) / 2, (top + bottom) / 2
    pad = 32
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    limit = wide.shape[0]
    x0, y0, x1, y1 = (
        min(max(v + pad, 0.0), limit) for v in (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
    )
    if x1 - x0 < 2 or y1 - y0 < 2:
        return np.zeros((VIEW, VIEW, 3), np.uint8)
    return np.asarray(
        Image.fromarray(wide).resize((VIEW, VIEW), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    )


@cache
def _sprites(class_name: str, color: str | None) -> np.ndarray:
    """The three styles' sprites in the middle of a view: uint8 (12, 32, 32)."""
    planes = np.zeros((len(STYLES), 4, VIEW, VIEW), np.uint8)
    edge = (VIEW - SPRITE) // 2
    for number, style in enumerate(STYLES):
        tile = np.asarray(make_sprite(class_name, style, color, SPRITE)).transpose(2, 0, 1)
        planes[number, :, edge : edge + SPRITE, edge : edge + SPRITE] = tile
    return planes.reshape(-1, VIEW, VIEW)


def to_input(views: np.ndarray, looks: Sequence[tuple[str, str | None]]) -> Tensor:
    """Views (B, 32, 32, 3) with the sprites of their classes and colours: float32 (B, 15, 32, 32) in [-1, 1]."""
    sprites = np.stack([_sprites(*look) for look in looks])
    both = np.concatenate([views.transpose(0, 3, 1, 2), sprites], axis=1)
    return torch.from_numpy(both).float() / 127.5 - 1
