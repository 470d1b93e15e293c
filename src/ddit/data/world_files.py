"""The small world as raw training files, in the common forms of training data."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ddit.images import upscale_image
from ddit.world import (
    CLASSES,
    COLORS,
    QUESTION_KINDS,
    Scene,
    WorldConfig,
    list_captions,
    make_caption,
    make_question,
    make_scene,
    render,
)
from ddit.world.captions import NUMBERS, phrase

SHARD_SIZE = 1000
NUM_ANSWERS = 10
TEXT_ONLY_SHARE = 0.1

Advance = Callable[[], Any]


@dataclass(frozen=True)
class WorldScenes:
    """`num` scenes of a split, rendered `upscale` times as large, as PNG or JPEG."""

    config: WorldConfig
    split: str
    num: int
    seed: int = 0
    upscale: int = 1
    jpeg: bool = False

    @property
    def suffix(self) -> str:
        return "jpg" if self.jpeg else "png"

    def __iter__(self) -> Iterator[tuple[int, Scene, random.Random]]:
        """Index, scene, and the generator of its texts."""
        for index in range(self.num):
            scene = make_scene(self.config, self.split, index, seed=self.seed)
            yield index, scene, random.Random(f"{self.seed}/{self.split}/{index}")

    def encode(self, scene: Scene) -> bytes:
        """The scene as a PNG or JPEG file."""
        buffer = io.BytesIO()
        image = upscale_image(Image.fromarray(render(scene)), self.upscale)
        image.save(
            buffer,
            **({"format": "JPEG", "quality": 95, "subsampling": 0} if self.jpeg else {"format": "PNG"}),
        )
        return buffer.getvalue()

    def name(self, index: int) -> str:
        return f"{index:0{max(4, len(str(self.num - 1)))}d}.{self.suffix}"

    def side(self) -> int:
        return self.config.size * self.upscale


def write_world(folder: Path, scenes: WorldScenes, form: str, *, on_scene: Advance = lambda: None) -> Path:
    """Writes the scenes in one of `FORMS` and returns the file or folder that names the data."""
    folder.mkdir(parents=True, exist_ok=True)
    return FORMS[form](folder, scenes, on_scene)


def _write_scenes(folder: Path, scenes: WorldScenes, on_scene: Advance) -> Path:
    """Images, and a line of truth each: objects, every caption, and one question of each kind that fits."""
    path = folder / "scenes.jsonl"
    with path.open("w", encoding="utf-8") as truth:
        for index, scene, rng in scenes:
            (folder / scenes.name(index)).write_bytes(scenes.encode(scene))
            asked = [make_question(scene, rng, kind) for kind in QUESTION_KINDS]
            questions = [
                {"question": q.text, "answer": q.answer, "kind": q.kind} for q in asked if q is not None
            ]
            line = {
                "image": scenes.name(index),
                **scene.to_json(),
                "captions": list_captions(scene),
                "questions": questions,
            }
            truth.write(json.dumps(line) + "\n")
            on_scene()
    return path


def _captions(scenes: WorldScenes, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """The published form's keys: a short original caption, a complete one, and the image's size."""
    texts = {"caption": make_caption(scene, rng, complete=False), "re_caption": make_caption(scene, rng)}
    return {**texts, "width": scenes.side(), "height": scenes.side()}


def _write_json(folder: Path, scenes: WorldScenes, on_scene: Advance) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    entries = []
    for index, scene, rng in scenes:
        name = f"images/{scenes.name(index)}"
        (folder / name).write_bytes(scenes.encode(scene))
        entries.append({"image_path": name, **_captions(scenes, scene, rng)})
        on_scene()
    return _dump(folder / "metadata.json", entries)


def _write_tar(folder: Path, scenes: WorldScenes, on_scene: Advance) -> Path:
    """Shards as img2dataset writes them: image, original caption and metadata of each sample."""
    shard: tarfile.TarFile | None = None
    try:
        for index, scene, rng in scenes:
            number, place = divmod(index, SHARD_SIZE)
            if place == 0:
                if shard is not None:
                    shard.close()
                shard = tarfile.open(folder / f"{number:05d}.tar", "w")  # noqa: SIM115
            assert shard is not None
            key, entry = f"{number:05d}{place:04d}", _captions(scenes, scene, rng)
            _add(shard, f"{key}.{scenes.suffix}", scenes.encode(scene))
            _add(shard, f"{key}.txt", entry["caption"].encode())
            _add(shard, f"{key}.json", json.dumps({"key": key, "status": "success", **entry}).encode())
            on_scene()
    finally:
        if shard is not None:
            shard.close()
    return folder


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def _write_llava(folder: Path, scenes: WorldScenes, on_scene: Advance) -> Path:
    """Conversations of two to four turns, some opened by a description, and some without an image."""
    (folder / "images").mkdir(exist_ok=True)
    entries = []
    for index, scene, rng in scenes:
        name = f"images/{scenes.name(index)}"
        (folder / name).write_bytes(scenes.encode(scene))
        turns = [("describe the picture.", make_caption(scene, rng))] if rng.random() < 0.5 else []
        turns += _distinct_questions(scene, rng, rng.randint(2, 4) - len(turns))
        entries.append({"id": f"{index:09d}", "image": name, "conversations": _messages(turns, IMAGE_TAG)})
        if rng.random() < TEXT_ONLY_SHARE:
            turns = [_text_question(rng) for _ in range(rng.randint(1, 3))]
            entries.append({"id": f"text-{index:09d}", "conversations": _messages(turns, "")})
        on_scene()
    return _dump(folder / "conversations.json", entries)


IMAGE_TAG = "<image>\n"


def _messages(turns: list[tuple[str, str]], tag: str) -> list[dict[str, str]]:
    messages = []
    for i, (asked, answered) in enumerate(turns):
        messages.append({"from": "human", "value": asked if i else tag + asked})
        messages.append({"from": "gpt", "value": answered})
    return messages


def _distinct_questions(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    while len(found) < count:
        asked = make_question(scene, rng)
        assert asked is not None, "without a kind there is always a question"
        found[asked.text] = asked.answer
    return list(found.items())


def _text_question(rng: random.Random) -> tuple[str, str]:
    """A question that needs no image, in the world's own words: a sum, or whether a red dog is a dog."""
    if rng.random() < 0.5:
        total = rng.randrange(len(NUMBERS))
        first = rng.randint(0, total)
        return f"how many are {NUMBERS[first]} and {NUMBERS[total - first]}?", NUMBERS[total]
    name, color = rng.choice(CLASSES), rng.choice(COLORS)
    other = name if rng.random() < 0.5 else rng.choice([c for c in CLASSES if c != name])
    return f"is {phrase(name, color)} {phrase(other)}?", "yes" if other == name else "no"


