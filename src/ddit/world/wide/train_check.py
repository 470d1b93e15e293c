"""Training of the detector's second net on what the first one proposes, right and wrong."""

import random
import sys
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...devices import multiplies_bfloat16
from ..detector import PALETTE, DetectorNet, detect, iou, to_tensor
from ..presets import STYLES
from ..train_detector import augment
from .checked import CheckNet, to_input, view
from .negatives import NEGATIVES, make_negative, training_image
from .presets import WIDE_CLASSES, WIDE_PRESETS

_NEGATIVE_SHARE, _CHANGED_SHARE = 0.45, 0.4
"""Of the images."""
_NEGATIVE_WEIGHTS = (1, 3, 3, 3, 1, 0.5)
"""Of the kinds of negatives; chimeras, two-tone sprites and silhouettes are the hard ones."""
_LEAST_HEAT = 0.1
_TRUE_SHARE = 3 / 8
"""Of a batch."""


class Proposals(NamedTuple):
    """Views (N, 32, 32, 3) uint8, indices of class and colour (N, 2), and whether the object is there (N,)."""

    views: np.ndarray
    looks: np.ndarray
    is_true: np.ndarray


def collect_proposals(net: DetectorNet, num_images: int, *, seed: int = 0, batch_size: int = 64) -> Proposals:
    """What the net finds in true scenes, scenes with decoys and negatives, some of them made to look generated.

    Raises:
        ValueError: for a net that finds nothing.
    """
    configs = [WIDE_PRESETS[name] for name in ("wide", "wide-half-hidden", "wide", "wide-1")]
    generator = torch.Generator().manual_seed(seed)
    views, looks, is_true = [], [], []
    for start in range(0, num_images, batch_size):
        images, objects = [], []
        for index in range(start, start + batch_size):
            rng = random.Random(f"check/{seed}/{index}")
            if rng.random() < _NEGATIVE_SHARE:
                kind = rng.choices(NEGATIVES, _NEGATIVE_WEIGHTS)[0]
                images.append(make_negative(kind, index, seed=1000 + seed))
                objects.append(())
            else:
                image, shown = training_image(configs, index, seed=1000 + seed)
                images.append(image)
                objects.append(shown)
        clean = np.stack(images)
        changed = ((augment(to_tensor(clean), generator) + 1) * 127.5).round().to(torch.uint8)
        is_changed = np.array(
            [random.Random(f"changed/{seed}/{start + i}").random() < 0.5 for i in range(batch_size)]
        )
        pixels = np.where(is_changed[:, None, None, None], changed.permute(0, 2, 3, 1).numpy(), clean)
        found = detect(pixels, net=net, threshold=_LEAST_HEAT, keep_all=True)
        for image, proposed, shown in zip(pixels, found, objects, strict=True):
            for one in proposed:
                views.append(view(image, one))
                looks.append((WIDE_CLASSES.index(one.class_name), PALETTE.index(one.color)))
                same = [o for o in shown if (o.class_name, o.color) == (one.class_name, one.color)]
                is_true.append(any(iou(o.box, one.box) > 0.45 for o in same))
    if not views:
        raise ValueError("the detector finds nothing that could be checked: train it for longer")
    return Proposals(np.stack(views), np.array(looks), np.array(is_true))


def train_check(
    proposals: Proposals,
    *,
    seed: int = 0,
    width: int = 40,
    num_steps: int = 5500,
    batch_size: int = 128,
    lr: float = 3e-3,
    log_every: int = 200,
    start: CheckNet | None = None,
) -> CheckNet:
    """Trains on the proposals, mirrored and with other colours; a pure function of its arguments.

    With `start` that net is trained on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = CheckNet(width) if start is None else start.requires_grad_()
    net.train()
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=num_steps, pct_start=0.1)
    rng, quick, total = np.random.default_rng(seed), multiplies_bfloat16(torch.device("cpu")), 0.0
    right, wrong = np.flatnonzero(proposals.is_true), np.flatnonzero(~proposals.is_true)
    num_right = round(batch_size * _TRUE_SHARE)
    for step in range(num_steps):
        chosen = np.concatenate([rng.choice(right, num_right), rng.choice(wrong, batch_size - num_right)])
        looks = [(WIDE_CLASSES[a], PALETTE[b]) for a, b in proposals.looks[chosen]]
        order = rng.permutation(batch_size)
        chosen, looks = chosen[order], [looks[i] for i in order]
        views = vary(to_input(proposals.views[chosen], looks), rng)
        views = views.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=quick):
            logits = net(views)
        is_true = torch.from_numpy(proposals.is_true[chosen]).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), is_true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % log_every == 0:
            print(f"step {step + 1} loss {total / log_every:.4f}", file=sys.stderr, flush=True)
            total = 0.0
    return net.eval()


def vary(views: Tensor, rng: np.random.Generator) -> Tensor:
    """Views (B, 15, 32, 32), each eighth mirrored and its colours swapped at random, in image and sprites alike."""
    parts = []
    for part in views.chunk(8):
        if rng.random() < 0.5:
            part = part.flip(3)
        if rng.random() < 0.3:
            part = part.flip(2)
        if rng.random() < 0.6:
            swapped = rng.permutation(3)
            channels = [*swapped, *(3 + 4 * style + c for style in range(len(STYLES)) for c in (*swapped, 3))]
            part = part[:, channels]
        parts.append(part)
    return torch.cat(parts)
