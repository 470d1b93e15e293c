"""GenEval (Ghosh et al. 2023, github.com/djghosh13/geneval): prompts, the official folder layout, and scores.

The official scorer reads `00000/metadata.jsonl` and `00000/samples/0000.png` and finds objects with Mask2Former and
colours with CLIP. Here the small world's detector finds both. What an image must show, and what the positions mean, is
the official rule (`world.check_detections`). Its thresholds are not: Mask2Former's 0.3, and 0.9 when counting, mean
nothing for another detector, which has one threshold for all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddit.eval.intervals import weighted_sum, wilson
from ddit.eval.items import Figure, mean, read_json_lines, require, require_list
from ddit.files import list_names
from ddit.images import fit_image
from ddit.world import CLASSES, COLORS, TAGS, Detection, Prompt, WorldConfig, check_detections
from ddit.world.detector import detect

NUM_SAMPLES = 4
OVERALL = "overall"


class ImageScore(NamedTuple):
    """Whether an image shows what was asked for, and what was found in it."""

    correct: bool
    detections: list[Detection]

    def to_json(self) -> dict[str, Any]:
        found = [
            {
                "class": d.class_name,
                "color": d.color,
                "box": [round(v, 1) for v in d.box],
                "score": round(d.score, 3),
            }
            for d in self.detections
        ]
        return {"score": float(self.correct), "detections": found}


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file such as the official evaluation_metadata.jsonl; `ValueError` if it has another form."""
    prompts = []
    for entry in read_json_lines(path):
        tag, include, text = (
            require(entry, "tag", path),
            require_list(entry, "include", path),
            entry.get("prompt"),
        )
        exclude = require_list(entry, "exclude", path) if entry.get("exclude") else []
        if tag not in TAGS:
            raise ValueError(f"'{path}': tag must be one of {', '.join(TAGS)}, got {tag!r}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"'{path}': prompt must be a text, got {text!r}")
        for index, clause in enumerate(include):
            _check_clause(clause, range(index), path)
        for clause in exclude:
            _check_clause(clause, range(0), path)
        prompts.append(Prompt(text, tag, include, exclude))
    if not prompts:
        raise ValueError(f"'{path}' holds no prompt")
    return prompts


def _check_clause(clause: Any, before: range, path: Path) -> None:
    match clause:
        case {"class": str(), "count": int(count)} if count > 0 and isinstance(clause.get("color", ""), str):
            match clause.get("position", ["", 0]):
                case [str(), int(other)] if other in before or "position" not in clause:
                    return
    raise ValueError(
        f"'{path}': a clause must have class, count (at least 1) and perhaps color and position (the relation and the "
        f"number of a clause before), got {str(clause)[:80]}"
    )


def is_in_world(prompt: Prompt) -> bool:
    """Whether the world's detector knows every class and colour that the prompt names."""
    return not _unknown_names(prompt)


class GenevalPrompts(NamedTuple):
    """The prompts that images are generated for; the notes say which of a file's are left out, and why."""

    prompts: list[Prompt]
    notes: tuple[str, ...] = ()


def choose_prompts(path: Path, *, all_prompts: bool = False) -> GenevalPrompts:
    """The prompts of a file that the world's detector can judge, or all of them.

    Raises:
        ValueError: if the file has another form, or holds no prompt that can be judged.
    """
    prompts = read_prompts(path)
    known = [prompt for prompt in prompts if is_in_world(prompt)]
    if len(known) == len(prompts):
        return GenevalPrompts(prompts)
    names = dict.fromkeys(name for prompt in prompts for name in _unknown_names(prompt))
    why = f"{len(prompts) - len(known):,} name what the small world lacks ({list_names(names)})"
    if all_prompts:
        note = f"{len(known):,} of {len(prompts):,} prompts are scored here; {why}"
        return GenevalPrompts(prompts, (note,))
    hint = "--all-prompts generates images for all of them, for the official scorer"
    if not known:
        raise ValueError(f"'{path}': no prompt can be scored here, {why}; {hint}")
    note = f"{len(known):,} of {len(prompts):,} prompts are used; {why} and are left out; {hint}"
    return GenevalPrompts(known, (note,))


def _unknown_names(prompt: Prompt) -> list[str]:
    clauses = [*prompt.include, *prompt.exclude]
    classes = [clause["class"] for clause in clauses if clause["class"] not in CLASSES]
    return [*classes, *(c["color"] for c in clauses if c.get("color", COLORS[0]) not in COLORS)]


def write_metadata(folder: Path, index: int, prompt: Prompt) -> Path:
    """Makes the folder of prompt `index`, with its metadata; returns the folder of its samples."""
    samples = folder / f"{index:05d}" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    metadata = json.dumps(prompt.to_json()) + "\n"
    (samples.parent / "metadata.jsonl").write_text(metadata, encoding="utf-8")
    return samples


def sample_name(number: int) -> str:
    return f"{number:04d}.png"


def write_grid(folder: Path, index: int) -> None:
    """Writes `grid.png` beside the samples of prompt `index`: all of them in a square, GenEval's layout."""
    prompt_folder = folder / f"{index:05d}"
    images = [Image.open(path) for path in sorted((prompt_folder / "samples").glob("*.png"))]
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    grid.save(prompt_folder / "grid.png")


def score_images(prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[ImageScore]:
    """Each image against its prompt; images of another size are resized to the world's first."""
    size = WorldConfig().size
    pixels = [np.asarray(fit_image(image, size, size)) for image in images]
    found = detect(np.stack(pixels)) if pixels else []
    return [
        ImageScore(check_detections(prompt, seen), seen) for prompt, seen in zip(prompts, found, strict=True)
    ]


def tally_categories(tags: Sequence[str], correct: Sequence[bool]) -> list[Figure]:
    """First GenEval's overall score, the mean of the categories; then the share of right images of each category."""
    figures = []
    for tag in TAGS:
        chosen = [right for own, right in zip(tags, correct, strict=True) if own == tag]
        if chosen:
            figures.append(Figure(tag, mean(chosen), len(chosen)))
    overall = mean(figure.value for figure in figures)
    parts = [(figure.value, wilson(figure.value, figure.num)) for figure in figures]
    limits = weighted_sum(1 / len(parts), parts) if parts else None
    return [Figure(OVERALL, overall, len(tags), is_share=False, limits=limits), *figures]
