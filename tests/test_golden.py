"""What the package gives, as it was recorded: a net under changes that are to change nothing.

A case is a function that drives the package and returns what it gave: texts, tokens and counts, which must come out
again exactly; numbers, to 1e-3; tensors and pictures as a digest (`Seen`) of shape, five numbers to 1e-3, and the hash
of their bytes. On a machine like the one a case was recorded on (`machine`) hashes and numbers must be equal, too.

Recorded with version 0.1, whose order "first-hitting" is today's "random" (0.1's own "random" was the same law with
empty steps). After a refactoring only the calls in the cases need to be adapted. Where results are to change, record
them again and say so in the commit: `PYTHONPATH=. python tests/test_golden.py --record [CASE ...]` (none: all).
One case: `pytest tests/test_golden.py -m "slow or not slow" -k 'again[caption_orders]'`.
"""

import atexit
import hashlib
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from servers import ask, decoded, encoded, with_client
from stepping import make_trainer, take_steps
from tiny_models import tiny_pipeline
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.reading_error import measure_error
from ddit.cli import app
from ddit.config.runs import TEACHER_FILE, DualRun, save_config
from ddit.diffusion.flow import num_evaluations, sampling_times
from ddit.inference.batching import Step
from ddit.inference.editing import box_mask
from ddit.inference.scoring import Score
from ddit.model.familiarity import Familiarity
from ddit.pipeline import Pipeline
from ddit.recipes import build
from ddit.serve.api import create_app
from ddit.settings import ORDERS, ImageSampling
from ddit.train.stages import run_stage
from ddit.world import (
    PRESETS,
    QUESTION_KINDS,
    list_captions,
    make_prompts,
    make_question,
    make_scene,
    render,
)
from ddit.world.detector import DetectorNet, detect

HERE = Path(__file__).parent
FILE = HERE / "golden.json"
TOLERANCE = 1e-3
LIKENESS = "single objects: "
"""Of figures that `ddit eval geneval` has beside GenEval's."""

CASES: dict[str, Callable[[], dict[str, Any]]] = {}
SLOW: set[str] = set()


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


def slow(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    SLOW.add(function.__name__)
    return function


# --- digests ---


class Seen(NamedTuple):
    """A tensor: shape, hash of its bytes, and mean, deviation and three projections on fixed random vectors."""

    shape: list[int]
    sha256: str
    numbers: list[float]


def seen(*arrays: Any) -> dict[str, Any]:
    """The digest of tensors, arrays and pictures; of several, as one of them end to end."""
    parts = [array.numpy() if isinstance(array, Tensor) else np.asarray(array) for array in arrays]
    raw = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    scaled = [part / 255 if part.dtype == np.uint8 else part for part in parts]
    flat = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in scaled])
    vectors = np.random.default_rng(0).standard_normal((3, flat.size)) / math.sqrt(flat.size)
    numbers = [flat.mean(), flat.std(), *(float((vector * flat).sum()) for vector in vectors)]
    shape = list(parts[0].shape) if len(parts) == 1 else [len(parts), *parts[0].shape]
    rounded = [float(f"{number:.6g}") for number in numbers]
    return Seen(shape, hashlib.sha256(raw).hexdigest(), rounded)._asdict()


def seen_file(path: Path) -> dict[str, Any]:
    """The digest of a file of tensors, and its names and shapes."""
    tensors = dict(sorted(load_file(path).items()))
    shapes = json.dumps({name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()})
    listing = {"count": len(tensors), "names": hashlib.sha256(shapes.encode()).hexdigest()}
    raw = hashlib.sha256()
    for tensor in tensors.values():
        raw.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    values = seen(torch.cat([tensor.flatten().double() for tensor in tensors.values()]))
    return {**listing, "values": {**values, "sha256": raw.hexdigest()}}


