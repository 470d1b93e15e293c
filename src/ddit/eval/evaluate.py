"""Runs benchmarks: each rank makes its part of the samples, the first scores all and writes the report.

Sample k depends on `seed + k` alone, so that the numbers of batches and of ranks change nothing.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from ddit.devices import Ranks
from ddit.errors import near_misses
from ddit.eval import geneval
from ddit.eval.captioning import read_captions, score_captions
from ddit.eval.items import Figure, Item, TaskItems, TaskScore, find_fault, find_file
from ddit.eval.options import TASKS, EvalOptions
from ddit.eval.report import Summary, check_free, write_report
from ddit.eval.vqa import read_gqa, read_vizwiz, read_vqav2, score_gqa, score_vizwiz, score_vqav2
from ddit.eval.world_tasks import WorldSplit, write_eval_data
from ddit.eval.yesno import read_mme, read_pope, score_mme, score_pope
from ddit.files import write_folder_atomically
from ddit.images import ImageSource
from ddit.pipeline import Pipeline
from ddit.schema import to_data
from ddit.settings import ModelSettings
from ddit.world import Prompt

OnProgress = Callable[[int], Any]
"""Called with the number of samples that were made since the last call."""


def ignore_progress(task: str, num_samples: int) -> OnProgress:
    return lambda num_done: None


class TextTask(NamedTuple):
    """A benchmark of answers or captions.

    Attributes:
        unit: number of consecutive items that stay together under a limit.
        unanswerable: the prompt says that there may be no answer.
    """

    read: Callable[[Path, Path | None], TaskItems]
    score: Callable[[Sequence[Item], Sequence[str]], TaskScore]
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
BLANK = Image.new("RGB", (8, 8))
"""Takes the place of an image that cannot be read, and what the model says of it is not used."""
METADATA_FILE = "*metadata*.jsonl"
SCORER_NOTE = (
    "images only: the small world does not know the prompts. Score them with github.com/djghosh13/geneval: "
    "python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path DETECTORS; "
    "python evaluation/summary_scores.py results.jsonl"
)


@dataclass(frozen=True)
class EvalData:
    """What to evaluate on: official files in `folder`, or else the small world.

    Attributes:
        folder: of a task, or with one folder a task.
        images: the images' folder, if it is not in `folder`.
        metadata: GenEval's prompt file, if it is not in `folder`.
    """

    folder: Path | None
    world: WorldSplit
    images: Path | None = None
    metadata: Path | None = None

    def check(self, tasks: Sequence[str]) -> None:
        """`ValueError` in one line for an unknown task, or a missing folder or file."""
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            near = near_misses(unknown[0], TASKS)
            raise ValueError(f"unknown task '{' '.join(unknown)}': use {', '.join(TASKS)}{near}")
        for path in (self.folder, self.images):
            if path is not None and not path.is_dir():
                raise ValueError(f"no such folder: '{path}'")
        if self.metadata is not None:
            geneval.read_prompts(self.metadata)

    def describe(self, task: str) -> dict[str, Any]:
        """What a task is evaluated on, for its summary."""
        if task == "geneval" and self.metadata is not None:
            return {"metadata": str(self.metadata)}
        if self.folder is None:
            return {"world": to_data(self.world)}
        named = {"data": self.folder, "images": self.images}
        return {name: str(path) for name, path in named.items() if path is not None}

    @contextmanager
    def open(self, tasks: Sequence[str]) -> Iterator[Path]:
        """`folder`, or the world's files of these tasks in a temporary one."""
        if self.folder is not None:
            yield self.folder
            return
        world = self.world if set(tasks) - {"geneval"} else replace(self.world, num=0)
        with TemporaryDirectory(prefix="ddit-eval-") as name:
            write_eval_data(Path(name), world, tasks)
            yield Path(name)


def describe_decoding(settings: ModelSettings, options: EvalOptions) -> dict[str, Any]:
    """All that decides how samples are made, flat, for summaries."""
    text_sampling = asdict(settings.text_sampling)
    rule = text_sampling.pop("rule")
    return {
        **asdict(settings.image_sampling),
        "prompt_length": settings.prompt_length,
        "answer_steps": options.text_steps or settings.answer_steps,
        "caption_steps": options.text_steps or settings.caption_steps,
        "answer_length": settings.answer_length,
        "caption_length": settings.caption_length,
        "text_length": settings.text_length,
        "size": options.size or settings.image_size,
        **rule,
        **text_sampling,
    }


