"""GenEval's verdicts by the official functions and by ours, on random detections and colour crops.

    git clone https://github.com/djghosh13/geneval
    python benchmarks/geneval_rules.py geneval

Needs the official repository's path; its detector and CLIP are replaced by the same random boxes and masks for both,
and colours are read off the crops that each side makes. Prints the disagreements, of which there should be none.
`--write FILE` writes a few small cases with the official verdicts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from ddit.eval.detectors import COCO_CLASSES, FoundObject, crop
from ddit.eval.geneval import CocoJudge, ImageScore
from ddit.eval.options import DetectorOptions
from ddit.world import COLORS, TAGS, Prompt

SIZE = 96
RELATIONS = ("left of", "right of", "above", "below")


def load_official(repository: Path, options: DetectorOptions) -> Any:
    """The official module, without its detector and CLIP."""
    names = ("mmdet", "mmdet.apis", "open_clip", "clip_benchmark", "clip_benchmark.metrics")
    stubs = {name: ModuleType(name) for name in names}
    vars(stubs["mmdet.apis"]).update(inference_detector=None, init_detector=None)
    vars(stubs["clip_benchmark.metrics"]).update(zeroshot_classification=SimpleNamespace())
    path = repository / "evaluation" / "evaluate_images.py"
    if not path.is_file():
        raise ValueError(f"'{repository}' is not the official repository: it has no {path.name}")
    official: Any = ModuleType("official")
    with (
        mock.patch.dict(sys.modules, stubs),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
    ):
        exec(compile(path.read_text(), str(path), "exec"), vars(official))
    vars(official).update(
        THRESHOLD=options.detector_threshold, COUNTING_THRESHOLD=options.counting_threshold,
        MAX_OBJECTS=options.max_objects, NMS_THRESHOLD=options.max_overlap, POSITION_THRESHOLD=0.1,
        args=SimpleNamespace(options={}), transform=lambda image: image, classnames=list(COCO_CLASSES),
    )  # fmt: skip
    return official


def read_color(image: Image.Image) -> str:
    """A colour that depends on every pixel of a crop."""
    return COLORS[int(np.asarray(image.convert("RGB"), dtype=np.int64).sum()) % 3]


class Case:
    """A random prompt, image, boxes and masks."""

    def __init__(self, rng: random.Random):
        names = rng.sample(COCO_CLASSES, 2)
        self.metadata = make_metadata(rng, names)
        noise = np.random.default_rng(rng.randrange(2**32))
        self.image = Image.fromarray(noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        self.boxes = [np.zeros((0, 5), np.float32) for _ in COCO_CLASSES]
        self.masks: list[list[np.ndarray]] = [[] for _ in COCO_CLASSES]
        for name in [*names, rng.choice(COCO_CLASSES)]:
            index, number = COCO_CLASSES.index(name), rng.choice((0, 1, 1, 1, 2, 2, 3, 4, 20))
            corners = np.sort(noise.integers(0, SIZE + 1, (number, 2, 2)), axis=1)
            corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 1)
            scores = noise.uniform(0.25 if rng.random() < 0.7 else 0.85, 1, (number, 1))
            self.boxes[index] = np.hstack([corners.reshape(number, 4), scores]).astype(np.float32)
            self.masks[index] = list(noise.random((number, SIZE, SIZE)) < 0.5)

    def found(self) -> list[FoundObject]:
        return [
            FoundObject(name, (row[0], row[1], row[2], row[3]), row[4], mask)
            for name, rows, masks in zip(COCO_CLASSES, self.boxes, self.masks, strict=True)
            for row, mask in zip(rows.tolist(), masks, strict=True)
        ]


def make_metadata(rng: random.Random, names: Sequence[str]) -> dict[str, Any]:
    """A prompt's metadata in the official form, of a random tag."""
    tag, count = rng.choice(TAGS), rng.randint(1, 4)
    include: list[dict[str, Any]] = [{"class": name, "count": 1} for name in names]
    exclude = []
    if tag in ("single_object", "colors", "counting"):
        include = include[:1]
    if tag == "counting":
        include[0]["count"] = count
        exclude = [{"class": names[0], "count": count + 1}]
    if tag in ("colors", "color_attr") or rng.random() < 0.2:
        for clause in include:
            clause["color"] = rng.choice(COLORS[:3])
    if tag == "position" or (len(include) == 2 and rng.random() < 0.2):
        include[1]["position"] = [rng.choice(RELATIONS), 0]
        include[1]["count"], include[0]["count"] = rng.choice((1, 1, 2)), rng.choice((1, 1, 2))
    found = {"tag": tag, "include": include, "prompt": "a photo"}
    return {**found, "exclude": exclude} if exclude else found


