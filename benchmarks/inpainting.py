"""In-painting and variation on scenes of the small world, scored by its detector: `python benchmarks/inpainting.py`.

In scenes of two objects one is masked and another asked for in its place, in the world's own grammar. An image is right
if the new object is there in class and colour, the other one is what and where it was, and there is nothing else. The
kept part is compared with the autoencoder's own reconstruction of the scene. Adds its tables to inpainting.md.
"""

import argparse
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ddit.devices import limit_threads
from ddit.eval.report import code_version
from ddit.images import to_images, to_tensor
from ddit.inference.editing import Grid, box_mask
from ddit.inference.image_grid import strip
from ddit.model.folders import resolve
from ddit.pipeline import Pipeline
from ddit.world import (
    PRESETS,
    Detection,
    Scene,
    SceneObject,
    WorldConfig,
    list_captions,
    make_scene,
    render,
)
from ddit.world.detector import detect, iou
from ddit.world.scenes import is_allowed
from ddit.world.sprites import has_natural_color

HERE = Path(__file__).parent
OPENING = "a photo of"
MARGIN = 1
"""Pixels of the mask around a sprite."""
SWEEP: tuple[dict[str, Any], ...] = (
    {}, {"guidance_scale": 1.0}, {"guidance_scale": 3.0}, {"num_steps": 4}, {"num_steps": 16}
)  # fmt: skip
"""Settings compared with --sweep, over the model's own."""


class Checked(NamedTuple):
    """Which parts of one image are right by the detector."""

    new: bool
    kept: bool
    all: bool


@dataclass(frozen=True)
class Case:
    """A scene of two objects, and what it is to become: the object `which` gets another look."""

    before: Scene
    after: Scene
    which: int

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(render(self.before))

    @property
    def square(self) -> Image.Image:
        """A mask of the old object's square."""
        old = self.before.objects[self.which]
        return box_mask(self.image.size, clipped(old, self.before.config.size))

    @property
    def half(self) -> Image.Image:
        """A mask of the half of the image that the old object is in."""
        size = self.before.config.size
        old, other = self.before.objects[self.which], self.before.objects[1 - self.which]
        middle, axis = size // 2, int(abs(old.y - other.y) > abs(old.x - other.x))
        low, high = ((0, middle), (middle, size))[(old.y if axis else old.x) > middle]
        return box_mask(self.image.size, (0, low, size, high) if axis else (low, 0, high, size))

    def check(self, found: Sequence[Detection], scene: Scene) -> Checked:
        """Of an image that should show `scene`, which is this case's before or after."""
        wanted, other = scene.objects[self.which], scene.objects[1 - self.which]
        kept = any(same_look(d, other) and iou(d.box, other.box) >= 0.5 for d in found)
        new = any(same_look(d, wanted) and is_in_place(d, wanted) for d in found)
        return Checked(new, kept, new and kept and len(found) == 2)


def same_look(found: Detection, wanted: SceneObject) -> bool:
    return (found.class_name, found.color) == (wanted.class_name, wanted.color)


def is_in_place(found: Detection, wanted: SceneObject) -> bool:
    """Whether its centre is in the square: the prompt does not say the style, on which boxes depend."""
    left, top, right, bottom = found.box
    x, y = (left + right) / 2 - wanted.left, (top + bottom) / 2 - wanted.top
    return 0 <= x <= wanted.size and 0 <= y <= wanted.size


def clipped(item: SceneObject, size: int) -> tuple[int, int, int, int]:
    left, top = max(item.left - MARGIN, 0), max(item.top - MARGIN, 0)
    right, bottom = (min(start + item.size + MARGIN, size) for start in (item.left, item.top))
    return left, top, right, bottom


def caption_of(scene: Scene) -> str:
    return next(text for text in list_captions(scene) if text.startswith(OPENING))


def make_cases(world: WorldConfig, split: str, count: int) -> list[Case]:
    """The first so many scenes of two objects of a split, each with another object that the split may show."""
    cases, index = [], 0
    while len(cases) < count:
        scene = make_scene(world, split, index)
        if scene.kind == "two":
            cases.append(changed(scene, random.Random(f"change/{split}/{index}")))
        index += 1
    return cases


