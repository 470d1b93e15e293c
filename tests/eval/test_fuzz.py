"""Official files with anything in any place: they are read, or refused in one line."""

import json
import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ddit.eval.captioning import read_captions, score_captions
from ddit.eval.geneval import WorldJudge, read_prompts, unknown_names, write_metadata
from ddit.eval.vqa import read_gqa, read_vizwiz, read_vqav2, score_gqa, score_vizwiz, score_vqav2
from ddit.eval.world_tasks import WorldSplit, write_eval_data
from ddit.eval.yesno import read_mme, read_pope, score_mme, score_pope
from ddit.world import PRESETS

ODD = (
    None, True, False, 0, -1, 1.5, 1e300, float("nan"), 10**30, "", " ", "\ud800", "\u2028", "a\0b", "../..",
    "x" * 5000, [], {}, [None], [[]], [{}], {"answer": 1}, {"class": "dog"},
)  # fmt: skip


TRIES = int(os.environ.get("DDIT_FUZZ_TRIES", "300"))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def spoil(data: bytes, rng: random.Random) -> bytes:
    """One to three odd values or missing keys in the JSON; or, every third time, other bytes."""
    lines = [json.loads(line) for line in data.split(b"\n") if line.strip()]
    if rng.random() < 0.3:
        spoiled = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        return bytes(spoiled)[: rng.randint(1, len(spoiled)) if rng.random() < 0.2 else None]
    for _ in range(rng.randint(1, 3)):
        if found := list(places(lines)):
            container, key = rng.choice(found)
            if rng.random() < 0.3 and isinstance(container, dict):
                del container[key]
            else:
                container[key] = deepcopy(rng.choice(ODD))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def use_prompts(folder: Path) -> None:
    for index, prompt in enumerate(read_prompts(folder / "evaluation_metadata.jsonl")):
        unknown_names(WorldJudge(), prompt)
        write_metadata(folder / "out", index, prompt)


def use(read: Callable, score: Callable) -> Callable[[Path], None]:
    def read_and_score(folder: Path) -> None:
        items = read(folder).items
        score(items, ["yes"] * len(items))

    return read_and_score


USES = {
    "vqav2": use(read_vqav2, score_vqav2), "vizwiz": use(read_vizwiz, score_vizwiz), "gqa": use(read_gqa, score_gqa),
    "pope": use(read_pope, score_pope), "mme": use(read_mme, score_mme), "caption": use(read_captions, score_captions),
    "geneval": use_prompts,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", USES)
def test_a_spoiled_file_is_read_or_refused_in_one_line(tmp_path: Path, task: str) -> None:
    write_eval_data(tmp_path, WorldSplit(PRESETS["fixed"], num=3, num_prompts=1), [task])
    files = [
        path for path in sorted((tmp_path / task).rglob("*")) if path.suffix in (".json", ".jsonl", ".txt")
    ]
    rng, refusals = random.Random(task), []
    for _ in range(TRIES):
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(spoil(whole, rng) if path.suffix != ".txt" else spoil_text(whole, rng))
        try:
            USES[task](tmp_path / task)
        except ValueError as error:
            refusals.append(str(error))
        finally:
            path.write_bytes(whole)
    assert 0 < len(refusals) < TRIES
    assert [text for text in refusals if "\n" in text] == []


def spoil_text(data: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
    return bytes(spoiled)
