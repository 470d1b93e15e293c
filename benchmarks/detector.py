"""The wide world's detector on true scenes and on what is no object: `python benchmarks/detector.py`.

True scenes, of every preset and of held-out pairs: the share of images in which each object is found with its class,
colour and place, and nothing else. Negatives, of every kind of `ddit.world.wide.negatives` (fragments, chimeras,
two-tone sprites, flat silhouettes, plain shapes, coloured noise): the share of images in which something is found, by
it, by its first net alone, and by the small world's detector. Seeds are none of training. Writes detector.md; three
minutes of a core for 1,000.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddit.eval.intervals import wilson
from ddit.eval.report import code_version
from ddit.world import Detection
from ddit.world.detector import DetectorNet, detect, load_detector, scene_is_right
from ddit.world.wide import WIDE_CLASSES, WIDE_PRESETS, make_scene, render
from ddit.world.wide.checked import CheckNet, detect_checked, load_check
from ddit.world.wide.negatives import NEGATIVES, make_negative

HERE = Path(__file__).parent
SEED = 1979
"""Of all scenes and negatives here."""


class Nets(NamedTuple):
    first: DetectorNet
    check: CheckNet


def load_nets(first: Path | None = None, check: Path | None = None) -> Nets:
    """The detector's two nets: by default the package's own."""
    return Nets(load_detector(first, classes=WIDE_CLASSES), load_check(check))


def halve(images: np.ndarray) -> np.ndarray:
    """Images (B, H, W, 3) at half the side."""
    b, height, width, _ = images.shape
    means = images.reshape(b, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    return means.round().astype(np.uint8)


def count_right(nets: Nets, name: str, split: str, num: int, threshold: float) -> int:
    """Scenes of a preset that are found exactly; those of 128 pixels are seen at 64."""
    scenes = [make_scene(WIDE_PRESETS[name], split, i, seed=SEED) for i in range(num)]
    images = np.stack([render(s) for s in scenes])
    if images.shape[1] == 128:
        images = halve(images)
        scenes = [make_scene(WIDE_PRESETS["wide"], split, i, seed=SEED) for i in range(num)]
    found = detect_checked(images, net=nets.first, check=nets.check, threshold=threshold)
    return sum(map(scene_is_right, scenes, found))


def count_false(found: Sequence[list[Detection]]) -> int:
    return sum(map(bool, found))


def row(name: str, counts: Sequence[int], num: int) -> str:
    cells = []
    for count in counts:
        low, high = wilson(count / num, num)
        cells.append(f"{count / num:.4f} ({low:.4f} to {high:.4f})")
    return f"| {name} | {num} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--detector", type=Path, help="first net's safetensors file [default: the package's own]"
    )
    parser.add_argument("--check", type=Path, help="second net's")
    parser.add_argument("--num", type=int, default=1000, help="images of each kind")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=HERE / "detector.md")
    args = parser.parse_args()
    start = time.monotonic()
    nets, small = load_nets(args.detector, args.check), load_detector()
    size = sum(p.numel() for net in nets for p in net.parameters())
    lines = [
        "# The wide world's detector", "",
        f"`python benchmarks/detector.py --num {args.num} --threshold {args.threshold:g}`, {code_version()}; "
        f"{platform.machine()}, torch {torch.__version__}. "
        f"{size:,} parameters in float16, of two nets; 95 % intervals.", "",
        "| true scenes | images | exactly right |", "|---|---|---|",
    ]  # fmt: skip
    kinds = [(name, "test") for name in WIDE_PRESETS] + [("wide", "heldout")]
    for name, split in kinds:
        right = count_right(nets, name, split, args.num, args.threshold)
        lines.append(row(name if split == "test" else f"{name}, held-out pairs", [right], args.num))
        print(lines[-1], flush=True)
    lines += [
        "",
        "| no object | images | something found | by its first net alone | by the small world's |",
        "|---|---|---|---|---|",
    ]
    for kind in NEGATIVES:
        images = np.stack([make_negative(kind, i, seed=SEED) for i in range(args.num)])
        own = detect_checked(images, net=nets.first, check=nets.check, threshold=args.threshold)
        first, old = (detect(images, net=n, threshold=args.threshold) for n in (nets.first, small))
        counts = [count_false(found) for found in (own, first, old)]
        lines.append(row(kind.replace("_", " "), counts, args.num))
        print(lines[-1], flush=True)
    lines += ["", f"{time.monotonic() - start:.0f} s."]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
