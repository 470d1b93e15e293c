"""GenEval (Ghosh et al. 2023, github.com/djghosh13/geneval): prompts, the official folder, and scores.

The official scorer reads `00000/metadata.jsonl` and `00000/samples/0000.png` and finds objects with Mask2Former and
colours with CLIP. Here the small world's detector finds both; what a picture must hold, and how positions are judged,
is the official rule (`world.judge`). Its thresholds are not: Mask2Former's 0.3, and 0.9 when counting, mean nothing for
another detector, which takes one threshold for all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddit.eval.items import Figure, mean, read_json_lines, wanted
from ddit.images import fit_image
from ddit.world import CLASSES, COLORS, TAGS, Detection, Prompt, WorldConfig, detect, check_detections

NUM_SAMPLES = 4
OVERALL = "overall"


class Judged(NamedTuple):
    """One picture: whether it shows what was asked, and what was found in it."""

    correct: bool
    detections: list[Detection]


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file such as the official evaluation_metadata.jsonl; `ValueError` names what is wrong with it."""
    prompts = []
    for entry in read_json_lines(path):
        tag, include, text = (wanted(entry, key, path) for key in ("tag", "include", "prompt"))
        if tag not in TAGS:
            raise ValueError(f"'{path}': tag must be one of {', '.join(TAGS)}, got {tag!r}")
        for clause in (*include, *entry.get("exclude", [])):
            for key in ("class", "count"):
                wanted(clause, key, path)
        prompts.append(Prompt(text, tag, include, entry.get("exclude", [])))
    if not prompts:
        raise ValueError(f"'{path}' holds no prompt")
    return prompts


def is_in_world(prompt: Prompt) -> bool:
    """Whether the world's detector knows every class and colour that the prompt names."""
    clauses = [*prompt.include, *prompt.exclude]
    return all(c["class"] in CLASSES and c.get("color", COLORS[0]) in COLORS for c in clauses)


def write_metadata(folder: Path, index: int, prompt: Prompt) -> Path:
    """Makes the folder of prompt `index`, with its metadata; returns the folder of its samples."""
    at = folder / f"{index:05d}"
    (at / "samples").mkdir(parents=True, exist_ok=True)
    (at / "metadata.jsonl").write_text(json.dumps(prompt.to_json()) + "\n", encoding="utf-8")
    return at / "samples"


def sample_name(number: int) -> str:
    return f"{number:04d}.png"


def write_grid(folder: Path, index: int) -> None:
    """`grid.png` beside the samples of prompt `index`: all of them, side by side, in rows as long as columns."""
    at = folder / f"{index:05d}"
    images = [Image.open(path) for path in sorted((at / "samples").glob("*.png"))]
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    grid.save(at / "grid.png")


def judge_images(prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[Judged]:
    """Each picture against its prompt; a picture of another size than the world's is brought to that first."""
    size = WorldConfig().size
    pixels = [np.asarray(fit_image(image, size, size)) for image in images]
    found = detect(np.stack(pixels)) if pixels else []
    return [Judged(check_detections(prompt, seen), seen) for prompt, seen in zip(prompts, found, strict=True)]


def geneval_figures(tags: Sequence[str], correct: Sequence[bool]) -> list[Figure]:
    """The share of right pictures of each category, and first their mean: GenEval's overall score."""
    figures = []
    for tag in TAGS:
        chosen = [right for own, right in zip(tags, correct, strict=True) if own == tag]
        if chosen:
            figures.append(Figure(tag, mean(chosen), len(chosen)))
    overall = mean(figure.value for figure in figures)
    return [Figure(OVERALL, overall, len(tags), is_share=False), *figures]


def to_json(judged: Judged) -> dict[str, Any]:
    """Plain data for the predictions' file."""
    found = [
        {
            "class": d.class_name,
            "color": d.color,
            "box": [round(v, 1) for v in d.box],
            "score": round(d.score, 3),
        }
        for d in judged.detections
    ]
    return {"score": float(judged.correct), "detections": found}