def machine() -> str:
    """What rounds alike: another processor may add up in another order, even with the same instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}, {name}"
    )


def differences(found: Any, expected: Any, *, exact: bool, place: str) -> Iterator[str]:
    """One line for each place where what was found is not what was recorded."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            yield f"{place} has {sorted(found.keys() ^ expected.keys())} on one side only"
        for name in found.keys() & expected.keys():
            if name != "sha256":
                yield from differences(found[name], expected[name], exact=exact, place=f"{place}.{name}")
            elif exact and found[name] != expected[name]:
                yield f"{place} has other bytes"
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, exact=exact, place=f"{place}[{number}]")
    elif isinstance(expected, float) and isinstance(found, float):
        is_close = found == expected or abs(found - expected) <= TOLERANCE * (1 + abs(expected))
        if (exact and found != expected) or not is_close:
            yield f"{place} is {found!r}, was {expected!r}" + (" (close)" if is_close else "")
    elif found != expected:
        yield f"{place} is {found!r}, was {expected!r}"


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(name: str) -> dict[str, Any]:
    """What a case gives, in the form in which it is stored."""
    with one_thread(), pytest.MonkeyPatch.context() as patched:
        # 0.1 did not warn of images from elsewhere, which the cases show it
        patched.setattr(Familiarity, "load", classmethod(lambda cls, folder: None))
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        return json.loads(json.dumps(CASES[name]()))


# --- what the cases work on ---


@cache
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini", device="cpu", dtype="float32")


@cache
def joint_model() -> Pipeline:
    """A model whose image side sees the text, unlike mini's."""
    return tiny_pipeline()


@cache
def picture(number: int) -> Image.Image:
    return Image.fromarray(render(make_scene(PRESETS["fixed"], "test", number)))


