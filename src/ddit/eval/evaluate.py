"""Runs benchmarks: each rank draws or reads its part, the first scores the whole and writes it down.

Sample k depends on `seed + k` alone, so that batches and ranks change nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Unpack

from ddit.devices import Ranks
from ddit.diffusion.flow import ImageSampling
from ddit.errors import near_misses
from ddit.eval import geneval
from ddit.eval.captioning import read_captions, score_captions
from ddit.eval.items import Figure, Item, Outcome, find_file
from ddit.eval.report import Summary, aside_of, check_free, write_report, written_aside
from ddit.eval.vqa import read_gqa, read_vizwiz, read_vqav2, score_gqa, score_vizwiz, score_vqav2
from ddit.eval.world_tasks import WorldSplit, write_eval_data
from ddit.eval.yesno import read_mme, read_pope, score_mme, score_pope
from ddit.inference.text_generator import TextSampling, WritingOptions
from ddit.pipeline import Pipeline
from ddit.world import Prompt

Advance = Callable[[int], Any]
"""Called with the number of samples done since the last call."""


class TextTask(NamedTuple):
    """A benchmark of answers or captions.

    Attributes:
        unit: items that stay together under --limit.
        unanswerable: the prompt says that there may be no answer.
    """

    read: Callable[[Path, Path | None], list[Item]]
    score: Callable[[Sequence[Item], Sequence[str]], Outcome]
    unit: int = 1
    unanswerable: bool = False


TEXT_TASKS = {
    "vqav2": TextTask(read_vqav2, score_vqav2),
    "vizwiz": TextTask(read_vizwiz, score_vizwiz, unanswerable=True),
    "gqa": TextTask(read_gqa, score_gqa),
    "pope": TextTask(read_pope, score_pope),
    "mme": TextTask(read_mme, score_mme, unit=2),
    "caption": TextTask(read_captions, score_captions),
}
TASKS = ("geneval", *TEXT_TASKS)
METADATA_FILE = "*metadata*.jsonl"
SCORER_NOTE = (
    "pictures only: the prompts are beyond the small world. Score them with github.com/djghosh13/geneval: "
    "python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path DETECTORS; "
    "python evaluation/summary_scores.py results.jsonl"
)


@dataclass(frozen=True, kw_only=True)
class Decoding(ImageSampling):
    """Everything that decides how a model draws and writes; fixed before a run and written into its summary.

    Attributes: those of drawing, and
        prompt_length: of drawing.
        answer_steps, caption_steps, answer_length, caption_length, text_length, writing: of writing.
        size: pixels a side, of pictures drawn and of pictures as they are read.
    """

    prompt_length: int
    answer_steps: int
    caption_steps: int
    answer_length: int | None
    caption_length: int | None
    text_length: int
    size: int
    writing: TextSampling

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        drawing: ImageSampling | None = None,
        *,
        text_steps: int | None = None,
        size: int | None = None,
        length: int | None = None,
        **writing: Unpack[WritingOptions],
    ) -> Decoding:
        """The model's own settings (`ddit.json`), but for what is given."""
        own = pipeline.settings
        return cls(
            **asdict(own.but(drawing)),
            prompt_length=own.prompt_length,
            answer_steps=text_steps or own.answer_steps,
            caption_steps=text_steps or own.caption_steps,
            answer_length=length or own.answer_length,
            caption_length=length or own.caption_length,
            text_length=own.text_length,
            size=size or own.image_size,
            writing=own.writing.changed(writing),
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, flat."""
        values = asdict(self)
        return values | values.pop("writing")


@dataclass(frozen=True)
class EvalSettings:
    """How much of each benchmark is run.

    Attributes:
        seed: of the first sample.
        limit: at most so many prompts, questions or captions a task, spread over the whole.
        num_samples: pictures a prompt.
        grid: also write a prompt's pictures into one.
    """

    seed: int = 0
    limit: int | None = None
    batch_size: int = 32
    num_samples: int = geneval.NUM_SAMPLES
    grid: bool = False


@dataclass(frozen=True)
class Source:
    """What to evaluate on: official files in `data`, or else the small world.

    Attributes:
        data: a task's folder, or a folder with one folder a task.
        images: the pictures' folder, if it is not in `data`.
        metadata: GenEval's prompt file, if it is not in `data`.
    """

    data: Path | None
    world: WorldSplit
    images: Path | None = None
    metadata: Path | None = None

    def check(self, tasks: Sequence[str]) -> None:
        """`ValueError` in one line for an unknown task, or a folder or file that is not there."""
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            near = near_misses(unknown[0], TASKS)
            raise ValueError(f"unknown task '{' '.join(unknown)}': use {', '.join(TASKS)}{near}")
        for path in (self.data, self.images):
            if path is not None and not path.is_dir():
                raise ValueError(f"no such folder: '{path}'")
        if self.metadata is not None:
            geneval.read_prompts(self.metadata)

    def to_json(self, task: str) -> dict[str, Any]:
        """What a task is evaluated on, for its summary."""
        if task == "geneval" and self.metadata is not None:
            return {"metadata": str(self.metadata)}
        if self.data is None:
            return {"world": self.world.to_json()}
        named = {"data": self.data, "images": self.images}
        return {name: str(path) for name, path in named.items() if path is not None}

    @contextmanager
    def folder(self, tasks: Sequence[str]) -> Iterator[Path]:
        """`data`, or the world's files of these tasks in a folder that is removed afterwards."""
        if self.data is not None:
            yield self.data
            return
        world = self.world if set(tasks) - {"geneval"} else replace(self.world, num=0)
        with TemporaryDirectory(prefix="ddit-eval-") as name:
            write_eval_data(Path(name), world, tasks)
            yield Path(name)


def evaluate(
    pipeline: Pipeline,
    tasks: Sequence[str],
    source: Source,
    out: Path,
    *,
    decoding: Decoding,
    settings: EvalSettings,
    about: dict[str, Any],
    ranks: Ranks,
    advance: Callable[[str, int], Advance],
) -> Iterator[Summary]:
    """Runs the tasks; the folder `out/<task>` gets `predictions.jsonl` and `summary.json`, GenEval's also its pictures.

    All questions are read before the first is asked.

    Args:
        about: what the summaries say of the model.
        advance: given a task and this rank's number of samples, what is to be called as they are done.

    Raises:
        ValueError: in one line; for an unknown task, files that do not have the official form, missing pictures, or a
            folder in `out` that is not a run's.
    """
    source.check(tasks)
    for task in tasks:
        check_free(out / task)
    with source.folder(tasks) as data:
        prompts = _prompts(source, data, settings) if "geneval" in tasks else []
        items = {task: _items(task, source, data, settings) for task in tasks if task in TEXT_TASKS}
        for task in tasks:
            run = _Run(pipeline, out / task, decoding, settings, ranks)
            start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
            made = {
                **about, **source.to_json(task), "decoding": decoding.to_json(), "settings": asdict(settings),
                "num_ranks": ranks.size, "started": started,
            }  # fmt: skip
            first = ranks.is_first
            with written_aside(out / task) if first else nullcontext() as aside:
                ranks.wait()  # until there is a folder for everyone's pictures
                result = run.task(task, prompts, items.get(task, []), advance)
                seconds = time.monotonic() - start
                summary = Summary(task, result.figures, result.num_samples, seconds, made, result.note)
                if aside is not None:
                    write_report(aside, summary, result.predictions)
            if first:
                yield summary


def _folder_of(task: str, data: Path) -> Path:
    return data / task if (data / task).is_dir() else data


def _prompts(source: Source, data: Path, settings: EvalSettings) -> list[Prompt]:
    path = source.metadata or find_file(_folder_of("geneval", data), METADATA_FILE)
    prompts = geneval.read_prompts(path)
    count = min(settings.limit or len(prompts), len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _items(task: str, source: Source, data: Path, settings: EvalSettings) -> list[Item]:
    """A task's items; with a limit, a fixed random choice of them, in their order."""
    kind = TEXT_TASKS[task]
    items = kind.read(_folder_of(task, data), source.images)
    if not items:
        raise ValueError(f"no question for {task} in '{_folder_of(task, data)}'")
    units = range(0, len(items), kind.unit)
    if settings.limit is not None and settings.limit < len(items):
        chosen = random.Random(task).sample(units, max(settings.limit // kind.unit, 1))
        items = [items[first + i] for first in sorted(chosen) for i in range(kind.unit)]
    return items


class _Result(NamedTuple):
    figures: list[Figure]
    num_samples: int
    predictions: list[dict[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class _Run:
    """One task on one rank."""

    pipeline: Pipeline
    folder: Path
    decoding: Decoding
    settings: EvalSettings
    ranks: Ranks

    def task(
        self, task: str, prompts: list[Prompt], items: list[Item], advance: Callable[[str, int], Advance]
    ) -> _Result:
        if task == "geneval":
            return self.draw(prompts, advance)
        return self.read(task, items, advance)

    def read(self, task: str, items: list[Item], advance: Callable[[str, int], Advance]) -> _Result:
        """Answers or captions, scored on every rank alike."""
        mine = self.ranks.part(len(items))
        step = advance(task, len(mine))
        texts = []
        for part in _batches(mine, self.settings.batch_size):
            texts += self._write([items[k] for k in part], self.settings.seed + part.start, task)
            step(len(part))
        texts = self.ranks.gather(texts)
        outcome = TEXT_TASKS[task].score(items, texts)
        predictions = [
            {
                "id": item.id,
                "image": item.image.name,
                "question": item.question,
                "prediction": text,
                "score": score,
                **item.truth,
            }
            for item, text, score in zip(items, texts, outcome.scores, strict=True)
        ]
        return _Result(outcome.figures, len(items), predictions)

    def _write(self, items: list[Item], seed: int, task: str) -> list[str]:
        pipeline, decoding = self.pipeline, self.decoding
        images = [item.image for item in items]
        common: dict[str, Any] = {
            **asdict(decoding.writing),
            "seed": seed, "height": decoding.size, "width": decoding.size, "batch_size": len(items),
        }  # fmt: skip
        questions = [
            pipeline.style.short_answer(item.question, unanswerable=TEXT_TASKS[task].unanswerable)
            for item in items
            if item.question is not None
        ]
        if not questions:
            steps, length = decoding.caption_steps, decoding.caption_length
            return pipeline.caption(images, num_steps=steps, length=length, **common)
        steps, length = decoding.answer_steps, decoding.answer_length
        return pipeline.answer(images, questions, num_steps=steps, length=length, **common)

    def draw(self, prompts: list[Prompt], advance: Callable[[str, int], Advance]) -> _Result:
        """Pictures in GenEval's folders, scored by the world's detector if it knows what is asked for."""
        settings, folder = self.settings, aside_of(self.folder)
        in_world = all(geneval.is_in_world(prompt) for prompt in prompts)
        mine = self.ranks.part(len(prompts))
        step = advance("geneval", len(mine) * settings.num_samples)
        samples = range(mine.start * settings.num_samples, mine.stop * settings.num_samples)
        places = {index: geneval.write_metadata(folder, index, prompts[index]) for index in mine}
        lines = []
        for part in _batches(samples, settings.batch_size):
            asked = [prompts[k // settings.num_samples] for k in part]
            images = self.pipeline.generate(
                [prompt.text for prompt in asked],
                seed=settings.seed + part.start,
                sampler=self.decoding,
                height=self.decoding.size,
                width=self.decoding.size,
                batch_size=len(part),
            )
            found = geneval.judge_images(asked, images) if in_world else [None] * len(part)
            for k, prompt, image, judged in zip(part, asked, images, found, strict=True):
                index, number = divmod(k, settings.num_samples)
                image.save(places[index] / geneval.sample_name(number))
                line = {
                    "image": f"{index:05d}/samples/{geneval.sample_name(number)}",
                    "seed": settings.seed + k,
                }
                judgement = {} if judged is None else geneval.to_json(judged)
                lines.append({**line, "tag": prompt.tag, "prompt": prompt.text, **judgement})
            step(len(part))
        if settings.grid:
            for index in mine:
                geneval.write_grid(folder, index)
        lines = self.ranks.gather(lines)
        if not in_world:
            return _Result([], len(lines), lines, SCORER_NOTE.format(folder=self.folder))
        figures = geneval.geneval_figures(
            [line["tag"] for line in lines], [bool(line["score"]) for line in lines]
        )
        return _Result(figures, len(lines), lines)


def _batches(samples: range, size: int) -> Iterator[range]:
    for start in range(samples.start, samples.stop, size):
        yield range(start, min(start + size, samples.stop))
