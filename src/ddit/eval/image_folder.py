"""Scores images that any model made: a folder in GenEval's layout, by a judge of `geneval`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddit.eval import geneval
from ddit.eval.items import Figure, mean, read_json_lines
from ddit.files import list_names
from ddit.images import read_image
from ddit.world import Prompt

_IMAGE = re.compile(r"\d+\.png")


class FolderImage(NamedTuple):
    """An image of a folder, and its prompt: checked, and as it stands in `metadata.jsonl`."""

    path: Path
    prompt: Prompt
    metadata: dict[str, Any]


def read_folder(folder: Path, judge: geneval.Judge) -> list[FolderImage]:
    """The images of `00000/samples/0000.png`, ..., with the prompts of `00000/metadata.jsonl`, in their order.

    Raises:
        ValueError: in one line; for another layout, or prompts that the judge does not know.
    """
    found = []
    for part in sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda p: int(p.name)):
        path = part / "metadata.jsonl"
        entries = read_json_lines(path)
        if len(entries) != 1:
            raise ValueError(f"'{path}' should hold one prompt, and holds {len(entries)}")
        prompt = geneval.parse_prompt(entries[0], path)
        images = sorted(path for path in (part / "samples").glob("*.png") if _IMAGE.fullmatch(path.name))
        if not images:
            raise ValueError(f"'{part / 'samples'}' has no image 0000.png")
        found += [FolderImage(image, prompt, entries[0]) for image in images]
    if not found:
        raise ValueError(
            f"'{folder}' has no images in GenEval's layout: 00000/metadata.jsonl, 00000/samples/0000.png"
        )
    unknown = dict.fromkeys(name for one in found for name in geneval.unknown_names(judge, one.prompt))
    if unknown:
        raise ValueError(f"'{folder}': prompts name what {judge.knows} lacks ({list_names(unknown)})")
    return found


def score_folder(
    images: Sequence[FolderImage],
    judge: geneval.Judge,
    *,
    batch_size: int = 32,
    on_images: Callable[[int], Any] = lambda count: None,
) -> list[dict[str, Any]]:
    """A line of the official results for each image. on_images is called with the number done since the last call."""
    lines = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        scores = judge.score([one.prompt for one in batch], [read_image(one.path) for one in batch])
        lines += [
            score.official(str(one.path), one.metadata) for one, score in zip(batch, scores, strict=True)
        ]
        on_images(len(batch))
    return lines


def list_figures(lines: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """GenEval's score and its categories, and the shares of right images and of prompts with one right image."""
    found = list(lines)
    sections = [json.loads(line["metadata"]).get("section", "") for line in found]
    tags, right = [line["tag"] for line in found], [line["correct"] for line in found]
    figures = geneval.tally_sections(sections, tags, right)
    prompts: dict[str, bool] = {}
    for line in found:
        prompts[line["metadata"]] = prompts.get(line["metadata"], False) or line["correct"]
    return [
        *figures,
        Figure("right images", mean(float(line["correct"]) for line in found), len(found)),
        Figure("prompts with a right image", mean(map(float, prompts.values())), len(prompts)),
    ]