@cache
def noise(side: int = 64) -> Image.Image:
    """A picture of which nothing can be said: the model is unsure what to write."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8))


def pictures() -> list[Image.Image]:
    return [picture(0), picture(1), picture(2), picture(3), noise()]


PROMPTS = ["a photo of a red dog", "two blue cars", "a green cup above a yellow cat"]
QUESTIONS = [
    "what color is the dog?",
    "is there a cat?",
    "how many cars are there?",
    "what is in the picture?",
    "are there two dogs?",
]


@cache
def scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="golden-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def file_of(number: int) -> Path:
    path = scratch() / f"picture-{number}.png"
    picture(number).save(path)
    return path


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


# --- drawing ---


def drawn(verb: str, *given: Any, model: Pipeline | None = None, **options: Any) -> dict[str, Any]:
    """What a verb drew: the pictures, and the latents and clean latents after every step."""
    trace: list[Tensor] = []
    steps: list[list[int]] = []

    def step(now: Step) -> None:
        trace.extend((now.state.latents.clone(), now.state.clean.clone()))
        steps.append([now.done, now.total, *now.rows])

    images = getattr(model or mini(), verb)(*given, on_step=step, **options)
    last = trace[-2]  # of the last batch
    return {
        "images": seen(*images),
        "size": list(images[0].size),
        "latents": seen(last),
        "trace": seen(*trace),
        "steps": [len(steps), steps[0], steps[-1]],
    }


@case
def generate_by_the_models_settings() -> dict[str, Any]:
    return {
        "one": drawn("generate", PROMPTS[0]),
        "three": drawn("generate", PROMPTS, seed=7),
        "seeds": drawn("generate", PROMPTS, seed=[5, 1, 3], batch_size=2, num_steps=4),
        "negative": drawn("generate", PROMPTS, negative_prompt="a photo of a blue car", num_steps=4),
        "negatives": drawn("generate", PROMPTS, negative_prompt=PROMPTS[::-1], num_steps=4),
        "unguided": drawn("generate", PROMPTS, guidance_scale=1.0, num_steps=4),
    }


@case
def generate_by_each_sampler() -> dict[str, Any]:
    found = {name: drawn("generate", PROMPTS[:2], sampler=name) for name in ("euler", "dpm", "adams")}
    found["paper"] = drawn("generate", PROMPTS[:2], sampler="paper", num_steps=12)
    return {**found, "paper_whole": drawn("generate", PROMPTS[0], sampler="paper", seed=2)}


@case
def generate_by_draw_configs() -> dict[str, Any]:
    configs = {
        f"{sampler}_{name}": {"num_steps": 6, "guidance_scale": 3.0, "sampler": sampler, **changes}
        for sampler in ("euler", "dpm", "adams")
        for name, changes in {
            "interval": {"guidance_interval": (0.3, 0.9)},
            "rescale": {"guidance_rescale": 0.7},
            "shift": {"shift": 1.5},
            "all": {"shift": 5.0, "guidance_interval": (0.1, 0.8), "guidance_rescale": 0.3},
        }.items()
    }
    found = {name: drawn("generate", PROMPTS[:2], seed=1, **given) for name, given in configs.items()}
    samplings = {name: ImageSampling(**given) for name, given in configs.items()}
    times = {name: [num_evaluations(cfg), *sampling_times(cfg).tolist()] for name, cfg in samplings.items()}
    return {"drawn": found, "times": times}


@case
def generate_at_other_sizes() -> dict[str, Any]:
    by_size = {"num_steps": 4, "guidance_scale": 2.0, "sampler": "dpm", "shift_by_size": True}
    return {
        "wide": drawn("generate", PROMPTS[:2], height=48, width=96, num_steps=4),
        "large": drawn("generate", PROMPTS[:2], height=128, width=128, num_steps=4),
        "shift_by_size": drawn("generate", PROMPTS[:2], height=96, width=128, **by_size),
        "joint": drawn("generate", ["a red dog", "a cat"], model=joint_model(), height=16, width=32),
    }


@case
def generate_best_of_two() -> dict[str, Any]:
    return {
        "best": drawn("generate", PROMPTS, best_of=2, num_steps=3, seed=4),
        "seeds": drawn("generate", PROMPTS[:2], best_of=3, num_steps=2, seed=[9, 2], negative_prompt=PROMPTS[:2]),
    }  # fmt: skip


@case
def inpaint_and_vary() -> dict[str, Any]:
    mask, other = box_mask((64, 64), (0, 0, 32, 64)), box_mask((64, 64), (10, 20, 50, 47))
    large = picture(0).resize((160, 120))
    return {
        "inpaint": drawn("inpaint", picture(0), mask, PROMPTS, seed=3),
        "masks": drawn("inpaint", [picture(0), picture(1)], [mask, other], PROMPTS[0], sampler="adams"),
        "cropped": drawn("inpaint", large, box_mask((160, 120), (60, 30, 100, 90)), PROMPTS[1], sampler="euler"),
        "vary": drawn("vary", [picture(0), picture(1), picture(0)], PROMPTS, seed=3),
        "vary_weak": drawn("vary", large, PROMPTS[:2], strength=0.3, sampler="euler", num_steps=5),
        "vary_whole": drawn("vary", picture(2), PROMPTS[2], strength=1.0, height=48, width=96, num_steps=3),
    }  # fmt: skip


@case
def codecs_and_model() -> dict[str, Any]:
    """Latents of pictures and back, states of texts, and both heads of the transformer."""
    from ddit.images import to_tensor

    model = mini()
    with torch.inference_mode():
        latents = model.image_codec.encode(to_tensor(pictures()))
        ids = torch.tensor([[*model.text_codec.token_ids(text), *[1] * 16][:16] for text in PROMPTS])
        states = model.text_codec.states(ids)
        out = model.transformer(latents[:3], torch.tensor([0.4, 1.0, 0.0]), states, num_t2i=2)
        other = joint_model()
        small = torch.arange(3 * 12).reshape(3, 12) % 20
        mixed = other.transformer(
            torch.linspace(-1, 1, 3 * 4 * 64).reshape(3, 4, 8, 8),
            torch.tensor([0.2, 0.5, 0.0]),
            other.text_codec.states(small),
        )
    return {
        "latents": seen(latents),
        "decoded": seen(*model.decode(latents)),
        "ids": ids.tolist(),
        "texts": [model.text_codec.decode(row) for row in ids],
        "states": seen(states),
        "velocity": seen(out.velocity),
        "logits": seen(out.logits),
        "joint_velocity": seen(mixed.velocity),
        "joint_logits": seen(mixed.logits),
    }


# --- writing ---


def written(verb: str, *given: Any, model: Pipeline | None = None, **options: Any) -> dict[str, Any]:
    """What a verb wrote, with the tokens and their confidences after every pass."""
    ids: list[Tensor] = []
    sure: list[Tensor] = []
    steps: list[list[int]] = []

    def step(now: Step) -> None:
        ids.append(now.state.ids.clone())
        sure.append(now.state.confidence.clone())
        steps.append([now.done, now.total, *now.rows])

    texts = getattr(model or mini(), verb)(*given, on_step=step, **options)
    last = {row: tokens for (_, _, *rows), part in zip(steps, ids, strict=True)
            for row, tokens in zip(rows, part.tolist(), strict=True)}  # fmt: skip
    return {
        "texts": texts,
        "steps": [len(steps), steps[0], steps[-1]],
        "tokens": [last[row] for row in sorted(last)],
        "ids": seen(*ids),
        "confidence": seen(*sure),
    }


@case
def caption_by_the_models_settings() -> dict[str, Any]:
    many = [picture(number) for number in range(12)]
    looked = mini().encode_image(picture(3))
    return {
        "many": mini().caption(many, batch_size=5),
        "traced": written("caption", pictures()),
        "blind": written("caption", None, seed=3, temperature=1.0),
        "looked": mini().caption([looked, picture(1), looked], seed=[4, 5, 6], temperature=1.0),
        "small": mini().caption(pictures(), height=48, width=96),
    }


@case
def caption_orders() -> dict[str, Any]:
    """Each order, drawing and taking the likeliest."""
    return {
        f"{order}_{temperature:g}": written(
            "caption", pictures(), order=order, temperature=temperature, num_steps=6, seed=11
        )
        for order in ORDERS
        for temperature in (0.0, 1.0)
    }


@case
def caption_hot() -> dict[str, Any]:
    """Temperature and top-p, where the draws matter."""
    return {
        f"{order}_{top_p:g}": written(
            "caption", pictures(), order=order, temperature=2.5, top_p=top_p, num_steps=16, seed=5
        )
        for order in ("random", "confidence", "entropy")
        for top_p in (1.0, 0.7)
    }


@case
def caption_in_blocks() -> dict[str, Any]:
    return {
        f"{order}_{size}": written(
            "caption", pictures(), order=order, block_size=size, temperature=1.5, seed=2
        )
        for order in ORDERS
        for size in (3, 8)
    }


@case
def caption_options() -> dict[str, Any]:
    """Bounds, early commit, guidance, window, steps, refresh: each for itself, then together."""
    options: dict[str, dict[str, Any]] = {
        "threshold": {"order": "threshold", "threshold": 0.4},
        "entropy_bound": {"order": "entropy", "entropy_bound": 2.0},
        "commit": {"order": "confidence", "commit_above": 0.3},
        "commit_random": {"order": "random", "commit_above": 0.6, "temperature": 1.0},
        "guidance": {"text_guidance_scale": 2.5},
        "guidance_low": {"text_guidance_scale": 0.0, "order": "confidence", "temperature": 1.0},
        "length": {"length": 6},
        "long": {"length": 24, "temperature": 1.5},
        "steps": {"num_steps": 2},
        "text_refresh": {"order": "confidence", "text_refresh": 4, "temperature": 1.0},
        "text_refresh_never": {"order": "random", "text_refresh": 0, "temperature": 1.0},
        "image_refresh": {"order": "confidence", "image_refresh": 3},
        "together": {
            "order": "random",
            "temperature": 1.3,
            "top_p": 0.9,
            "block_size": 4,
            "commit_above": 0.95,
            "text_guidance_scale": 1.5,
            "text_refresh": 2,
            "length": 10,
            "batch_size": 2,
            "seed": [8, 6, 4, 2, 0],
        },
    }
    return {name: written("caption", pictures(), **given) for name, given in options.items()}


@case
def answers() -> dict[str, Any]:
    every = [mini().answer(picture(number), QUESTIONS) for number in range(4)]
    return {
        "every": every,
        "noise": written("answer", noise(), QUESTIONS, temperature=1.5, seed=3),
        "images": written("answer", pictures(), QUESTIONS[3], order="random", temperature=1.0, num_steps=4),
        "pairs": written("answer", pictures(), QUESTIONS, text_guidance_scale=2.0, order="margin", batch_size=3),
        "blind": written("answer", None, QUESTIONS, order="threshold", temperature=1.0),
        "short": written("answer", picture(1), QUESTIONS, length=3, seed=[1, 2, 3, 4, 5]),
        "blocks": written("answer", noise(), QUESTIONS, block_size=2, text_refresh=0, order="confidence"),
    }  # fmt: skip


@case
def infills() -> dict[str, Any]:
    texts = ["a photo of a ___ dog", "two __ __", "a __ above a ____", "__ __ __ __ __", "is there a __ cat?"]
    return {
        "pairs": written("infill", pictures(), texts),
        "one": written("infill", picture(2), texts, order="random", temperature=1.0, seed=9),
        "blind": written("infill", None, texts, temperature=1.0, top_p=0.8, num_steps=2),
        "short": written("infill", noise(), texts, length=1, text_guidance_scale=1.5, order="confidence"),
    }


@case
def a_joint_model_reads() -> dict[str, Any]:
    """A model of random weights whose image side sees the text: what is kept over passes is approximate."""
    shown, asked = (
        [noise(32), picture(0), picture(1)],
        ["is there a dog?", "what color is the cat?", "how many?"],
    )
    options: dict[str, dict[str, Any]] = {
        "own": {},
        "image_refresh": {"order": "confidence", "image_refresh": 2, "num_steps": 6},
        "image_refresh_never": {"order": "entropy", "image_refresh": 0, "block_size": 3, "num_steps": 6},
        "both": {"order": "random", "image_refresh": 3, "text_refresh": 2, "num_steps": 8},
        "guidance": {"order": "margin", "image_refresh": 2, "text_guidance_scale": 2.0, "num_steps": 5},
    }
    model = joint_model()
    captioned = {name: written("caption", shown, model=model, **given) for name, given in options.items()}
    answered = {name: written("answer", shown, asked[:2] + asked[:1], model=model, **given)
                for name, given in options.items()}  # fmt: skip
    return {"captions": captioned, "answers": answered}


@case
def reading_errors() -> dict[str, Any]:
    isolated = tiny_pipeline(image_attends_text=False)  # in blocks, as in mini, nothing is reused
    ours = measure_error(isolated, [noise(32)], order="confidence", text_refresh=4, temperature=1.0)
    asked = measure_error(isolated, noise(32), QUESTIONS[:2], order="random", text_refresh=0, num_steps=4)
    joint = measure_error(joint_model(), [noise(32), picture(0)], image_refresh=2, num_steps=6)
    return {"isolated": ours._asdict(), "asked": asked._asdict(), "joint": joint._asdict()}


# --- scoring ---


def scored(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [{**asdict(score), "per_token": score.per_token} for score in scores]


@case
def scores() -> dict[str, Any]:
    texts = [*PROMPTS, "a photo of a red umbrella", "three dogs and two cats and a blue car"]
    words = ["yes", "no", "two", "red", "a blue dog"]
    model = mini()
    return {
        "captions": scored(model.score(pictures(), texts)),
        "one_picture": scored(model.score(picture(2), texts, num_samples=8, seed=3, batch_size=7)),
        "null": scored(model.score(picture(1), texts, null_weight=0.8, num_samples=6)),
        "answers": scored(model.score(pictures(), words, questions=QUESTIONS)),
        "one_question": scored(model.score(noise(), words, questions=QUESTIONS[0], length=8)),
        "blind": scored(model.score(None, texts, num_samples=5)),
        "joint": scored(joint_model().score(noise(32), ["a red dog", "is there a cat"], num_samples=9)),
    }


@case
def choices() -> dict[str, Any]:
    texts = ["a red umbrella", "a blue dog", "two green cars", "a photo of a yellow cup above a red train"]
    model = mini()
    found = {
        "captions": model.choose(pictures(), texts),
        "per_token": model.choose(pictures()[:2], texts, per_token=True, num_samples=8),
        "answers": model.choose(pictures()[:2], ["yes", "no", "red", "two"], questions=QUESTIONS[:2]),
        "null": model.choose(picture(0), texts, null_weight=1.0, seed=5, num_samples=8),
        "blind": model.choose(None, ["yes", "no"], questions=QUESTIONS),
    }
    return {name: [asdict(choice) for choice in some] for name, some in found.items()}


# --- folders, world, int8 ---


@case
def a_saved_model() -> dict[str, Any]:
    folder = scratch() / "saved"
    mini().save_pretrained(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = [file for file in files if not file.endswith(".py")]  # for diffusers, which 0.1 did not write
    tensors = [file for file in files if file.endswith(".safetensors")]
    return {
        "files": files,
        "tensors": {file: seen_file(folder / file) for file in tensors},
        "settings": known_settings(folder),
        "transformer": json.loads((folder / "transformer" / "config.json").read_text()),
        "captions": Pipeline.from_pretrained(folder, device="cpu").caption(pictures()),
    }


@case
def a_text_encoder_in_8_bit() -> dict[str, Any]:
    model = Pipeline.from_pretrained("mini", device="cpu", int8=True)
    return {
        "captions": model.caption(pictures()),
        "scores": scored(model.score(picture(0), PROMPTS, num_samples=4)),
        "drawn": drawn("generate", PROMPTS[:2], model=model, num_steps=4),
    }


@case
def the_world() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, world in PRESETS.items():
        scenes = [make_scene(world, split, index) for split in ("test", "train") for index in range(4)]
        asked = [
            make_question(scene, random.Random(7), kind) for scene in scenes[:3] for kind in QUESTION_KINDS
        ]
        found[name] = {
            "pictures": seen(*[render(scene) for scene in scenes]),
            "captions": [list_captions(scene)[:2] for scene in scenes],
            "questions": [None if one is None else [one.text, one.answer] for one in asked],
            "prompts": [[one.tag, one.text] for one in make_prompts(world, 2, split="test")],
        }
    seen_objects = detect(np.stack([np.asarray(picture(number)) for number in range(4)]))
    return {"presets": found, "detected": [[one._asdict() for one in some] for some in seen_objects]}


# --- serving ---


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def served(path: str, **given: Any) -> Any:
    """What the API answers: JSON, or the events of a stream."""
    response = with_client(lambda client: client.post(path, **given), app=create_app(mini()))
    assert response.status_code == 200, response.text
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    return plain_answer(events(response.text) if is_stream else response.json())


def known_settings(folder: Path) -> dict[str, Any]:
    """Of a model's folder, without what the record was made before: prompts in lower case, which its words are."""
    settings = json.loads((folder / "ddit.json").read_text())
    settings["prompt_style"].pop("lower_case_prompts", None)
    return settings