def official_verdict(official: Any, case: Case) -> dict[str, Any]:
    """The line of the official results."""

    def colors(image: Image.Image, objects: list[Any], class_name: str) -> list[str]:
        crops = official.ImageCrops(image, objects)
        return [read_color(crops[index][0]) for index in range(len(crops))]

    vars(official).update(
        color_classification=colors,
        object_detector=None,
        inference_detector=lambda detector, path: (case.boxes, case.masks),
    )
    image = SimpleNamespace(open=lambda path: case.image)
    with (
        mock.patch.object(official, "Image", SimpleNamespace(**{**vars(Image), **vars(image)})),
        mock.patch.object(official, "ImageOps", SimpleNamespace(exif_transpose=lambda one: one)),
    ):
        return official.evaluate_image("image.png", case.metadata)


def own_score(case: Case, options: DetectorOptions) -> ImageScore:
    detector: Any = SimpleNamespace(find=lambda image, threshold: case.found())
    colors: Any = SimpleNamespace(
        colors=lambda image, objects: [read_color(crop(image, one)) for one in objects]
    )
    prompt = Prompt(
        case.metadata["prompt"],
        case.metadata["tag"],
        case.metadata["include"],
        case.metadata.get("exclude", []),
    )
    return CocoJudge(detector, colors, options).score([prompt], [case.image])[0]


def normalized(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose relations, a set in the official reasons, are in order."""
    reasons = []
    for reason in line["reason"].split("\n"):
        head, found, tail = reason.partition(" target, found ")
        relations = " and ".join(sorted(tail.removesuffix(" target").split(" and ")))
        reasons.append(f"{head}{found}{relations}" if found else reason)
    return {**line, "reason": reasons, "details": json.loads(line["details"])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path, help="of github.com/djghosh13/geneval")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = parser.parse_args()
    rng, wrong, right, num_objects, cases = random.Random(0), 0, 0, 0, []
    for overlap in (1.0, 0.5):
        options = DetectorOptions(max_overlap=overlap)
        official = load_official(args.repository, options)
        for number in range(args.num // 2):
            case = Case(rng)
            theirs = normalized(official_verdict(official, case))
            ours = normalized(own_score(case, options).official("image.png", case.metadata))
            num_objects += len(case.found())
            right += theirs["correct"]
            if theirs != ours:
                wrong += 1
                print(f"{theirs}\n{ours}")
            if number < 40 and len(case.found()) < 10:
                objects = [
                    [
                        COCO_CLASSES.index(one.class_name),
                        *one.box,
                        one.score,
                        read_color(crop(case.image, one)),
                    ]
                    for one in case.found()
                ]
                cases.append(
                    {
                        "metadata": case.metadata, "max_overlap": overlap, "objects": objects,
                        "correct": theirs["correct"], "reason": theirs["reason"],
                    }
                )  # fmt: skip
    print(f"{args.num:,} images, {num_objects:,} objects: {right:,} right by the official functions")
    print(f"other verdicts, reasons or kept objects by ours: {wrong}")
    if args.write:
        args.write.write_text("".join(json.dumps(case) + "\n" for case in cases))


if __name__ == "__main__":
    main()