def evaluate(
    pipeline: Pipeline,
    tasks: Sequence[str],
    data: EvalData,
    out: Path,
    *,
    options: EvalOptions,
    about: Mapping[str, Any] = MappingProxyType({}),
    ranks: Ranks | None = None,
    start_task: Callable[[str, int], OnProgress] = ignore_progress,
) -> Iterator[Summary]:
    """Runs the tasks; the folder `out/<task>` gets `predictions.jsonl` and `summary.json`, GenEval's also its images.

    All questions are read before the first is asked.

    Args:
        about: what the summaries say of the model.
        start_task: called with a task and this rank's number of samples; gives what is called as they are made.

    Raises:
        ValueError: in one line; for an unknown task, files that do not have the official form, missing images, or a
            folder in `out` that no run wrote.
    """
    ranks = ranks or Ranks()
    data.check(tasks)
    for task in tasks:
        check_free(out / task)
    with data.open(tasks) as folder:
        prompts = _read_prompts(data, folder, options) if "geneval" in tasks else []
        items = {task: _read_items(task, data, folder, options) for task in tasks if task in TEXT_TASKS}
        run = _Run(pipeline, options, ranks, start_task)
        for task in tasks:
            start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
            made = {
                **about, **data.describe(task), "decoding": describe_decoding(pipeline.settings, options),
                "settings": to_data(options), "num_ranks": ranks.size, "started": started,
            }  # fmt: skip
            with write_folder_atomically(out / task) if ranks.is_first else nullcontext() as own_part:
                part = ranks.share(own_part)  # where all ranks save their images
                assert part is not None
                result = (
                    run.geneval(prompts, part, out / task)
                    if task == "geneval"
                    else run.text(task, items[task])
                )
                seconds = time.monotonic() - start
                summary = Summary(
                    task, result.figures, len(result.predictions), seconds, made, result.notes, result.corrupt
                )
                if ranks.is_first:
                    write_report(part, summary, result.predictions)
            if ranks.is_first:
                yield summary


def _task_folder(task: str, folder: Path) -> Path:
    return folder / task if (folder / task).is_dir() else folder