def plain_answer(answer: Any) -> Any:
    """Without what differs from call to call; pictures as digests."""
    if isinstance(answer, list):
        return [plain_answer(one) for one in answer]
    if not isinstance(answer, dict):
        return answer
    left_out = ("id", "created", "created_at", "first_block_seconds")
    kept = {name: value for name, value in answer.items() if name not in left_out}
    return {
        name: seen(decoded(value)) if name == "b64_json" and value else plain_answer(value)
        for name, value in kept.items()
    }


CHAT = "/v1/chat/completions"


@case
def http_chat() -> dict[str, Any]:
    blank = ask("a ___ dog is a __", noise(), seed=2, temperature=1.0)
    many = ask(QUESTIONS[3], noise(), seed=4, n=3, temperature=1.5, order="random", num_steps=5)
    return {
        "caption": served(CHAT, json=ask(None, picture(0), seed=1)),
        "answer": served(CHAT, json=ask(QUESTIONS[3], picture(1), seed=1)),
        "infill": served(CHAT, json=blank),
        "many": served(CHAT, json=many),
        "short": served(CHAT, json=ask(None, picture(2), seed=1, max_tokens=3)),
        "blind": served(CHAT, json=ask(QUESTIONS[1], seed=1)),
    }


@case
def http_chat_streamed() -> dict[str, Any]:
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    found = {
        "caption": served(CHAT, json=ask(None, noise(), seed=3, temperature=1.0, **usage)),
        "answer": served(CHAT, json=ask(QUESTIONS[3], picture(3), seed=11, order="confidence", **usage)),
    }
    said = {
        name: "".join(one["choices"][0]["delta"].get("content") or "" for one in some[:-1] if one["choices"])
        for name, some in found.items()
    }
    return {"said": said, "events": found}


