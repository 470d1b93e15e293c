"""GenEval (Ghosh et al. 2023, github.com/djghosh13/geneval): prompts, the official folder layout, and scores.

The official scorer reads `00000/metadata.jsonl` and `00000/samples/0000.png` and finds objects with Mask2Former and
colours with CLIP. `CocoJudge` does the same with transformers' networks and the official thresholds; `WorldJudge` and
`WideJudge` have their world's detector find both, which has one threshold for all. What an image must show, and what
the positions mean, is the official rule for all of them (`world.find_faults`).
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ddit.eval.intervals import weighted_sum, wilson
from ddit.eval.items import Figure, mean, read_json_lines, require, require_list
from ddit.eval.likeness import SMALL, WIDE, Likeness, measure_likeness, tally_likeness
from ddit.eval.options import DetectorOptions
from ddit.files import list_names
from ddit.images import fit_image
from ddit.world import CLASSES, COLORS, TAGS, Detection, Prompt, find_faults
from ddit.world.detector import detect
from ddit.world.wide import WIDE_CLASSES, WIDE_TAGS
from ddit.world.wide.checked import detect_checked

if TYPE_CHECKING:
    from ddit.eval.detectors import CocoDetector, ColorModel, FoundObject
    from ddit.eval.onnx_detector import OnnxDetector

SIZE = 64
"""Side of the images that the worlds' detectors see, in pixels."""
RESULTS_FILE = "results.jsonl"
OVERALL = "overall"