def changed(scene: Scene, rng: random.Random) -> Case:
    """One of the objects becomes one of another class; of a colour or, as half of the world's, without."""
    world, which, there = scene.config, rng.randrange(2), {item.class_name for item in scene.objects}
    while True:
        name, style = rng.choice(sorted(set(world.classes) - there)), rng.choice(world.styles)
        color = None if rng.random() < world.natural else rng.choice(world.colors)
        objects = list(scene.objects)
        objects[which] = replace(objects[which], class_name=name, color=color, style=style)
        after = replace(scene, objects=tuple(objects))
        if (color or has_natural_color(name, style)) and is_allowed(scene.split, after.groups):
            return Case(scene, after, which)


def new_alone(case: Case) -> str:
    """A prompt that names the new object and nothing else."""
    return caption_of(replace(case.after, kind="single", objects=(case.after.objects[case.which],)))


class Bench:
    """A pipeline on cases: images, checked, as rows of a table."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pipeline = Pipeline.from_pretrained(options.model)
        self.cases = make_cases(PRESETS[options.preset], options.split, options.scenes)
        self.scenes = [case.image for case in self.cases]
        codec = self.pipeline.image_codec
        parts = [self.scenes[start : start + 32] for start in range(0, len(self.scenes), 32)]
        self.rebuilt = [
            image for part in parts for image in to_images(codec.decode(codec.encode(to_tensor(part))))
        ]
        side = self.scenes[0].width // codec.downsample
        self.grid = Grid(side, side, codec.downsample)
        self.given = {"seed": options.seed, "batch_size": options.batch_size}

    def prompts(self, prompt: Callable[[Case], str]) -> list[str]:
        return [prompt(case) for case in self.cases]

    def check(self, images: Sequence[Image.Image], *, as_before: bool = False) -> list[Checked]:
        found = detect(np.stack([np.asarray(image) for image in images]))
        scenes = [case.before if as_before else case.after for case in self.cases]
        return [case.check(seen, scene) for case, seen, scene in zip(self.cases, found, scenes, strict=True)]

    def psnr(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> list[float]:
        """Decibels between each image and its scene's reconstruction, in the cells that are kept."""
        cell, decibels = self.grid.cell, []
        for image, rebuilt, mask in zip(images, self.rebuilt, masks, strict=True):
            changed = (
                self.grid.touched(mask).numpy() if mask.getbbox() else np.zeros((self.grid.rows,) * 2, bool)
            )
            kept = ~changed.repeat(cell, 0).repeat(cell, 1)
            error = np.asarray(image, float)[kept] - np.asarray(rebuilt, float)[kept]
            decibels.append(10 * math.log10(255**2 / (error**2).mean()) if error.any() else math.inf)
        return decibels

    def row(self, name: str, images: list[Image.Image], masks: list[Image.Image], **how: bool) -> list[str]:
        checked, decibels = self.check(images, **how), sorted(self.psnr(images, masks))
        shares = [share([getattr(one, field) for one in checked]) for field in Checked._fields]
        cells = [name, *shares, f"{decibels[len(decibels) // 2]:.1f}", f"{decibels[0]:.1f}"]
        print(" | ".join(cells), flush=True)
        return cells

    def inpainting(self) -> list[list[str]]:
        """The ways of masking and asking, between a control and the limit that autoencoder and detector set."""
        squares, halves = [case.square for case in self.cases], [case.half for case in self.cases]
        after, before = (
            self.prompts(lambda c, s=scene: caption_of(getattr(c, s))) for scene in ("after", "before")
        )
        paint = self.pipeline.inpaint
        rows = [
            self.row("**its square, all named**", paint(self.scenes, squares, after, **self.given), squares)
        ]
        rows += [
            self.row(
                "its half of the image, all named",
                paint(self.scenes, halves, after, **self.given),
                halves,
            )
        ]
        alone = paint(self.scenes, squares, self.prompts(new_alone), **self.given)
        rows += [self.row("its square, the new one named alone", alone, squares)]
        same = paint(self.scenes, squares, before, **self.given)
        rows += [self.row("its square, nothing to change", same, squares, as_before=True)]
        rows += [
            self.row("control: `generate`, all named", self.pipeline.generate(after, **self.given), squares)
        ]
        rows += [self.row("control: the scene, rebuilt", self.rebuilt, squares, as_before=True)]
        return rows

    def sweep(self) -> list[list[str]]:
        squares, after = [case.square for case in self.cases], self.prompts(lambda c: caption_of(c.after))
        rows = []
        for change in SWEEP:
            images = self.pipeline.inpaint(self.scenes, squares, after, **{**self.given, **change})
            name = ", ".join(f"{key} {value}" for key, value in change.items()) or "the model's own"
            rows.append(self.row(name, images, squares))
        return rows

    def variation(self) -> list[list[str]]:
        """By strength: images by their own caption and by the changed one."""
        nothing = [Image.new("L", scene.size) for scene in self.scenes]
        before, after = (
            self.prompts(lambda c, s=scene: caption_of(getattr(c, s))) for scene in ("before", "after")
        )
        rows = []
        for strength in self.options.strengths:
            own = self.pipeline.vary(self.scenes, before, strength=strength, **self.given)
            other = self.pipeline.vary(self.scenes, after, strength=strength, **self.given)
            cells = [f"{strength:g}"]
            for images, as_before in ((own, True), (other, False)):
                checked = self.check(images, as_before=as_before)
                cells += [share([one.all for one in checked]), share([one.kept for one in checked])]
                cells += [f"{np.median(self.psnr(images, nothing)):.1f}"]
            print(" | ".join(cells), flush=True)
            rows.append(cells)
        return rows

    def save_grid(self, path: Path) -> None:
        """The first cases, not selected: the scene, in-painted, and varied by the changed caption."""
        strengths, after = (0.5, 0.7, 0.8, 0.9), self.prompts(lambda c: caption_of(c.after))
        squares = [case.square for case in self.cases]
        columns = [self.scenes, self.pipeline.inpaint(self.scenes, squares, after, **self.given)]
        columns += [self.pipeline.vary(self.scenes, after, strength=s, **self.given) for s in strengths]
        headings = ["scene", "inpaint", *(f"vary, {strength:g}" for strength in strengths)]
        strip(list(zip(*columns, strict=True)), headings, after).save(path)