@case
def http_images() -> dict[str, Any]:
    draw, size = "/v1/images/generations", {"num_steps": 3, "guidance_scale": 3}
    whole = box_mask((64, 64), (0, 0, 32, 64))
    files = {"image": encoded(picture(0)), "mask": encoded(whole)}
    edit = {"prompt": PROMPTS[0], "seed": "3", "n": "2", "num_steps": "3"}
    varied = {"prompt": PROMPTS[1], "seed": "3", "strength": "0.4", "num_steps": "3"}
    stream = {"prompt": PROMPTS[0], "seed": 9, "stream": True, "partial_images": 2, "num_steps": 4}
    return {
        "drawn": served(draw, json={"prompt": PROMPTS[0], "n": 2, "seed": 5, "sampler": "euler", **size}),
        "best": served(draw, json={"prompt": PROMPTS[1], "seed": 5, "best_of": 2, "size": "96x48", **size}),
        "streamed": served(draw, json=stream),
        "edited": served("/v1/images/edits", data=edit, files=files),
        "varied": served("/v1/images/edits", data=varied, files={"image": encoded(picture(2))}),
        "variation": served("/v1/images/variations", data={"seed": "3"}, files={"image": encoded(picture(1))}),
    }  # fmt: skip


# --- the command line ---


@case
def cli_verify() -> dict[str, Any]:
    """The printed table; its errors are rounding, and equal only on one machine."""
    result = command("verify", HERE / "data" / "tiny", "--device", "cpu")
    rows = [line.split() for line in result.stdout.splitlines()]
    return {"rows": [[ok, name, float(error)] for ok, name, error in rows], "outcome": result.stderr}


