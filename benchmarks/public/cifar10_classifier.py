"""A plain classifier beside the model of `cifar10.py`: `python -m benchmarks.public.cifar10_classifier COPY`.

COPY as there. A residual network of as many parameters as `ddit fit`'s `xs` (6.8 million) is trained on `train/` for
the same time, on mirrored and shifted views; the figure is its accuracy on all test photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.public.common import print_rows
from ddit.eval.classifier import train_classifier
from ddit.eval.items import Figure
from ddit.images import read_image

WIDTH = 120


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """Photographs (n, 3, H, W) uint8 and their classes (n,)."""
    classes = sorted(folder.iterdir())
    files = [(path, label) for label, kind in enumerate(classes) for path in sorted(kind.iterdir())]
    pixels = np.stack([np.asarray(read_image(path)) for path, _ in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([label for _, label in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("copy", type=Path, help="your copy of the set")
    parser.add_argument("--minutes", type=float, default=54.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pixels, labels = read(args.copy / "train")
    found = train_classifier(
        pixels,
        labels,
        int(labels.max()) + 1,
        seconds=60 * args.minutes,
        max_epochs=1000,
        seed=args.seed,
        flip=True,
        width=WIDTH,
    )
    shown, truth = read(args.copy / "test")
    share = (found.predict(shown) == truth).float().mean().item()
    print(f"{found.num_steps:,} steps, {found.num_steps * 128 / len(pixels):.1f} epochs")
    print_rows("CIFAR-10", args.seed, [Figure("class by a plain classifier", share, len(truth))])


if __name__ == "__main__":
    main()
