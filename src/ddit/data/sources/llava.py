"""Conversations in LLaVA's JSON form."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from ddit.config.data import LlavaData
from ddit.data.samples import CorruptSample, Sample, Turn
from ddit.data.sources.finding import find_folder
from ddit.data.sources.images import load_image, measure_file
from ddit.data.sources.json_list import digest_records, get_image_path, get_stated_size, measure_records
from ddit.data.sources.records import Records
from ddit.data.sources.remote import AnyPath
from ddit.data.sources.texts import refuse_t2i

IMAGE_TAG = "<image>"
_OTHER_TAGS = ("<video>", "<audio>")
_MEDIA_KEYS = ("image", "images", "image_path", "image_paths", "video", "videos", "audio", "audios")
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")


class LlavaSource:
    """All turns of a conversation in order. An entry is text alone if it names no image and its text has no tag."""

    def __init__(self, cfg: LlavaData) -> None:
        self.cfg = cfg
        self.records = Records(cfg.path)
        self.images = find_folder(cfg.images, cfg.path)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return self.records.name(index)

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        name = self.name(index)
        if not i2t:
            refuse_t2i(name)
        entry = self.records[index]
        turns = parse_conversation(entry.get("conversations"), name)
        path = self._image_path(entry, name)
        return Sample(load_image(path) if path is not None and with_image else None, None, turns)

    def sizes(self) -> np.ndarray:
        return measure_records(self.records, self._size, f"{self.images}/{self.cfg.image_key}")

    def digests(self) -> np.ndarray:
        return digest_records(self.records, self._image_path, f"{self.images}/{self.cfg.image_key}")

    def _size(self, index: int) -> tuple[int, int]:
        try:
            entry = self.records[index]
            path = self._image_path(entry, "")
            return (0, 0) if path is None else get_stated_size(entry) or measure_file(path)
        except CorruptSample:
            return 0, 0

    def _image_path(self, entry: dict[str, Any], name: str) -> AnyPath | None:
        """The image's file, or None for text alone.

        Raises:
            CorruptSample: "no image": the entry has none, but a tag for it or other media; "several images".
        """
        key = self.cfg.image_key
        if entry.get(key):
            return self.images / get_image_path(entry, key, name)
        media = [other for other in _MEDIA_KEYS if entry.get(other)]
        if media or _has_tag(entry.get("conversations")):
            found = f"but {' and '.join(media)}" if media else f"but a text with {IMAGE_TAG}"
            raise CorruptSample("no image", f"{name}: nothing under {key}, {found}")
        return None


def _has_tag(conversation: Any) -> bool:
    """Whether a message, other than the model's, has a tag for an image, video or sound."""
    items = conversation if isinstance(conversation, list) else []
    messages = [item for item in items if isinstance(item, dict)]
    asked = [str(item.get("value")) for item in messages if item.get("from") not in MODEL]
    return any(tag in text for text in asked for tag in (IMAGE_TAG, *_OTHER_TAGS))


def parse_conversation(conversation: Any, name: str) -> tuple[Turn, ...]:
    """Questions with their answers, without the image's tag; messages of the system are left out.

    A human message that is the tag alone is a caption: a turn without a question.

    Raises:
        CorruptSample: "bad conversation": empty, or people and model do not take turns.
    """
    if not isinstance(conversation, list):
        raise CorruptSample("bad conversation", f"{name}: no list under conversations")
    messages = [_message(item, name) for item in conversation]
    messages = [(role, text) for role, text in messages if role != "system"]
    roles = [role for role, _ in messages]
    if not messages or len(messages) % 2 or any(r not in HUMAN for r in roles[::2]):
        raise CorruptSample("bad conversation", f"{name}: people and model do not take turns")
    if any(role not in MODEL for role in roles[1::2]) or not all(text for _, text in messages[1::2]):
        raise CorruptSample("bad conversation", f"{name}: a question has no answer")
    return tuple(
        Turn(asked or None, said) for (_, asked), (_, said) in zip(messages[::2], messages[1::2], strict=True)
    )


def _message(item: Any, name: str) -> tuple[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise CorruptSample("bad conversation", f"{name}: a message without from and value")
    return str(item.get("from")), item["value"].replace(IMAGE_TAG, "").strip()