@case
def cli_verbs() -> dict[str, Any]:
    path, out = file_of(1), scratch() / "drawn"
    ranked = command("rank", path, *PROMPTS, "--json").stdout
    told = {
        "caption": command("caption", path, file_of(2), "--seed", 3).stdout,
        "ask": command("ask", path, *QUESTIONS).stdout,
        "infill": command("infill", path, "a photo of a ___ dog").stdout,
        "rank": [json.loads(line) | {"image": ""} for line in ranked.splitlines()],
        "infos": sorted(json.loads(command("info", "mini", "--json").stdout)),
    }
    command("generate", *PROMPTS, "--seed", 2, "--num-steps", 3, "-o", out)
    drawn_files = sorted(out.iterdir())
    images = seen(*[Image.open(file).convert("RGB") for file in drawn_files])
    texts = {name: text.replace(str(scratch()), "") for name, text in told.items() if isinstance(text, str)}
    return {**told, **texts, "files": [file.name for file in drawn_files], "images": images}


def evaluated(name: str, *options: object) -> dict[str, Any]:
    """What `ddit eval` writes and prints, but for what differs from run to run, and what 0.1 had not."""
    out = scratch() / name
    said = command("eval", "--out", out, "--device", "cpu", "--num-prompts", 4, *options).stdout
    rows = [line for line in said.splitlines() if line.startswith("| ") and LIKENESS not in line]
    found: dict[str, Any] = {"rows": rows}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        found[folder.name] = {
            "figures": [figure for figure in summary["figures"] if LIKENESS not in figure["name"]],
            "decoding": {k: v for k, v in summary["decoding"].items() if k != "edit_above"},
            "num_samples": summary["num_samples"],
            "predictions": [[line.get("prediction", line.get("image")), line["score"]] for line in lines],
        }
    images = sorted((out / "geneval").rglob("*.png"))
    return {**found, "images": [len(images), seen(*[np.asarray(Image.open(path)) for path in images])]}


