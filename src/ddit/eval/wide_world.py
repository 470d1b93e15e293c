"""The wide world as evaluation sets: questions, requests for descriptions, and prompts, with what is right.

FOLDER/wide_world.json                      which scenes these are
FOLDER/images/seen-wordings/000007.png      scene 7, of the questions in seen wordings
FOLDER/reading/questions.jsonl
FOLDER/description/requests.jsonl
FOLDER/geneval/evaluation_metadata.jsonl

Seen and held-out wordings, benchmarks' own sentences and held-out pairs are sections, each with figures of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ddit.eval.image_index import ImageIndex
from ddit.eval.items import Figure, Item, TaskItems, TaskScore, find_file, read_json_lines, require_text
from ddit.eval.vqa import find_image_folder, normalize_answer, score_items
from ddit.files import read_json
from ddit.schema import parse, strict, to_data
from ddit.world import PRESETS, Prompt
from ddit.world import make_prompts as make_small_prompts
from ddit.world.wide import (
    DescriptionScore,
    Part,
    WideConfig,
    WideScene,
    make_prompts,
    make_question,
    make_request,
    make_scene,
    render,
    score_description,
)
from ddit.world.wide.official import BENCHMARKS, make_official_question
from ddit.world.wide.scenes import render_transparent

WORLD_FILE = "wide_world.json"


@strict
class WideSplit:
    """`num` scenes of a split for each section of a task, and `num_prompts` prompts of each category for each."""

    config: WideConfig
    split: str = "test"
    num: int = 300
    num_prompts: int = 92
    seed: int = 0

    def scene(self, split: str, index: int) -> WideScene:
        return make_scene(self.config, split, index, seed=self.seed)


class Section(NamedTuple):
    """A part of a task: which scenes, if not those of the world's split, and which wordings.

    Attributes:
        benchmark: whose own sentences are asked, instead of the grammar's.
        alone: the ground that a single object is on, or "transparent".
    """

    name: str
    split: str = ""
    part: Part = "seen"
    benchmark: str = ""
    alone: str = ""


WORDINGS = (
    Section("seen wordings"),
    Section("held-out wordings", part="held_out"),
    Section("held-out pairs", split="heldout"),
)
READING = (
    *WORDINGS,
    *(Section(f"{name}'s own sentences", benchmark=name) for name in BENCHMARKS),
    *(Section(f"alone on {ground}", alone=ground) for ground in ("white", "black", "transparent")),
)
BY_KIND = {section.name for section in WORDINGS[:2]}
"""Sections of reading that have a figure for each kind of question, too."""
FIXED_PLACES = "fixed places"
"""Section of the small world's prompts in GenEval's own sentence, for models that know both worlds."""


def write_wide_data(
    folder: Path, world: WideSplit, tasks: Sequence[str] = (), *, on_scene: Callable[[], Any] = lambda: None
) -> dict[str, int]:
    """Writes the files of some tasks, by default of all; returns how many questions, requests or prompts each has."""
    _write(folder / WORLD_FILE, [to_data(world)])
    return {task: _WRITERS[task](folder / task, world, on_scene) for task in tasks or _WRITERS}


def _write(path: Path, entries: Iterable[Any]) -> int:
    """A line of JSON for each entry; returns how many there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry) + "\n" for entry in entries]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


# --- reading ---


class Asking(NamedTuple):
    """A scene, what is asked of it, and the right answer."""

    scene: WideScene
    question: str
    answer: str
    kind: str

    def image(self) -> Image.Image:
        return Image.fromarray(render(self.scene))


def make_questions(world: WideSplit, section: Section) -> Iterator[Asking]:
    """Questions about one scene each, without end; scenes that the section's questions do not fit are left out."""
    if section.alone:
        ground = "white" if section.alone == "transparent" else section.alone
        config = replace(world.config, counts=(1.0,), grounds={ground: 1.0})
        world = replace(world, config=config)
    index = 0
    while True:
        scene = world.scene(section.split or world.split, index)
        rng = random.Random(f"read/{section.name}/{world.seed}/{index}")
        index += 1
        if section.benchmark:
            asked = make_official_question(scene, rng, section.benchmark)
        else:
            asked = make_question(scene, rng, part=section.part)
        if asked and not (section.alone == "transparent" and asked.kind.startswith("ground")):
            yield Asking(scene, asked.text, asked.answer, asked.kind)


def _write_reading(folder: Path, world: WideSplit, on_scene: Callable[[], Any]) -> int:
    entries = []
    for section in READING:
        draw = render_transparent if section.alone == "transparent" else render
        for number, asking in zip(range(world.num), make_questions(world, section), strict=False):
            image = _save(folder, section, asking.scene, draw)
            truth = {"answer": asking.answer, "kind": asking.kind, "section": section.name}
            entries.append(
                {"id": f"{section.name}/{number}", "image": image, "question": asking.question, **truth}
            )
            on_scene()
    return _write(folder / "questions.jsonl", entries)


def _save(folder: Path, section: Section, scene: WideScene, draw: Callable[[WideScene], Any]) -> str:
    """Writes a section's image; returns its path below the folder of images."""
    path = Path(section.name.replace("'", "").replace(" ", "-")) / f"{scene.index:06d}.png"
    target = folder.parent / "images" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        Image.fromarray(draw(scene)).save(target)
    return path.as_posix()


