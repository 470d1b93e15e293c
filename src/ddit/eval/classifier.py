"""A small image classifier, by which generated images are judged: a residual network trained within seconds or minutes.

Shapes: B batch, H, W the side of the images in pixels, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddit.devices import multiplies_bfloat16
from ddit.world.detector import ResidualLayer

NUM_FEATURES = 64
MAX_SIDE = 64
"""Pixels; of larger images a smaller version is shown to the classifier."""
_TIMED = 8  # steps by which the number of all is set
_BATCH = 128


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), ResidualLayer(outputs))


class ClassifierNet(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to logits (B, K), through `NUM_FEATURES` features.

    width: channels of the first stage; with 32 it has 0.5 million parameters.
    """

    def __init__(self, num_classes: int, side: int, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _stage(3, width, 4 if side > 40 else 2),
            _stage(width, 2 * width, 2),
            _stage(2 * width, 4 * width, 2),
        )
        self.narrow = nn.Linear(4 * width, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return F.relu(self.narrow(self.stages(images).mean((2, 3))))  # (B, 64)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)).float()


@dataclass(frozen=True)
class Classifier:
    """A net that is trained, or as it was made.

    Attributes:
        side: of the images in pixels.
        num_steps, num_images: of its training; 0 steps if it was not trained.
    """

    net: ClassifierNet
    side: int
    num_steps: int = 0
    num_images: int = 0

    def features(self, pixels: Tensor) -> Tensor:
        """Features (n, 64) float32, on the CPU, of images (n, 3, H, W) uint8."""
        return torch.cat([self.net.features(part).float().cpu() for part in self._batches(pixels)])

    def predict(self, pixels: Tensor) -> Tensor:
        """The likeliest classes (n,) of images (n, 3, H, W) uint8, on the CPU."""
        return torch.cat([self.net(part).argmax(1).cpu() for part in self._batches(pixels)])

    @torch.no_grad()
    def _batches(self, pixels: Tensor) -> Iterator[Tensor]:
        device = self.net.head.weight.device
        for part in pixels.split(256):
            yield _to_floats(part.to(device))


def untrained(side: int, *, width: int = 32, seed: int = 0, device: torch.device | str = "cpu") -> Classifier:
    """A net of random weights: a fixed space of features for images without labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ClassifierNet(2, side, width)
    return Classifier(net.to(device).eval().requires_grad_(False), side)


def train_classifier(
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seconds: float,
    max_epochs: int = 40,
    seed: int = 0,
    flip: bool = False,
    lr: float = 3e-3,
    width: int = 32,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Trains on images (n, 3, H, W) uint8, square, with labels (n,), for about `seconds` or `max_epochs` at most.

    The number of steps is set by the time of the first few, so that the schedule ends with them. Images are shifted by
    up to an eighth, with `flip` also mirrored.

    Raises:
        ValueError: for less than two images or classes.
    """
    if len(pixels) < 2 or num_classes < 2:
        raise ValueError(
            f"a classifier needs two images and classes at least, got {len(pixels)} of {num_classes}"
        )
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    found = untrained(pixels.shape[-1], width=width, seed=seed, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found.net.head = nn.Linear(NUM_FEATURES, num_classes).to(device)
    net = found.net.train().requires_grad_(True)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    size = min(_BATCH, len(pixels))
    quick = device.type == "cuda" or multiplies_bfloat16(device)
    order = _orders(len(pixels), size, generator)
    most = max(math.ceil(max_epochs * len(pixels) / size), _TIMED)
    start, num_steps, step = time.monotonic(), most, 0
    while step < num_steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step / num_steps)
        rows = next(order)
        images = _augment(pixels[rows], generator, flip=flip)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=quick):
            logits = net(_to_floats(images.to(device)).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels[rows].to(device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step == _TIMED:
            each = (time.monotonic() - start) / _TIMED
            num_steps = min(most, max(int(seconds / each), 2 * _TIMED))
    return Classifier(net.eval().requires_grad_(False), found.side, num_steps, len(pixels))


def _schedule(share: float) -> float:
    """Of the learning rate after a share of the steps: a tenth of warm-up, then a cosine to 0."""
    return min(share / 0.1 + 0.02, 1.0) if share < 0.1 else (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2


def _orders(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of batches of `size`, every one once in an order before any comes again."""
    rows = torch.empty(0, dtype=torch.long)
    while True:
        while len(rows) < size:
            rows = torch.cat([rows, torch.randperm(count, generator=generator)])
        yield rows[:size]
        rows = rows[size:]


def _augment(pixels: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """Each image shifted by up to an eighth of its side, with its edge repeated, and perhaps mirrored."""
    count, _, side, _ = pixels.shape
    most = side // 8
    padded = F.pad(pixels.float(), (most,) * 4, mode="replicate").to(torch.uint8)
    top, left = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    across = torch.arange(side).expand(count, side)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        across = torch.where(mirrored, side - 1 - across, across)
    rows, columns = torch.arange(side) + top, across + left
    images = torch.arange(count)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)


def _to_floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1
