"""Runs benchmarks: reads what they ask, has `runner` make and score the samples, and writes the reports."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from ddit.devices import Ranks
from ddit.errors import near_misses
from ddit.eval import geneval
from ddit.eval.items import TaskItems, find_file
from ddit.eval.options import TASKS, WIDE_TASKS, EvalOptions
from ddit.eval.report import Summary, check_free, write_report
from ddit.eval.runner import TEXT_TASKS, OnProgress, Runner, ignore_progress
from ddit.eval.wide_world import WideSplit, write_wide_data
from ddit.eval.world_tasks import WorldSplit, add_scenes, write_eval_data
from ddit.files import write_folder_atomically
from ddit.pipeline import Pipeline
from ddit.schema import to_data
from ddit.settings import ModelSettings

METADATA_FILE = "*metadata*.jsonl"


World = WorldSplit | WideSplit


def list_tasks(world: World) -> tuple[str, ...]:
    """What there is of a world."""
    return WIDE_TASKS if isinstance(world, WideSplit) else TASKS


def name_detector(world: World) -> str:
    """The detector that knows a world: a key of `geneval.WORLD_JUDGES`."""
    return "wide" if isinstance(world, WideSplit) else "world"


def write_world(
    folder: Path, world: World, tasks: Sequence[str] = (), *, on_scene: Callable[[], Any] = lambda: None
) -> dict[str, int]:
    """Writes a world's files of some tasks, by default of all; returns how many samples each has."""
    if isinstance(world, WideSplit):
        return write_wide_data(folder, world, tasks, on_scene=on_scene)
    return write_eval_data(folder, world, tasks, on_scene=on_scene)


@dataclass(frozen=True)
class EvalData:
    """What to evaluate on: official files in `folder`, or else a world.

    Attributes:
        folder: of a task, or with one folder a task.
        images: the images' folder, if it is not in `folder`.
        metadata: GenEval's prompt file, if it is not in `folder`.
    """

    folder: Path | None
    world: World
    images: Path | None = None
    metadata: Path | None = None

    def check(self, tasks: Sequence[str]) -> None:
        """`ValueError` in one line for an unknown task, or a missing folder or file."""
        known = list_tasks(self.world) if self.folder is None else tuple(dict.fromkeys(TASKS + WIDE_TASKS))
        unknown = [task for task in tasks if task not in known]
        if unknown or not tasks:
            near = near_misses(unknown[0], known)
            raise ValueError(
                f"unknown task '{' '.join(unknown)}': use {', '.join(known)}{near}{self._elsewhere(unknown)}"
            )
        for path in (self.folder, self.images):
            if path is not None and not path.is_dir():
                raise ValueError(f"no such folder: '{path}'")
        if self.metadata is not None:
            geneval.read_prompts(self.metadata)

    def _elsewhere(self, unknown: Sequence[str]) -> str:
        """A word on tasks that the other world has."""
        others = TASKS if isinstance(self.world, WideSplit) else WIDE_TASKS
        if not set(unknown) & set(others):
            return ""
        return f" (the {'small' if others is TASKS else 'wide'} world has {', '.join(others)})"

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
            write_world(Path(name), world, tasks)
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
        "detailed_entropy_bound": settings.detailed_entropy_bound,
        "detailed_block_size": settings.detailed_block_size,
        **text_sampling,
    }


def evaluate(
    pipeline: Pipeline,
    tasks: Sequence[str],
    data: EvalData,
    out: Path,
    *,
    options: EvalOptions,
    judge: geneval.Judge | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
    ranks: Ranks | None = None,
    start_task: Callable[[str, int], OnProgress] = ignore_progress,
) -> Iterator[Summary]:
    """Runs the tasks; the folder `out/<task>` gets `predictions.jsonl` and `summary.json`, GenEval's also its images.

    All questions are read before the first is asked.

    Args:
        judge: of GenEval's images [default: the world's].
        about: what the summaries say of the model.
        start_task: called with a task and this rank's number of samples; gives what is called as they are made.

    Raises:
        ValueError: in one line; for an unknown task, files that do not have the official form, missing images, or a
            folder in `out` that no run wrote.
    """
    ranks, geneval_judge = ranks or Ranks(), judge or geneval.WORLD_JUDGES[name_detector(data.world)]()
    data.check(tasks)
    for task in tasks:
        check_free(out / task)
    with data.open(tasks) as folder:
        prompts = geneval.GenevalPrompts([])
        if "geneval" in tasks:
            prompts = _read_prompts(data, folder, options, geneval_judge)
        items = {task: _read_items(task, data, folder, options) for task in tasks if task in TEXT_TASKS}
        run = Runner(pipeline, options, ranks, start_task)
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
                    run.geneval(prompts, geneval_judge, part, out / task)
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


def _read_prompts(
    data: EvalData, folder: Path, options: EvalOptions, judge: geneval.Judge
) -> geneval.GenevalPrompts:
    """GenEval's prompts; with a limit, so many of them at equal distances."""
    path = data.metadata or find_file(_task_folder("geneval", folder), METADATA_FILE)
    prompts, notes = geneval.choose_prompts(path, judge, all_prompts=options.all_prompts)
    count = min(options.limit or len(prompts), len(prompts))
    return geneval.GenevalPrompts([prompts[i * len(prompts) // count] for i in range(count)], notes)


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
    return TaskItems(add_scenes(_task_folder(task, folder), items), notes)