class ImageScore(NamedTuple):
    """What an image lacks of what was asked for, in the official words, and what was found in it.

    likeness: how near it is to a true image, if it should show one object of a world.
    """

    faults: list[str]
    detections: list[Detection]
    likeness: Likeness | None = None

    @property
    def correct(self) -> bool:
        return not self.faults

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
        reasons = {"reason": "\n".join(self.faults)} if self.faults else {}
        near = self.likeness.to_json() if self.likeness else {}
        return {"score": float(self.correct), "detections": found, **reasons, **near}

    def official(self, filename: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The line of the official `results.jsonl`, which its `summary_scores.py` reads."""
        details: dict[str, list[list[float]]] = {}
        for seen in self.detections:
            details.setdefault(seen.class_name, []).append([*seen.box, seen.score])
        return {
            "filename": filename, "tag": metadata["tag"], "prompt": metadata["prompt"],
            "correct": self.correct, "reason": "\n".join(self.faults),
            "metadata": json.dumps(metadata), "details": json.dumps(details),
        }  # fmt: skip


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file such as the official evaluation_metadata.jsonl; `ValueError` if it has another form."""
    prompts = [parse_prompt(entry, path) for entry in read_json_lines(path)]
    if not prompts:
        raise ValueError(f"'{path}' holds no prompt")
    return prompts


def parse_prompt(entry: Mapping[str, Any], path: Path) -> Prompt:
    """One entry of the file `path`; `ValueError` if it has another form."""
    tag, include = require(entry, "tag", path), require_list(entry, "include", path)
    exclude = require_list(entry, "exclude", path) if entry.get("exclude") else []
    text = entry.get("prompt")
    section = entry.get("section", "")
    if tag not in WIDE_TAGS or not isinstance(section, str):
        raise ValueError(
            f"'{path}': tag must be one of {', '.join(WIDE_TAGS)}, and section a text, got {tag!r}"
        )
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'{path}': prompt must be a text, got {text!r}")
    for index, clause in enumerate(include):
        _check_clause(clause, range(index), path)
    for clause in exclude:
        _check_clause(clause, range(0), path)
    return Prompt(text, tag, include, exclude, section)


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


class Judge(ABC):
    """Finds objects in images and compares them with what was asked for. knows: whose classes it tells apart."""

    knows: str
    classes: tuple[str, ...]

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[ImageScore]:
        """Each image against its prompt."""


class WorldJudge(Judge):
    """The small world's detector, and how near single objects come to its sprites."""

    knows, classes = "the small world", CLASSES
    find, sprites = staticmethod(detect), SMALL

    def score(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[ImageScore]:
        scores = score_images(prompts, images, self.find)
        near = measure_likeness(prompts, images, self.sprites)
        return [score._replace(likeness=one) for score, one in zip(scores, near, strict=True)]


class WideJudge(WorldJudge):
    """The wide world's two nets, which know the small world's sprites, too."""

    knows, classes = "the wide world", WIDE_CLASSES
    find, sprites = staticmethod(detect_checked), WIDE


WORLD_JUDGES: dict[str, type[Judge]] = {"world": WorldJudge, "wide": WideJudge}


class CocoJudge(Judge):
    """GenEval's detector and its rules about which objects count; colours by CLIP, where a prompt names one."""

    knows = "COCO"

    def __init__(self, detector: CocoDetector | OnnxDetector, colors: ColorModel, options: DetectorOptions):
        from ddit.eval.detectors import COCO_CLASSES

        self.classes = COCO_CLASSES
        self._detector, self._colors, self._options = detector, colors, options

    def score(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[ImageScore]:
        return [self._score(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    def _score(self, prompt: Prompt, image: Image.Image) -> ImageScore:
        from ddit.eval.detectors import keep_objects

        options = self._options
        threshold = options.counting_threshold if prompt.tag == "counting" else options.detector_threshold
        kept = keep_objects(
            self._detector.find(image, threshold=threshold),
            threshold=threshold,
            max_objects=options.max_objects,
            max_overlap=options.max_overlap,
        )
        seen = self._with_colors(prompt, image, kept)
        return ImageScore(find_faults(prompt, seen), seen)

    def _with_colors(self, prompt: Prompt, image: Image.Image, kept: list[FoundObject]) -> list[Detection]:
        """The objects as detections: those that a prompt's colours are compared with get theirs."""
        wanted: dict[str, int] = {}
        for clause in prompt.include:
            if "color" in clause:
                wanted[clause["class"]] = max(clause["count"], wanted.get(clause["class"], 0))
        colors: dict[int, str] = {}
        for name, count in wanted.items():
            chosen = [one for one in kept if one.class_name == name][:count]
            colors |= zip(map(id, chosen), self._colors.colors(image, chosen), strict=True)
        return [Detection(one.class_name, colors.get(id(one)), one.box, one.score) for one in kept]


def make_judge(options: DetectorOptions, device: torch.device | str = "cpu") -> Judge:
    """What the options name, by default the small world's; ValueError in one line if that cannot be loaded."""
    name = options.detector or "world"
    if name in WORLD_JUDGES:
        return WORLD_JUDGES[name]()
    from ddit.eval.detectors import CocoDetector, ColorModel
    from ddit.eval.onnx_detector import SUFFIX, OnnxDetector

    detector = (
        OnnxDetector.from_file(name) if name.endswith(SUFFIX) else CocoDetector.from_pretrained(name, device)
    )
    return CocoJudge(detector, ColorModel.from_pretrained(options.color_model, device), options)


class GenevalPrompts(NamedTuple):
    """The prompts that images are generated for; the notes say which of a file's are left out, and why."""

    prompts: list[Prompt]
    notes: tuple[str, ...] = ()


def choose_prompts(path: Path, judge: Judge, *, all_prompts: bool = False) -> GenevalPrompts:
    """The prompts of a file that can be judged, or all of them.

    Raises:
        ValueError: if the file has another form, or holds no prompt that can be judged.
    """
    prompts = read_prompts(path)
    known = [prompt for prompt in prompts if not unknown_names(judge, prompt)]
    if len(known) == len(prompts):
        return GenevalPrompts(prompts)
    names = dict.fromkeys(name for prompt in prompts for name in unknown_names(judge, prompt))
    why = f"{len(prompts) - len(known):,} name what {judge.knows} lacks ({list_names(names)})"
    if all_prompts:
        note = f"{len(known):,} of {len(prompts):,} prompts are scored here; {why}"
        return GenevalPrompts(prompts, (note,))
    hint = "--all-prompts generates images for all of them, and --detector names one of COCO's classes"
    if not known:
        raise ValueError(f"'{path}': no prompt can be scored here, {why}; {hint}")
    note = f"{len(known):,} of {len(prompts):,} prompts are used; {why} and are left out; {hint}"
    return GenevalPrompts(known, (note,))


def unknown_names(judge: Judge, prompt: Prompt) -> list[str]:
    """The classes and colours of a prompt that the judge does not know."""
    clauses = [*prompt.include, *prompt.exclude]
    classes = [clause["class"] for clause in clauses if clause["class"] not in judge.classes]
    return [*classes, *(c["color"] for c in clauses if c.get("color", COLORS[0]) not in COLORS)]


def write_metadata(folder: Path, index: int, prompt: Prompt) -> Path:
    """Makes the folder of prompt `index`, with its metadata; returns the folder of its samples."""
    samples = folder / f"{index:05d}" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    metadata = json.dumps(prompt.to_json()) + "\n"
    (samples.parent / "metadata.jsonl").write_text(metadata, encoding="utf-8")
    return samples


def write_results(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes the official `results.jsonl` (`ImageScore.official`)."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


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


def score_images(
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image],
    detect: Callable[[np.ndarray], list[list[Detection]]] = detect,
) -> list[ImageScore]:
    """Each image against its prompt, by a world's detector; images of another size are resized to the world's."""
    pixels = [np.asarray(fit_image(image, SIZE, SIZE)) for image in images]
    found = detect(np.stack(pixels)) if pixels else []
    return [ImageScore(find_faults(prompt, seen), seen) for prompt, seen in zip(prompts, found, strict=True)]


def tally_sections(
    sections: Sequence[str],
    tags: Sequence[str],
    correct: Sequence[bool],
    likenesses: Sequence[Likeness | None] = (),
) -> list[Figure]:
    """`tally_categories` and `tally_likeness` of each section of the prompts, in order of first appearance."""
    figures = []
    for section in dict.fromkeys(sections):
        chosen = [k for k, own in enumerate(sections) if own == section]
        own = tally_categories([tags[k] for k in chosen], [correct[k] for k in chosen])
        own += tally_likeness([near for k in chosen if likenesses and (near := likenesses[k])])
        figures += [f._replace(name=f"{section}: {f.name}" if section else f.name) for f in own]
    return figures


def tally_categories(tags: Sequence[str], correct: Sequence[bool]) -> list[Figure]:
    """First GenEval's overall score, the mean of its six categories; then the share of right images of each one."""
    figures = []
    for tag in WIDE_TAGS:
        chosen = [right for own, right in zip(tags, correct, strict=True) if own == tag]
        if chosen:
            figures.append(Figure(tag, mean(chosen), len(chosen)))
    official = [figure for figure in figures if figure.name in TAGS]
    parts = [(figure.value, wilson(figure.value, figure.num)) for figure in official]
    limits = weighted_sum(1 / len(parts), parts) if parts else None
    num = sum(figure.num for figure in official)
    return [Figure(OVERALL, mean(value for value, _ in parts), num, is_share=False, limits=limits), *figures]