@case
@slow
def cli_eval() -> dict[str, Any]:
    return evaluated("eval", "--limit", 12, "--num-scenes", 40, "--num-samples", 1)


@case
@slow
def cli_eval_with_mistakes() -> dict[str, Any]:
    """Decoded so badly that the scores are not all 1."""
    badly = ("--order", "random", "--temperature", 2.0, "--text-steps", 3, "--num-steps", 2, "--save-grids")
    few = ("--limit", 24, "--num-scenes", 40, "--num-samples", 2, "--batch-size", 10)
    return evaluated("eval-badly", *few, *badly, "--seed", 5)


# --- training ---


@cache
def chain() -> Path:
    """The stages before the transformer's, as in train/conftest.py."""
    root = scratch() / "chain"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DetectorNet(8).save(root / "mini-teacher" / "export" / TEACHER_FILE)
        for stage in ("vae", "text", "latents"):
            run_stage(build(f"tiny-{stage}", root))
    return root


def joint_run(name: str, **changes: Any) -> DualRun:
    """Ten steps with every loss on, in float32 and from scratch; Muon, the recipe's own optimiser."""
    config = build("tiny-stage1", chain())
    assert isinstance(config, DualRun)
    report = replace(config.report, tensorboard=False, peak_tflops=1.0, evaluate_every=1000, grid_every=1000)
    changes = {"init": None, "compute_dtype": "float32", "max_steps": 10, "report": report, **changes}
    return replace(config, out=str(scratch() / name), **changes)