def _read_prompts(data: EvalData, folder: Path, options: EvalOptions) -> list[Prompt]:
    """GenEval's prompts; with a limit, so many of them at equal distances."""
    prompts = geneval.read_prompts(data.metadata or find_file(_task_folder("geneval", folder), METADATA_FILE))
    count = min(options.limit or len(prompts), len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _read_items(task: str, data: EvalData, folder: Path, options: EvalOptions) -> TaskItems:
    """A task's items; with a limit, a random choice of them (always the same), in their order."""
    kind = TEXT_TASKS[task]
    items, notes = kind.read(_task_folder(task, folder), data.images)
    if not items:
        raise ValueError(f"no question for {task} in '{_task_folder(task, folder)}'")
    units = range(0, len(items), kind.unit)
    if options.limit is not None and options.limit < len(items):
        chosen = random.Random(task).sample(units, max(options.limit // kind.unit, 1))
        items = [items[first + i] for first in sorted(chosen) for i in range(kind.unit)]
    return TaskItems(items, notes)


class _Result(NamedTuple):
    figures: list[Figure]
    predictions: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    corrupt: Mapping[str, str] = MappingProxyType({})


class _Answer(NamedTuple):
    """What the model said of an item, or why it could not be asked."""

    text: str
    fault: str = ""


@dataclass(frozen=True)
class _Run:
    """The tasks on one rank."""

    pipeline: Pipeline
    options: EvalOptions
    ranks: Ranks
    start_task: Callable[[str, int], OnProgress]

    def text(self, task: str, asked: TaskItems) -> _Result:
        """Answers or captions, scored on every rank alike."""
        mine = self.ranks.part(len(asked.items))
        on_progress = self.start_task(task, len(mine))
        answers: list[_Answer] = []
        for batch in _batches(mine, self.options.batch_size):
            answers += self._answer([asked.items[k] for k in batch], self.options.seed + batch.start, task)
            on_progress(len(batch))
        answers = self.ranks.gather(answers)
        items = [replace(item, fault=answer.fault) for item, answer in zip(asked.items, answers, strict=True)]
        texts = [answer.text for answer in answers]
        scored = TEXT_TASKS[task].score(items, texts)
        predictions = [
            {
                "id": item.id,
                "image": item.image.name,
                "question": item.question,
                "prediction": text,
                "score": score,
                **item.truth,
                **({"corrupt": item.fault} if item.fault else {}),
            }
            for item, text, score in zip(items, texts, scored.scores, strict=True)
        ]
        corrupt = {item.id: item.fault for item in items if item.fault}
        return _Result(scored.figures, predictions, (*asked.notes, *scored.notes), corrupt)

    def _answer(self, items: list[Item], seed: int, task: str) -> list[_Answer]:
        """A batch of answers or captions; items with a fault get none, and leave the others' seeds as they are."""
        questions = [item.question for item in items]
        try:
            return [
                _Answer(text) for text in self._write([item.image for item in items], questions, seed, task)
            ]
        except (
            ValueError,
            TypeError,
            OSError,
        ):  # tokenizers raise TypeError for half of a pair of surrogates
            faults = [find_fault(item) for item in items]
            if not any(faults):
                raise
        images = [BLANK if fault else item.image for item, fault in zip(items, faults, strict=True)]
        questions = [
            "?" if fault and asked is not None else asked
            for asked, fault in zip(questions, faults, strict=True)
        ]
        texts = self._write(images, questions, seed, task)
        return [_Answer("" if fault else text, fault) for text, fault in zip(texts, faults, strict=True)]

    def _write(
        self, images: Sequence[ImageSource], questions: Sequence[str | None], seed: int, task: str
    ) -> list[str]:
        """Answers to questions, or captions for None."""
        size = self.options.size
        common: dict[str, Any] = {
            "num_steps": self.options.text_steps, "seed": seed,
            "height": size, "width": size, "batch_size": len(images),
        }  # fmt: skip
        asked = [
            self.pipeline.style.short_answer(question, unanswerable=TEXT_TASKS[task].unanswerable)
            for question in questions
            if question is not None
        ]
        return (
            self.pipeline.answer(images, asked, **common)
            if asked
            else self.pipeline.caption(images, **common)
        )

    def geneval(self, prompts: list[Prompt], folder: Path, final_folder: Path) -> _Result:
        """Images in GenEval's layout, scored by the world's detector if it knows what is asked for."""
        num_samples = self.options.num_samples
        in_world = all(geneval.is_in_world(prompt) for prompt in prompts)
        mine = self.ranks.part(len(prompts))
        on_progress = self.start_task("geneval", len(mine) * num_samples)
        folders = {index: geneval.write_metadata(folder, index, prompts[index]) for index in mine}
        lines = []
        for batch in _batches(
            range(mine.start * num_samples, mine.stop * num_samples), self.options.batch_size
        ):
            lines += self._generate(prompts, batch, folders, in_world=in_world)
            on_progress(len(batch))
        if self.options.save_grids:
            for index in mine:
                geneval.write_grid(folder, index)
        lines = self.ranks.gather(lines)
        if not in_world:
            return _Result([], lines, (SCORER_NOTE.format(folder=final_folder),))
        tags, scores = [line["tag"] for line in lines], [bool(line["score"]) for line in lines]
        return _Result(geneval.tally_categories(tags, scores), lines)

    def _generate(
        self, prompts: list[Prompt], batch: range, folders: dict[int, Path], *, in_world: bool
    ) -> list[dict[str, Any]]:
        """Saves a batch of images; gives their predictions."""
        options, num_samples = self.options, self.options.num_samples
        asked = [prompts[k // num_samples] for k in batch]
        images = self.pipeline.generate(
            [prompt.text for prompt in asked],
            seed=options.seed + batch.start,
            height=options.size,
            width=options.size,
            batch_size=len(batch),
        )
        scores = geneval.score_images(asked, images) if in_world else [None] * len(batch)
        lines = []
        for k, prompt, image, score in zip(batch, asked, images, scores, strict=True):
            index, number = divmod(k, num_samples)
            name = geneval.sample_name(number)
            image.save(folders[index] / name)
            line = {"image": f"{index:05d}/samples/{name}", "seed": options.seed + k}
            found = {} if score is None else score.to_json()
            lines.append({**line, "tag": prompt.tag, "prompt": prompt.text, **found})
        return lines


def _batches(samples: range, size: int) -> Iterator[range]:
    for start in range(samples.start, samples.stop, size):
        yield range(start, min(start + size, samples.stop))