def share(right: Sequence[bool]) -> str:
    mean = sum(right) / len(right)
    half_width = 1.96 * math.sqrt(mean * (1 - mean) / len(right))
    return f"{mean:.3f}" + (f" ± {half_width:.3f}" if half_width else "")


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [head.split(" | "), ["---"] * len(rows[0]), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def report(options: argparse.Namespace) -> str:
    start, bench = time.perf_counter(), Bench(options)
    parts = {"inpainting": bench.inpainting, "sweep": bench.sweep, "variation": bench.variation}
    rows = {name: part() for name, part in parts.items() if getattr(options, name)}
    command = " ".join(["python benchmarks/inpainting.py", *sys.argv[1:]])
    seconds = time.perf_counter() - start
    texts = [
        f"`{command}`, model {options.model}, commit {code_version()[:12]}, {time.strftime('%Y-%m-%d')};\n"
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU, torch {torch.__version__} on {torch.get_num_threads()} "
        f"threads, {seconds:.0f} s, others at work.\nWorld `{options.preset}`, split {options.split}, "
        f"{len(bench.cases)} scenes of two objects, seeds from {options.seed}, 95 % intervals.\n"
    ]
    head = " | new object right | other one kept | all right | PSNR of the kept part, median, dB | lowest"
    for name in ("inpainting", "sweep"):
        if name in rows:
            texts.append(
                table(
                    f"what is masked and asked for{head}" if name == "inpainting" else f"setting{head}",
                    rows[name],
                )
            )
    if "variation" in rows:
        columns = " | ".join(
            f"{what}: all right | other one kept | PSNR" for what in ("own caption", "changed caption")
        )
        texts.append(table(f"strength | {columns}", rows["variation"]))
    return "\n".join(texts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default="mini")
    add("--preset", default="fixed", choices=sorted(PRESETS))
    add("--split", default="val", help="of the world; defaults are not chosen on the test split")
    add("--scenes", type=int, default=200)
    add("--seed", type=int, default=0, help="of the first image; the next one's is 1 more")
    add("--batch-size", type=int, default=50)
    add("--inpainting", action="store_true", help="ways of masking and asking, with controls")
    add("--sweep", action="store_true", help="settings of in-painting")
    add("--variation", action="store_true", help="by strength")
    add("--strengths", nargs="+", type=float, default=[0.3, 0.5, 0.7, 0.9])
    add("--grid", type=Path, help="instead: a PNG of each scene and of what it becomes")
    add("--out", type=Path, default=HERE / "inpainting.md", help="gets the tables at its end")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    limit_threads(resolve(given.model))
    if given.grid is not None:
        Bench(given).save_grid(given.grid)
    else:
        text = report(given)
        with given.out.open("a") as file:
            file.write("\n" + text)
