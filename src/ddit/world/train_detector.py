"""Training of the detector, on scenes of the world."""

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import multiplies_bfloat16
from .detector import BOX_UNIT, CELL, PALETTE, DetectorNet, DetectorOutput, to_tensor
from .presets import CLASSES, WorldConfig
from .scenes import SceneObject, make_scene, render
from .wide.negatives import training_image
from .wide.presets import WIDE_CLASSES, WIDE_PRESETS, WideConfig
from .wide.scenes import make_scene as make_wide_scene
from .wide.scenes import render as render_wide

Objects = Sequence[SceneObject]


def train_detector(
    configs: WorldConfig | WideConfig | Sequence[WorldConfig],
    *,
    seed: int = 0,
    width: int = 64,
    num_steps: int = 4000,
    batch_size: int = 32,
    lr: float = 3e-3,
    split: str = "detector",
    log_every: int = 200,
) -> DetectorNet:
    """Trains on ever new scenes of all `configs` in turn; a pure function of its arguments.

    With `split="train"` the net never sees a held-out pair: for a teacher of the image model, not for evaluation.
    """
    given = [configs] if isinstance(configs, WorldConfig | WideConfig) else list(configs)
    classes = WIDE_CLASSES if isinstance(configs, WideConfig) else CLASSES

    def show(config: WorldConfig | WideConfig, index: int) -> tuple[np.ndarray, Objects]:
        if isinstance(config, WideConfig):
            wide = make_wide_scene(config, split, index, seed=seed)
            return render_wide(wide), wide.objects
        scene = make_scene(config, split, index, seed=seed)
        return render(scene), scene.objects

    def draw(step: int) -> tuple[np.ndarray, list[Objects]]:
        batch = range(step * batch_size, (step + 1) * batch_size)
        images, objects = zip(*(show(given[i % len(given)], i) for i in batch), strict=True)
        return np.stack(images), list(objects)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DetectorNet(width, classes)
    return fit_detector(net, draw, seed=seed, num_steps=num_steps, lr=lr, log_every=log_every)


def train_wide_detector(
    *,
    seed: int = 0,
    width: int = 80,
    num_steps: int = 9000,
    batch_size: int = 32,
    lr: float = 3e-3,
    log_every: int = 200,
    start: DetectorNet | None = None,
) -> DetectorNet:
    """Trains on scenes of the wide world, and on decoys and noise: see `wide.negatives`.

    With `start` that net is trained on; give another seed, for other images.
    """
    configs = [WIDE_PRESETS[name] for name in ("wide", "wide-half-hidden", "wide", "wide-1")]

    def draw(step: int) -> tuple[np.ndarray, list[Objects]]:
        first = step * batch_size
        images, objects = zip(
            *(training_image(configs, i, seed=seed) for i in range(first, first + batch_size)), strict=True
        )
        return np.stack(images), list(objects)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DetectorNet(width, WIDE_CLASSES) if start is None else start.requires_grad_()
    return fit_detector(net, draw, seed=seed, num_steps=num_steps, lr=lr, log_every=log_every)


def fit_detector(
    net: DetectorNet,
    draw: Callable[[int], tuple[np.ndarray, Sequence[Objects]]],
    *,
    seed: int,
    num_steps: int,
    lr: float,
    log_every: int = 200,
) -> DetectorNet:
    """Trains on the images (uint8, B, H, W, 3) that `draw` gives for each step, with the objects that each shows."""
    generator = torch.Generator().manual_seed(seed)
    net.train()
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=num_steps, pct_start=0.1)
    start, total, seen = time.monotonic(), 0.0, 0
    quick = multiplies_bfloat16(torch.device("cpu"))
    for step in range(num_steps):
        pixels, objects = draw(step)
        images = augment(to_tensor(pixels), generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=quick):
            out = net(images.contiguous(memory_format=torch.channels_last))
        loss = detection_loss(out, objects, net.classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        seen += len(pixels)
        if (step + 1) % log_every == 0:
            rate = seen / (time.monotonic() - start)
            print(
                f"step {step + 1} loss {total / log_every:.4f} {rate:.0f} images/s",
                file=sys.stderr,
                flush=True,
            )
            total = 0.0
    return net.eval()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Makes images look generated: some blurred, some coarse, some noisy, all a little off in colour."""
    b = images.shape[0]

    def amount(high: float, share: float) -> Tensor:
        strength = torch.rand(b, 1, 1, 1, generator=generator) * high
        return strength * (torch.rand(b, 1, 1, 1, generator=generator) < share)

    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(soft, amount(1.0, 0.4))
    coarse = F.interpolate(images, size=40, mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear")
    images = images.lerp(coarse, amount(1.0, 0.4))
    gain = 1 + 0.12 * (torch.rand(b, 3, 1, 1, generator=generator) - 0.5)
    shift = 0.12 * (torch.rand(b, 3, 1, 1, generator=generator) - 0.5)
    noise = torch.randn(images.shape, generator=generator) * amount(0.1, 0.5)
    return (images * gain + shift + noise).clamp(-1, 1)


def detection_loss(
    out: DetectorOutput, objects: Sequence[Objects], classes: Sequence[str] = CLASSES
) -> Tensor:
    """CenterNet's focal loss on the heat maps, cross-entropy of colours and L1 of boxes at the centres."""
    heat, cells, boxes, colors = _targets(out.heat.shape, objects, classes)
    log_on, log_off = F.logsigmoid(out.heat), F.logsigmoid(-out.heat)
    on, off = log_on.exp(), log_off.exp()
    focal = torch.where(heat == 1, off**2 * log_on, (1 - heat) ** 4 * on**2 * log_off)
    if not cells.numel():
        return -focal.sum()
    at_box = out.box[cells[0], :, cells[1], cells[2]]
    at_color = out.color[cells[0], :, cells[1], cells[2]]
    count = cells.shape[1]
    return -focal.sum() / count + F.cross_entropy(at_color, colors) + F.l1_loss(at_box, boxes)


def _targets(
    shape: torch.Size, objects: Sequence[Objects], classes: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Heat maps with a bump a centre; the centres' (batch, row, column), boxes and colours."""
    heat = np.zeros(tuple(shape), dtype=np.float32)
    rows, columns = np.arange(shape[2])[:, None], np.arange(shape[3])[None]
    cells, boxes, colors = [], [], []
    for b, shown in enumerate(objects):
        for item in shown:
            left, top, right, bottom = item.box
            x, y = item.x / CELL, item.y / CELL
            row, column = int(y), int(x)
            spread = 2 * max(0.6, item.size / CELL / 7) ** 2
            bump = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / spread)
            plane = heat[b, classes.index(item.class_name)]
            np.maximum(plane, bump, out=plane)
            plane[row, column] = 1
            cells.append((b, row, column))
            boxes.append((x - column, y - row, (right - left) / BOX_UNIT, (bottom - top) / BOX_UNIT))
            colors.append(PALETTE.index(item.color))
    places = torch.tensor(cells, dtype=torch.long).reshape(-1, 3).T
    return torch.from_numpy(heat), places, torch.tensor(boxes), torch.tensor(colors)
