"""Makes a benchmark's samples, each rank its part, and has them scored.

Sample k depends on `seed + k` alone, so that the numbers of batches and of ranks change nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from ddit.devices import Ranks
from ddit.errors import collect_warnings
from ddit.eval import geneval
from ddit.eval.captioning import read_captions, score_captions
from ddit.eval.geneval import Judge
from ddit.eval.items import Figure, Item, TaskItems, TaskScore, find_fault
from ddit.eval.options import EvalOptions
from ddit.eval.vqa import read_gqa, read_vizwiz, read_vqav2, score_gqa, score_vizwiz, score_vqav2
from ddit.eval.wide_world import read_descriptions, read_reading, score_descriptions, score_reading
from ddit.eval.world_tasks import empty_background
from ddit.eval.yesno import read_mme, read_pope, score_mme, score_pope
from ddit.images import ImageSource
from ddit.pipeline import Pipeline
from ddit.world import Prompt, Scene

OnProgress = Callable[[int], Any]
"""Called with the number of samples that were made since the last call."""


def ignore_progress(task: str, num_samples: int) -> OnProgress:
    return lambda num_done: None


class TextTask(NamedTuple):
    """A benchmark of answers or captions.

    Attributes:
        unit: number of consecutive items that stay together under a limit.
        unanswerable: the prompt says that there may be no answer.
        as_asked: questions are asked as they stand, without what the model's style ends those of benchmarks with.
        is_long: texts are as long and take as many steps as detailed captions, whatever an answer has.
    """

    read: Callable[[Path, Path | None], TaskItems]
    score: Callable[[Sequence[Item], Sequence[str]], TaskScore]
    unit: int = 1
    unanswerable: bool = False
    as_asked: bool = False
    is_long: bool = False


TEXT_TASKS = {
    "vqav2": TextTask(read_vqav2, score_vqav2),
    "vizwiz": TextTask(read_vizwiz, score_vizwiz, unanswerable=True),
    "gqa": TextTask(read_gqa, score_gqa),
    "pope": TextTask(read_pope, score_pope),
    "mme": TextTask(read_mme, score_mme, unit=2),
    "caption": TextTask(read_captions, score_captions),
    "reading": TextTask(read_reading, score_reading, as_asked=True),
    "description": TextTask(read_descriptions, score_descriptions, as_asked=True, is_long=True),
}
BLANK = Image.new("RGB", (8, 8))
"""Takes the place of an image that cannot be read, and what the model says of it is not used."""
SCORER_NOTE = (
    "the official scorer of github.com/djghosh13/geneval judges all images: "
    "python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path DETECTORS; "
    "python evaluation/summary_scores.py results.jsonl"
)


class Result(NamedTuple):
    figures: list[Figure]
    predictions: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    corrupt: Mapping[str, str] = MappingProxyType({})


class _Answer(NamedTuple):
    """What the model said of an item, or why it could not be asked."""

    text: str
    fault: str = ""


class _Made(NamedTuple):
    """An image's prediction; its score is None if the judge does not know what was asked for."""

    line: dict[str, Any]
    prompt: Prompt
    score: geneval.ImageScore | None