def _write_questions(folder: Path, scenes: WorldScenes, on_scene: Advance) -> Path:
    """VQAv2's pair of files: two questions an image, ten answers a question, of which one may have other words."""
    (folder / "images").mkdir(exist_ok=True)
    asked, answered = [], []
    scenes = replace(scenes, jpeg=True)
    for index, scene, rng in scenes:
        name = f"COCO_train2014_{index:012d}.jpg"
        (folder / "images" / name).write_bytes(scenes.encode(scene))
        for number, (text, answer) in enumerate(_distinct_questions(scene, rng, 2)):
            ids = {"image_id": index, "question_id": index * 1000 + number}
            asked.append({**ids, "question": text})
            answers = [answer] * NUM_ANSWERS
            if answer in CLASSES:
                answers[rng.randrange(NUM_ANSWERS)] = phrase(answer)
            listed = [
                {"answer": text, "answer_confidence": "yes", "answer_id": i + 1}
                for i, text in enumerate(answers)
            ]
            answered.append({**ids, "multiple_choice_answer": answer, "answers": listed})
        on_scene()
    _dump(folder / "annotations.json", {"data_subtype": "train", "annotations": answered})
    return _dump(folder / "questions.json", {"data_subtype": "train", "questions": asked})


def _write_parquet(folder: Path, scenes: WorldScenes, on_scene: Advance) -> Path:
    """One file of the `datasets` library's layout: encoded images and their complete captions."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError("parquet needs the datasets library: pip install 'ddit[data]'") from None
    images, texts = [], []
    for index, scene, rng in scenes:
        images.append({"bytes": scenes.encode(scene), "path": scenes.name(index)})
        texts.append(make_caption(scene, rng))
        on_scene()
    encoded = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    table = arrow.table(
        {"image": arrow.array(images, encoded), "caption": arrow.array(texts, arrow.string())}
    )
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


def _dump(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    return path


FORMS: dict[str, Callable[[Path, WorldScenes, Advance], Path]] = {
    "scenes": _write_scenes,
    "json": _write_json,
    "tar": _write_tar,
    "llava": _write_llava,
    "questions": _write_questions,
    "parquet": _write_parquet,
}
