"""The small world as evaluation sets in the official formats, with one folder of images for all.

FOLDER/world.json                     which scenes these are
FOLDER/images/000000000007.png        scene 7
FOLDER/vqav2/questions.json, annotations.json
FOLDER/vizwiz/annotations.json
FOLDER/gqa/questions.json
FOLDER/pope/pope_{random,popular,adversarial}.json
FOLDER/mme/{existence,count,position,color}/000000000007.{png,txt}
FOLDER/caption/captions.json
FOLDER/geneval/evaluation_metadata.jsonl
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ddit.eval.items import Item
from ddit.eval.vqa import NUM_ANSWERS, UNANSWERABLE, normalize_answer
from ddit.eval.yesno import COARSE, POPE_FILES
from ddit.files import read_json
from ddit.schema import parse, strict, to_data
from ddit.world import (
    QUESTION_KINDS,
    Question,
    Scene,
    WorldConfig,
    list_captions,
    make_prompts,
    make_question,
    make_scene,
    render,
)
from ddit.world.captions import phrase

WORLD_FILE = "world.json"
NUM_REFERENCES = 5
"""Captions an image, as in COCO."""
_MAX_PER_IMAGE = 3
"""Of questions with yes, and of those with no, about an image in a file of POPE."""
_NUM_OBSERVED = 3000
"""Training scenes that POPE's frequencies are counted in."""
_UNANSWERABLE_SHARE = 0.3
"""Close to that of VizWiz."""

_STRUCTURE = {
    "color": ("query", "attr"),
    "count": ("query", "global"),
    "what": ("query", "cat"),
    "where": ("query", "rel"),
    "relation": ("verify", "rel"),
    "exists": ("verify", "obj"),
    "exists_color": ("verify", "attr"),
    "exists_count": ("verify", "global"),
}
"""GQA's structural and semantic type of each kind of the world's questions; GQA itself counts nothing."""


@strict
class WorldSplit:
    """The first `num` scenes of a split, and `num_prompts` prompts of each of GenEval's categories."""

    config: WorldConfig
    split: str = "test"
    num: int = 300
    num_prompts: int = 92
    seed: int = 0

    def scene(self, index: int) -> Scene:
        return make_scene(self.config, self.split, index, seed=self.seed)

    def rng(self, task: str, index: int) -> random.Random:
        """The generator of a task's choices about a scene."""
        return random.Random(f"eval/{task}/{self.seed}/{self.split}/{index}")


def read_world(folder: Path) -> WorldSplit | None:
    """The world that an exported folder, or one of its tasks' folders, was made of; None for any other folder."""
    for path in (folder / WORLD_FILE, folder.parent / WORLD_FILE):
        if path.is_file():
            return parse(WorldSplit, read_json(path), "world")
    return None


def add_scenes(folder: Path, items: Sequence[Item]) -> list[Item]:
    """The items of a task's folder, each with its scene if `write_eval_data` made the folder."""
    world = read_world(folder)
    if world is None or not all(item.image.stem.isdecimal() for item in items):
        return list(items)
    scenes = {index: world.scene(index) for index in sorted({int(item.image.stem) for item in items})}
    return [replace(item, scene=scenes[int(item.image.stem)]) for item in items]


def empty_background(scene: Scene) -> Image.Image:
    """The scene's image without its objects."""
    return Image.fromarray(render(replace(scene, objects=())))


def write_eval_data(
    folder: Path, world: WorldSplit, tasks: Sequence[str] = (), *, on_scene: Callable[[], Any] = lambda: None
) -> dict[str, int]:
    """Writes the files of some tasks, by default of all; returns how many questions, captions or prompts each has."""
    scenes = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(world.num):
        scenes.append(world.scene(index))
        Image.fromarray(render(scenes[-1])).save(folder / "images" / f"{_name(index)}.png")
        on_scene()
    _dump(folder / WORLD_FILE, to_data(world))
    return {name: _WRITERS[name](folder / name, world, scenes) for name in tasks or _WRITERS}


def _name(index: int) -> str:
    return f"{index:012d}"


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


# --- open questions ---