@dataclass(frozen=True)
class Runner:
    """The tasks on one rank."""

    pipeline: Pipeline
    options: EvalOptions
    ranks: Ranks
    start_task: Callable[[str, int], OnProgress]

    def text(self, task: str, asked: TaskItems) -> Result:
        """Answers or captions, scored on every rank alike."""
        mine = self.ranks.part(len(asked.items))
        has_empty = all(isinstance(item.scene, Scene) and item.question is not None for item in asked.items)
        on_progress = self.start_task(task, len(mine) * (2 if has_empty else 1))
        answers: list[_Answer] = []
        for batch in _batches(mine, self.options.batch_size):
            answers += self._answer([asked.items[k] for k in batch], self.options.seed + batch.start, task)
            on_progress(len(batch))
        answers = self.ranks.gather(answers)
        items = [replace(item, fault=answer.fault) for item, answer in zip(asked.items, answers, strict=True)]
        texts = [answer.text for answer in answers]
        scored = TEXT_TASKS[task].score(items, texts)
        figures = scored.figures
        if has_empty:
            blind = self._answer_empty(task, items, mine, on_progress)
            figures = _add_baseline("empty_background", figures, TEXT_TASKS[task].score(items, blind).figures)
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
        return Result(figures, predictions, (*asked.notes, *scored.notes), corrupt)

    def _answer_empty(self, task: str, items: list[Item], mine: range, on_progress: OnProgress) -> list[str]:
        """Answers to the same questions about each scene without its objects: what the wording gives away."""
        texts: list[str] = []
        for batch in _batches(mine, self.options.batch_size):
            chosen = [items[k] for k in batch]
            images = [empty_background(item.scene) for item in chosen if isinstance(item.scene, Scene)]
            questions = ["?" if item.fault else item.question for item in chosen]
            with collect_warnings():  # of images without objects, which training does not show
                texts += self._write(images, questions, self.options.seed + batch.start, task)
            on_progress(len(batch))
        return self.ranks.gather(texts)

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
        kind, style, settings = TEXT_TASKS[task], self.pipeline.style, self.pipeline.settings
        if kind.is_long:
            num_steps = self.options.text_steps or settings.caption_steps
            common |= {"num_steps": num_steps, "length": settings.text_length, **settings.detailed_rule}
        asked = [
            question if kind.as_asked else style.short_answer(question, unanswerable=kind.unanswerable)
            for question in questions
            if question is not None
        ]
        return (
            self.pipeline.answer(images, asked, **common)
            if asked
            else self.pipeline.caption(images, **common)
        )

    def geneval(
        self, asked: geneval.GenevalPrompts, judge: Judge, folder: Path, final_folder: Path
    ) -> Result:
        """Images in GenEval's layout, scored by the judge if it knows what is asked for."""
        prompts, num_samples = asked.prompts, self.options.num_samples
        mine = self.ranks.part(len(prompts))
        on_progress = self.start_task("geneval", len(mine) * num_samples)
        folders = {index: geneval.write_metadata(folder, index, prompts[index]) for index in mine}
        made: list[_Made] = []
        for batch in _batches(
            range(mine.start * num_samples, mine.stop * num_samples), self.options.batch_size
        ):
            made += self._generate(prompts, batch, folders, judge)
            on_progress(len(batch))
        if self.options.save_grids:
            for index in mine:
                geneval.write_grid(folder, index)
        made = self.ranks.gather(made)
        lines = [one.line for one in made]
        known = [line for line in lines if "score" in line]
        notes = asked.notes
        if len(known) < len(lines):
            notes = (*notes, SCORER_NOTE.format(folder=final_folder))
        if not known:
            return Result([], lines, notes)
        if self.ranks.is_first:
            results = [
                one.score.official(str(final_folder / one.line["image"]), one.prompt.to_json())
                for one in made
                if one.score is not None
            ]
            geneval.write_results(folder / geneval.RESULTS_FILE, results)
        judged = [(one.prompt, one.score) for one in made if one.score is not None]
        figures = geneval.tally_sections(
            [prompt.section for prompt, _ in judged],
            [prompt.tag for prompt, _ in judged],
            [score.correct for _, score in judged],
            [score.likeness for _, score in judged],
        )
        return Result(figures, lines, notes)

    def _generate(
        self, prompts: list[Prompt], batch: range, folders: dict[int, Path], judge: Judge
    ) -> list[_Made]:
        """Saves a batch of images, and judges those whose prompts the judge knows."""
        options, num_samples = self.options, self.options.num_samples
        asked = [prompts[k // num_samples] for k in batch]
        images = self.pipeline.generate(
            [prompt.text for prompt in asked],
            seed=options.seed + batch.start,
            height=options.size,
            width=options.size,
            batch_size=len(batch),
        )
        known = [not geneval.unknown_names(judge, prompt) for prompt in asked]
        judged = [
            pair for pair, is_known in zip(zip(asked, images, strict=True), known, strict=True) if is_known
        ]
        scores = iter(judge.score([p for p, _ in judged], [image for _, image in judged]))
        made = []
        for k, prompt, image, is_known in zip(batch, asked, images, known, strict=True):
            index, number = divmod(k, num_samples)
            name = geneval.sample_name(number)
            image.save(folders[index] / name)
            line = {"image": f"{index:05d}/samples/{name}", "seed": options.seed + k}
            score = next(scores) if is_known else None
            found = {} if score is None else score.to_json()
            made.append(_Made({**line, "tag": prompt.tag, "prompt": prompt.text, **found}, prompt, score))
        return made


def _add_baseline(name: str, figures: Sequence[Figure], others: Sequence[Figure]) -> list[Figure]:
    """The figures, each with the value of the other of its name as a baseline."""
    return [
        figure._replace(baselines={**figure.baselines, name: other.value})
        for figure, other in zip(figures, others, strict=True)
    ]


def _batches(samples: range, size: int) -> Iterator[range]:
    for start in range(samples.start, samples.stop, size):
        yield range(start, min(start + size, samples.stop))
