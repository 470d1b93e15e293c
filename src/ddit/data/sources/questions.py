"""Questions and answers in the forms of VQAv2 (a file of questions, one of annotations), VizWiz (one file) and easy-VQA
(a list of [question, answer, image])."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddit.config.data import QuestionsData
from ddit.data.digests import digest_all
from ddit.data.samples import CorruptSample, Sample, Turn
from ddit.data.sources.finding import find_file, find_folder
from ddit.data.sources.images import content_of, load_image, measure_all, measure_file
from ddit.data.sources.remote import AnyPath, is_url
from ddit.data.sources.sidecar import Arrays, cache_beside
from ddit.data.sources.texts import refuse_t2i

_PATTERNS = (
    "{image_id}.png", "{image_id}.jpg", "{image_id:012d}.jpg", "COCO_val2014_{image_id:012d}.jpg",
    "COCO_test2015_{image_id:012d}.jpg",
)  # fmt: skip
"""Usual names of images, which are tried where they are not said."""


class QuestionsSource:
    """One question a sample; its answer is that of one of the people who answered, chosen at random.

    The entries are held as packed JSON: a list of Python objects would be ten times as large, and would be copied
    by every process that loads.
    """

    def __init__(self, cfg: QuestionsData) -> None:
        self.cfg = cfg
        self.path = find_file(cfg.questions)
        self.images = find_folder(cfg.images, cfg.questions)
        _check_pattern(cfg.image_pattern)
        packed = [json.dumps(entry).encode() for entry in _entries(self.path, cfg.annotations)]
        self._ends = np.cumsum([0, *map(len, packed)])
        self._packed = b"".join(packed)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        name = self.name(index)
        if not i2t:
            refuse_t2i(name)
        image_id, question, answers = self._entry(index)
        if not isinstance(question, str) or not question.strip():
            raise CorruptSample("no question", name)
        if not answers:
            raise CorruptSample("no answer", f"{name}: {question}")
        turn = Turn(question.strip(), rng.choice(answers))
        image = load_image(self._find_image(image_id, name)) if with_image else None
        return Sample(image, None, (turn,), short_answers=True, unanswerable=self.cfg.unanswerable)

    def answers(self, index: int) -> list[str]:
        """All the people's answers to a question."""
        return self._entry(index)[2]

    def sizes(self) -> np.ndarray:
        def measure(images: list[Any]) -> np.ndarray:
            return measure_all(lambda i: self._size(images[i]), range(len(images)))

        return self._of_images("sizes", measure)

    def digests(self) -> np.ndarray:
        def hash_images(images: list[Any]) -> np.ndarray:
            return digest_all(
                lambda i: content_of(self._find_image(images[i], "")),
                lambda i: json.dumps(images[i]),
                range(len(images)),
            )

        return self._of_images("digests", hash_images)

    def _of_images(self, what: str, compute: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        """What `compute` gives of the distinct images, for every question; cached beside the file."""

        def build() -> Arrays:
            images = [json.dumps(self._entry(index)[0]) for index in range(len(self))]
            distinct, inverse = np.unique(images, return_inverse=True)  # several questions share an image
            return {what: compute([json.loads(image) for image in distinct])[inverse]}

        settings = f"{self.images}/{self.cfg.image_pattern}"
        return cache_beside(self.path, what, build, settings=settings)[what]

    def _entry(self, index: int) -> tuple[Any, Any, list[str]]:
        return json.loads(self._packed[self._ends[index] : self._ends[index + 1]])

    def _size(self, image_id: Any) -> tuple[int, int]:
        try:
            return measure_file(self._find_image(image_id, ""))
        except CorruptSample:
            return 0, 0

    def _find_image(self, image_id: Any, name: str) -> AnyPath:
        file = _file_name(image_id, self.cfg.image_pattern)
        if file is None:
            raise CorruptSample("no image", f"{name}: no file name can be made of {image_id!r}")
        return self.images / file


def locate_images(cfg: QuestionsData) -> QuestionsData:
    """With the folder and the pattern of the images' names, if those that are set do not lead to the first question's
    image and other usual ones do."""
    if is_url(cfg.questions):
        return cfg
    path, folder = find_file(cfg.questions), find_folder(cfg.images, cfg.questions)
    asked = _list(_load(path), "questions", path)
    if not asked or not isinstance(folder, Path):
        return cfg
    for images in (folder, folder / "images"):
        for pattern in (cfg.image_pattern, *_PATTERNS):
            file = _file_name(_image(asked[0]), pattern)
            if file is not None and (images / file).is_file():
                is_same = (images, pattern) == (folder, cfg.image_pattern)
                return cfg if is_same else replace(cfg, images=str(images), image_pattern=pattern)
    return cfg


def _image(entry: dict[str, Any]) -> Any:
    """[file name], or the image's id."""
    return [entry["image"]] if entry.get("image") else entry.get("image_id")


def _file_name(image: Any, pattern: str) -> str | None:
    """The image's file: named in full (VizWiz), or by its id; None if no name can be made of it."""
    try:
        found = image[0] if isinstance(image, list) else pattern.format(image_id=image)
    except (ValueError, TypeError, IndexError):
        return None
    return found if isinstance(found, str) else None


def _check_pattern(pattern: str) -> None:
    try:
        made = {pattern.format(image_id=number) for number in (1, 2)}
    except (KeyError, IndexError, ValueError):
        made = set()
    if len(made) < 2:
        raise ValueError(
            f"image_pattern must hold {{image_id}}, as in 'train_{{image_id:012d}}.jpg', got {pattern!r}"
        )


def _entries(path: Path, annotations: str) -> list[tuple[Any, Any, list[str]]]:
    """Image ([file name] or its id), question and answers of every entry."""
    asked = _load(path)
    answered: dict[Any, Any] = {}
    if not isinstance(asked, list):
        if not annotations:
            raise ValueError(f"'{path}' holds questions alone: set annotations to the file of their answers")
        found = _load(find_file(annotations))
        answered = {_id(item): item.get("answers") for item in _list(found, "annotations", annotations)}
    entries = []
    for item in _list(asked, "questions", path):
        answers = answered.get(_id(item), item.get("answers"))
        entries.append((_image(item), item.get("question"), _answers(answers)))
    return entries


def _id(item: dict[str, Any]) -> Any:
    """The question's number or name; something of its own where there is none, so that it fits no other."""
    found = item.get("question_id")
    return found if isinstance(found, int | str) else object()


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not whole JSON: {error}") from None


def _list(found: Any, key: str, path: str | Path) -> list[dict[str, Any]]:
    entries: Any = found.get(key) if isinstance(found, dict) else found
    if isinstance(entries, list):
        entries = [
            _named(entry) if isinstance(entry, list) and len(entry) == 3 else entry for entry in entries
        ]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"'{path}' has no list of objects under {key!r}: give files in the form of VQAv2")
    return entries


def _named(entry: list[Any]) -> dict[str, Any]:
    """Of an entry [question, answer, image id or file]."""
    question, answer, image = entry
    key = "image" if isinstance(image, str) else "image_id"
    return {"question": question, "answers": [answer], key: image}


def _answers(found: Any) -> list[str]:
    if not isinstance(found, list):
        return []
    texts = [item.get("answer") if isinstance(item, dict) else item for item in found]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]