def _ask_any(scene: Scene, rng: random.Random, kinds: Sequence[str]) -> Question:
    """A question of a random one of those kinds that fit."""
    for kind in rng.sample(list(kinds), len(kinds)):
        asked = make_question(scene, rng, kind)
        if asked is not None:
            return asked
    raise AssertionError("asking whether there is something always fits")


def _ten_answers(answer: str) -> list[dict[str, Any]]:
    """The same answer from ten people, in the form of published annotations: digits for number words."""
    return [{"answer": normalize_answer(answer), "answer_confidence": "yes"}] * NUM_ANSWERS


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if normalize_answer(answer).isdigit() else "other"


def _write_vqav2(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    """Two questions an image."""
    asked, answered = [], []
    for scene in scenes:
        rng = world.rng("vqav2", scene.index)
        for number in range(2):
            one = _ask_any(scene, rng, list(_STRUCTURE))
            ids = {"image_id": scene.index, "question_id": 1000 * scene.index + number}
            asked.append({**ids, "question": one.text})
            annotation = {
                "question_type": " ".join(one.text.split()[:2]),
                "multiple_choice_answer": normalize_answer(one.answer),
                "answers": [
                    {**given, "answer_id": i} for i, given in enumerate(_ten_answers(one.answer), start=1)
                ],
                "answer_type": _answer_type(one.answer),
            }
            answered.append({**ids, **annotation})
    about = {"data_type": "mscoco", "data_subtype": world.split}
    _dump(folder / "questions.json", {**about, "task_type": "Open-Ended", "questions": asked})
    _dump(folder / "annotations.json", {**about, "annotations": answered})
    return len(asked)


def _write_vizwiz(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    """One question an image; some are about what is not there."""
    entries = []
    for scene in scenes:
        rng = world.rng("vizwiz", scene.index)
        kinds = [UNANSWERABLE] if rng.random() < _UNANSWERABLE_SHARE else list(_STRUCTURE)
        one = _ask_any(scene, rng, kinds)
        answerable = one.kind != UNANSWERABLE
        entries.append(
            {
                "image": f"{_name(scene.index)}.png",
                "question": one.text,
                "answers": _ten_answers(one.answer),
                "answer_type": _answer_type(one.answer) if answerable else UNANSWERABLE,
                "answerable": int(answerable),
            }
        )
    _dump(folder / "annotations.json", entries)
    return len(entries)


def _write_gqa(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    """About every image one question of each kind that fits."""
    entries = {}
    for scene in scenes:
        for kind in QUESTION_KINDS:
            one = make_question(scene, world.rng(f"gqa/{kind}", scene.index), kind)
            if kind not in _STRUCTURE or one is None:
                continue
            structural, semantic = _STRUCTURE[kind]
            number = f"{scene.index}{QUESTION_KINDS.index(kind):02d}"
            entries[number] = {
                "question": one.text,
                "imageId": _name(scene.index),
                "answer": one.answer,
                "isBalanced": True,
                "types": {"structural": structural, "semantic": semantic, "detailed": kind},
                "entailed": [],
                "equivalent": [number],
            }
    _dump(folder / "questions.json", entries)
    return len(entries)


# --- yes or no ---


class _ClassCounts(NamedTuple):
    """How many training images a class is in, and two classes together."""

    single: Counter[str]
    together: Counter[tuple[str, str]]


@cache
def count_classes(config: WorldConfig) -> _ClassCounts:
    """Of the classes, and of their pairs in both orders, in the first scenes of the training split."""
    single: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for index in range(_NUM_OBSERVED):
        names = {group.class_name for group in make_scene(config, "train", index).groups}
        single.update(names)
        together.update((a, b) for a in names for b in names if a != b)
    return _ClassCounts(single, together)


def choose_absent(scene: Scene, kind: str, count: int, rng: random.Random) -> list[str]:
    """Classes to ask for that the scene does not have, by POPE's three rules.

    `random`: any; `popular`: the most frequent ones; `adversarial`: those most often seen with the scene's classes.
    Equally frequent ones come in a random order.
    """
    present = {group.class_name for group in scene.groups}
    absent = [name for name in scene.config.classes if name not in present]
    rng.shuffle(absent)
    counts = count_classes(scene.config)
    if kind == "popular":
        absent.sort(key=lambda name: -counts.single[name])
    elif kind == "adversarial":
        absent.sort(key=lambda name: -sum(counts.together[name, other] for other in present))
    return absent[:count]


def _write_pope(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    """As many questions about absent classes as about present ones, which are the same in the three files."""
    total = 0
    folder.mkdir(parents=True, exist_ok=True)
    for kind in POPE_FILES:
        lines = []
        for scene in scenes:
            present = [group.class_name for group in scene.groups][:_MAX_PER_IMAGE]
            absent = choose_absent(scene, kind, len(present), world.rng(f"pope/{kind}", scene.index))
            for name, label in [(n, "yes") for n in present] + [(n, "no") for n in absent]:
                text = f"is there {phrase(name)}?"
                image = f"{_name(scene.index)}.png"
                lines.append({"question_id": len(lines) + 1, "image": image, "text": text, "label": label})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"pope_{kind}.json").write_text(text, encoding="utf-8")
        total += len(lines)
    return total


def _mme_pair(scene: Scene, category: str, rng: random.Random) -> list[tuple[str, str]] | None:
    """A question with the answer yes and a similar one with no; None if the scene does not fit the category."""
    if category == "existence":
        absent = rng.choice(choose_absent(scene, "random", len(scene.config.classes), rng))
        asked = [rng.choice(scene.groups).class_name, absent]
        return list(zip((f"is there {phrase(name)}?" for name in asked), ("Yes", "No"), strict=True))
    kinds = {"count": "exists_count", "position": "relation", "color": "exists_color"}
    return _ask_both_ways(scene, kinds[category], rng)


def _ask_both_ways(scene: Scene, kind: str, rng: random.Random) -> list[tuple[str, str]] | None:
    found: dict[str, str] = {}
    for _ in range(100):
        one = make_question(scene, rng, kind)
        if one is None:
            return None
        found.setdefault(one.answer, one.text)
        if len(found) == 2:
            return [(found["yes"], "Yes"), (found["no"], "No")]
    return None


def _write_mme(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    """Two questions an image; in each category a quarter as many images as there are scenes, if so many fit."""
    total = 0
    for category in COARSE:
        (folder / category).mkdir(parents=True, exist_ok=True)
        for scene, pair in islice(_mme_pairs(world, scenes, category), max(len(scenes) // 4, 1)):
            name = _name(scene.index)
            lines = "".join(f"{text}\t{answer}\n" for text, answer in pair)
            (folder / category / f"{name}.txt").write_text(lines, encoding="utf-8")
            shutil.copyfile(folder.parent / "images" / f"{name}.png", folder / category / f"{name}.png")
            total += len(pair)
    return total


def _mme_pairs(
    world: WorldSplit, scenes: list[Scene], category: str
) -> Iterator[tuple[Scene, list[tuple[str, str]]]]:
    for scene in scenes:
        pair = _mme_pair(scene, category, world.rng(f"mme/{category}", scene.index))
        if pair is not None:
            yield scene, pair


# --- captions and prompts ---


def _write_captions(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    """Up to five right captions an image, of all its wordings."""
    images, annotations = [], []
    side = world.config.size
    for scene in scenes:
        file = {"file_name": f"{_name(scene.index)}.png", "width": side, "height": side}
        images.append({"id": scene.index, **file})
        wordings = list_captions(scene)
        rng = world.rng("caption", scene.index)
        for text in rng.sample(wordings, min(NUM_REFERENCES, len(wordings))):
            annotations.append({"id": len(annotations), "image_id": scene.index, "caption": text})
    _dump(folder / "captions.json", {"images": images, "annotations": annotations})
    return len(images)


def _write_geneval(folder: Path, world: WorldSplit, scenes: list[Scene]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    prompts = make_prompts(world.config, world.num_prompts, split=world.split, seed=world.seed)
    lines = "".join(json.dumps(prompt.to_json()) + "\n" for prompt in prompts)
    (folder / "evaluation_metadata.jsonl").write_text(lines, encoding="utf-8")
    return len(prompts)


_WRITERS: dict[str, Callable[[Path, WorldSplit, list[Scene]], int]] = {
    "vqav2": _write_vqav2,
    "vizwiz": _write_vizwiz,
    "gqa": _write_gqa,
    "pope": _write_pope,
    "mme": _write_mme,
    "caption": _write_captions,
    "geneval": _write_geneval,
}