def adamw_run(name: str, **changes: Any) -> DualRun:
    optimizer = replace(joint_run(name).optimizer, name="adamw", lr=1e-3)
    return joint_run(name, optimizer=optimizer, **changes)


def trained_here(config: DualRun) -> dict[str, Any]:
    """Losses of ten steps by this process, and the models they leave."""
    trainer = make_trainer(config)
    values = [result.values for result in take_steps(trainer, 10)]
    trainer.export()
    out, weights = Path(config.out), "transformer/diffusion_pytorch_model.safetensors"
    exports = {name: seen_file(out / name / weights) for name in ("export", "export_raw")}
    return {"values": values, "exports": exports, "settings": known_settings(out / "export")}


def trained_by_ranks(config: DualRun, num_ranks: int) -> dict[str, Any]:
    """Losses of ten steps by processes under torchrun, and the whole state after them."""
    folder, out = Path(f"{config.out}-config"), Path(f"{config.out}-state")
    save_config(config, folder)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    script = [str(HERE / "train" / "take_steps.py"), str(folder / "config.json"), str(out), "10"]
    environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, *launcher, *script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        "values": json.loads((out / "values.json").read_text()),
        "state": seen_file(out / "state.safetensors"),
    }


@case
@slow
def stages_before_training() -> dict[str, Any]:
    files = sorted(
        path for path in chain().glob("mini-[vtl]*/**/*.safetensors") if "teacher" not in str(path)
    )
    files = [path for path in files if "export" in path.parts or "latents" in str(path)]
    return {path.relative_to(chain()).as_posix(): seen_file(path) for path in files}


@case
@slow
def ten_steps_of_one_rank() -> dict[str, Any]:
    lora = replace(joint_run("lora").lora, rank=2)
    return {
        "muon": trained_here(joint_run("muon")),
        "adamw": trained_here(adamw_run("adamw")),
        "accumulated": trained_here(adamw_run("accumulated", micro_batch_size=2, train_mask_embedding=True)),
        "lora": trained_here(adamw_run("lora", lora=lora)),
    }


@case
@slow
def ten_steps_of_two_ranks_adamw() -> dict[str, Any]:
    return trained_by_ranks(adamw_run("two-adamw"), 2)


@case
@slow
def ten_steps_of_two_ranks_muon() -> dict[str, Any]:
    return trained_by_ranks(joint_run("two-muon"), 2)


# --- the tests, and the recording ---


def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


marked = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]


@pytest.mark.parametrize("name", marked)
def test_what_was_recorded_comes_out_again(name: str) -> None:
    expected = recorded()[name]
    exact = expected["machine"] == machine()
    found = list(differences(run_case(name), expected["found"], exact=exact, place=name))
    assert not found, f"{len(found)} differences:\n" + "\n".join(sorted(found)[:40])


def test_every_case_is_recorded_and_nothing_else() -> None:
    assert set(recorded()) == set(CASES)


def test_a_difference_is_named_where_it_is() -> None:
    tensor = torch.linspace(0, 1, 100).reshape(10, 10)
    expected = {"text": "a dog", "loss": 1.0, "tensor": seen(tensor), "list": [1, 2]}
    near = {**expected, "loss": 1.0001, "tensor": seen(tensor + 1e-5)}
    far = {**expected, "text": "a cat", "loss": 1.1, "tensor": seen(tensor.T), "list": [1, 3]}
    assert list(differences(near, expected, exact=False, place="x")) == []
    assert len(list(differences(near, expected, exact=True, place="x"))) > 2
    places = {line.split()[0].split("[")[0] for line in differences(far, expected, exact=False, place="x")}
    assert places == {"x.text", "x.loss", "x.tensor.numbers", "x.list"}


def main() -> None:
    flag, *names = sys.argv[1:] or [""]
    if flag != "--record" or not set(names) <= set(CASES):
        sys.exit(f"usage: python tests/test_golden.py --record [CASE ...]; cases: {', '.join(CASES)}")
    stored = recorded()
    for name in names or CASES:
        start = time.perf_counter()
        stored[name] = {"machine": machine(), "found": run_case(name)}
        print(f"{time.perf_counter() - start:6.1f} s  {name}", file=sys.stderr)
    lines = [
        f"{json.dumps(name)}: {json.dumps(stored[name], sort_keys=True)}" for name in CASES if name in stored
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
