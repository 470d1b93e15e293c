"""Trains the small world's detector, which scores generated images: `python tools/train_detector.py OUT`.

The package's own, src/ddit/world/detector.safetensors, takes a quarter of an hour of one core. The wide world's two
nets (src/ddit/world/wide/, measured by benchmarks/detector.py) take 45 minutes of one, in five steps:

    --wide a; --wide --start a --seed 1 --lr 0.0015 --num-steps 3200 detector
    --check detector --seed 11 --num-images 30000 b
    --check detector --start b --seed 12 --num-images 28000 --num-steps 5500 --lr 0.0025 c
    --check detector --start c --seed 13 --num-images 28000 --num-steps 4500 --lr 0.002 check

(The packaged ones are from before a few changes of the negatives; these commands give other weights.)
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from ddit.world import PRESETS, SPLITS, WorldConfig, make_scene, render
from ddit.world.detector import DetectorNet, detect, load_detector, scene_is_right
from ddit.world.train_detector import train_detector, train_wide_detector
from ddit.world.wide import WIDE_CLASSES
from ddit.world.wide.checked import load_check
from ddit.world.wide.train_check import collect_proposals, train_check


def measure_accuracy(
    net: DetectorNet, config: WorldConfig, *, num_scenes: int, split: str = "test", seed: int = 0
) -> float:
    """Share of scenes of which every object was found exactly, and nothing else."""
    scenes = [make_scene(config, split, i, seed=seed) for i in range(num_scenes)]
    found = detect(np.stack([render(s) for s in scenes]), net=net)
    return sum(map(scene_is_right, scenes, found)) / num_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--split", default="detector", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wide", action="store_true", help="the wide world's")
    parser.add_argument(
        "--start", type=Path, help="with --wide or --check: a net to be trained on, by another seed"
    )
    parser.add_argument(
        "--check", type=Path, help="with --wide: a detector; trains the second net that checks it"
    )
    parser.add_argument("--num-images", type=int, default=30_000, help="with --check")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--width", type=int, help="[default: 64, wide 80]")
    parser.add_argument("--num-steps", type=int, help="[default: 4000, wide 9000]")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    sizes = {"width": args.width, "num_steps": args.num_steps}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if args.check:
        first = load_detector(args.check, classes=WIDE_CLASSES)
        proposals = collect_proposals(first, args.num_images, seed=args.seed)
        print(f"{len(proposals.views):,} proposals, {proposals.is_true.mean():.1%} true", flush=True)
        check = load_check(args.start) if args.start else None
        train_check(proposals, seed=args.seed, lr=args.lr, start=check, **sizes).save(args.out)
        return
    if args.wide:
        start = load_detector(args.start, classes=WIDE_CLASSES) if args.start else None
        net = train_wide_detector(
            seed=args.seed, batch_size=args.batch_size, lr=args.lr, start=start, **sizes
        )
        net.save(args.out)
        return
    configs = [PRESETS[name] for name in args.presets]
    net = train_detector(
        configs, seed=args.seed, batch_size=args.batch_size, lr=args.lr, split=args.split, **sizes
    )  # fmt: skip
    net.save(args.out)
    for name, config in zip(args.presets, configs, strict=True):
        share = measure_accuracy(net, config, num_scenes=1000, seed=args.seed + 1)
        print(f"{name}: {share:.2%} of unseen scenes exactly right")


if __name__ == "__main__":
    main()
