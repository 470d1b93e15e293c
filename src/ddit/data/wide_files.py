"""The wide world as files to look at: images, and a line of truth each, with texts of every sort."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ddit.world.wide import (
    WIDE_QUESTION_KINDS,
    Part,
    WideConfig,
    WideScene,
    make_caption,
    make_description,
    make_dialogue,
    make_prompt,
    make_question,
    make_scene,
    render,
)

NUM_PROMPTS = 3


def write_wide_world(
    folder: Path,
    config: WideConfig,
    split: str,
    num: int,
    *,
    seed: int = 0,
    part: Part = "all",
    on_scene: Callable[[], Any] = lambda: None,
) -> Path:
    """Writes `num` scenes as PNG, and scenes.jsonl, whose path it returns.

    A line has objects, ground, prompts, a caption, a detailed description, a question of each kind that fits, and a
    conversation, in wordings of a part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scenes.jsonl"
    with path.open("w", encoding="utf-8") as truth:
        for index in range(num):
            scene = make_scene(config, split, index, seed=seed)
            name = f"{index:0{max(4, len(str(num - 1)))}d}.png"
            Image.fromarray(render(scene)).save(folder / name)
            texts = _texts(scene, random.Random(f"{seed}/{split}/{index}"), part)
            truth.write(json.dumps({"image": name, **scene.to_json(), **texts}) + "\n")
            on_scene()
    return path


def _texts(scene: WideScene, rng: random.Random, part: Part) -> dict[str, Any]:
    asked = [make_question(scene, rng, kind, part=part) for kind in WIDE_QUESTION_KINDS]
    return {
        "prompts": [make_prompt(scene, rng, part=part).text for _ in range(NUM_PROMPTS)],
        "caption": make_caption(scene, rng, part=part),
        "description": make_description(scene, rng, part=part),
        "questions": [
            {"question": q.text, "answer": q.answer, "kind": q.kind} for q in asked if q is not None
        ],
        "conversation": [
            {"question": t.text, "answer": t.reply} for t in make_dialogue(scene, rng, part=part)
        ],
    }