def read_reading(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of `questions.jsonl`: id, image, question, answer, kind, section."""
    return TaskItems([item for item, _ in _read(find_file(folder, "*questions*.jsonl"), images)])


def _read(path: Path, images: Path | None) -> list[tuple[Item, dict[str, Any]]]:
    index, found = ImageIndex(find_image_folder(path.parent, images)), []
    for entry in read_json_lines(path):
        number, image, question = (require_text(entry, key, path) for key in ("id", "image", "question"))
        truth = {key: require_text(entry, key, path) for key in ("answer", "kind", "section")}
        found.append((Item(number, index.find(image), question, truth), entry))
    index.check()
    return found


def is_right(answer: str, text: str) -> bool:
    """Whether the text is the right answer, by VQA's normalisation; classes of a list may come in any order."""
    said, true = (sorted(normalize_answer(part) for part in t.split(",")) for t in (text, answer))
    return said == true


def score_reading(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """Accuracy of each section; of seen and held-out wordings also by kind of question."""
    scores = [0.0] * len(items)
    figures, further = [], []
    for name, places in _sections(items).items():
        scored = score_items(
            [items[k] for k in places],
            [texts[k] for k in places],
            lambda item, text: float(is_right(item.truth["answer"], text)),
        )
        for k, score in zip(places, scored.scores, strict=True):
            scores[k] = score
        figures.append(scored.figures[0]._replace(name=name))
        further += [f._replace(name=f"{name}: {f.name}") for f in scored.figures[1:] if name in BY_KIND]
    return TaskScore(scores, figures + further)


def _sections(items: Sequence[Item]) -> Mapping[str, list[int]]:
    """The numbers of each section's items."""
    found: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        found.setdefault(item.truth["section"], []).append(number)
    return found


# --- descriptions ---


def make_requests(world: WideSplit, section: Section) -> Iterator[Asking]:
    """Requests for detailed descriptions of `world.num` scenes, each with one that is right."""
    for index in range(world.num):
        scene = world.scene(section.split or world.split, index)
        rng = random.Random(f"describe/{section.name}/{world.seed}/{index}")
        asked = make_request(scene, rng, detailed=True, part=section.part)
        yield Asking(scene, asked.text, asked.reply, asked.kind)


def _write_descriptions(folder: Path, world: WideSplit, on_scene: Callable[[], Any]) -> int:
    entries = []
    for section in WORDINGS:
        place = {"section": section.name, "split": section.split or world.split}
        for index, asking in enumerate(make_requests(world, section)):
            image = _save(folder, section, asking.scene, render)
            truth = {"answer": asking.answer, "kind": asking.kind, **place, "index": index}
            entries.append(
                {"id": f"{section.name}/{index}", "image": image, "question": asking.question, **truth}
            )
            on_scene()
    return _write(folder / "requests.jsonl", entries)


def read_descriptions(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of `requests.jsonl`, in a folder that `write_wide_data` wrote, each with its scene."""
    path = find_file(folder, "*requests*.jsonl")
    places = [folder / WORLD_FILE, folder.parent / WORLD_FILE]
    world = parse(WideSplit, read_json(next((p for p in places if p.is_file()), places[1])), "world")
    items = []
    for item, entry in _read(path, images):
        split, index = entry.get("split"), entry.get("index")
        if not isinstance(split, str) or not isinstance(index, int):
            raise ValueError(f"'{path}': an entry has no split and index: {str(entry)[:80]!r}")
        items.append(replace(item, scene=world.scene(split, index)))
    return TaskItems(items)


def score_descriptions(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """Of each section the shares of the objects that are named, of the attributes that are told rightly, and of the
    statements that are false. A text's score is its share of attributes.
    """
    scored = []
    for item, text in zip(items, texts, strict=True):
        assert isinstance(item.scene, WideScene)
        scored.append(score_description(item.scene, "" if item.fault else text))
    figures = []
    for name, places in _sections(items).items():
        total = sum((scored[k] for k in places), DescriptionScore())
        figures += [
            Figure(f"{name}: objects named", total.objects, total.num_objects),
            Figure(f"{name}: attributes right", total.attributes, total.num_attributes),
            Figure(f"{name}: statements false", total.false, total.num_statements),
        ]
    return TaskScore([each.attributes for each in scored], figures)


# --- drawing ---


def make_wide_prompts(world: WideSplit) -> list[Prompt]:
    """Prompts in GenEval's form of every section and category."""
    found = []
    for section in WORDINGS:
        prompts = make_prompts(
            world.config,
            world.num_prompts,
            split=section.split or world.split,
            part=section.part,
            seed=world.seed,
        )
        found += [replace(prompt, section=section.name) for prompt in prompts]
    fixed = make_small_prompts(PRESETS["fixed"], world.num_prompts, split=world.split, seed=world.seed)
    return [*found, *(replace(prompt, section=FIXED_PLACES) for prompt in fixed)]


def _write_geneval(folder: Path, world: WideSplit, on_scene: Callable[[], Any]) -> int:
    return _write(
        folder / "evaluation_metadata.jsonl", (prompt.to_json() for prompt in make_wide_prompts(world))
    )


_WRITERS: dict[str, Callable[[Path, WideSplit, Callable[[], Any]], int]] = {
    "reading": _write_reading,
    "description": _write_descriptions,
    "geneval": _write_geneval,
}
