"""The arms: the rivals, and ours in settings each of which adds one thing to the last."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from typing import Any, Literal

import torch
from PIL import Image

from benchmarks.sampling.measure import Arm, Run, Score
from benchmarks.sampling.published import Published
from benchmarks.sampling.subjects import (
    Autoregressive,
    StableDiffusion3,
    in_bfloat16,
    isolated,
    noise_pictures,
)
from ddit.diffusion.flow import ImageSampling
from ddit.eval.evaluate import TEXT_TASKS, Source
from ddit.eval.geneval import geneval_figures, judge_images
from ddit.eval.world_tasks import WorldSplit
from ddit.inference.text_generator import ReadOptions
from ddit.pipeline import Pipeline
from ddit.world import PRESETS, make_prompts

RIVAL = ""


@dataclass
class Subject:
    """A model, joint and isolated, and whether rivals with random weights are run beside it."""

    name: str
    joint: Pipeline
    isolated: Pipeline | None
    published: Published
    rivals: bool
    compiles: bool

    @classmethod
    def random(cls, name: str, pipeline: Pipeline, checkout: str, *, compiles: bool) -> Subject:
        return cls(name, pipeline, isolated(pipeline), Published(checkout, pipeline), True, compiles)

    @property
    def best(self) -> Pipeline:
        return self.isolated or self.joint

    @cached_property
    def bfloat16(self) -> Pipeline:
        return in_bfloat16(self.best)

    @cached_property
    def compiled(self) -> Pipeline:
        return in_bfloat16(self.best).compile()

    @cached_property
    def decoders(self) -> list[Autoregressive]:
        return [Autoregressive(self.joint, dtype) for dtype in (torch.float32, torch.bfloat16)]

    @cached_property
    def sd3(self) -> StableDiffusion3:
        return StableDiffusion3(self.joint)


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Texts to write about pictures.

    Attributes:
        length: positions that we write after what is given; None is the whole window.
        window: text tokens of the published arm, with what is given.
        published_steps: of its sampler.
        ours: the rule and its `num_steps`.
        looser: what a rule of fewer passes changes of it; empty: there is none.
        max_passes: a call is cut to so many steps, and scaled; None does it whole.
        score: of all outputs in order; None where the weights are random.
    """

    name: str
    length: int | None
    window: int
    published_steps: int
    ours: ReadOptions
    images: list[Image.Image]
    questions: list[str] | None
    looser: ReadOptions = field(default_factory=ReadOptions)
    max_passes: int | None = None
    score: Callable[[list], Score] | None = None

    def cut(self, steps: int) -> int:
        """The steps of a call."""
        return steps if self.max_passes is None else min(steps, self.max_passes)

    @property
    def rule(self) -> tuple[dict[str, Any], float]:
        """Our options of a call, and the whole's passes over the call's."""
        steps = self.ours.get("num_steps")
        assert steps
        options: dict[str, Any] = dict(self.ours)
        return {**options, "num_steps": self.cut(steps), "length": self.length}, steps / self.cut(steps)

    def writes(self, pipeline: Pipeline, batch: int, **options: Any) -> Run:
        """By one of our pipelines, on the task's window."""
        settings = replace(pipeline.settings, text_length=self.window)
        pipeline = replace(pipeline, settings=settings)

        def run(numbers: range) -> list[str]:
            images = [self.images[n % len(self.images)] for n in numbers]
            common = {"batch_size": batch, "seed": numbers.start, **options}
            if self.questions is None:
                return pipeline.caption(images, **common)
            asked = [self.questions[n % len(self.questions)] for n in numbers]
            return pipeline.answer(images, asked, **common)

        return run

    def published(self, published: Published, steps: int) -> Run:
        def run(numbers: range) -> list[str]:
            return [
                published.write(
                    self.images[n % len(self.images)],
                    None if self.questions is None else self.questions[n % len(self.questions)],
                    window=self.window, num_steps=steps, seed=n,
                )
                for n in numbers
            ]  # fmt: skip

        return run


def ancestral_passes(steps: int, positions: int) -> float:
    """Expected passes of random order: of N steps, those in which one of the positions is written."""
    return steps * (1 - (1 - 1 / steps) ** positions)


def text_arms(subject: Subject, task: TextTask, batches: Sequence[int], chunk: int | None) -> list[Arm]:
    """The published rule on whole windows one by one; ours, one thing at a time; autoregressive decoders.

    chunk: samples of a round for every arm, so that all have the same; None: one batch.
    """
    arms = _one_by_one(subject, task, chunk)
    base = arms[-1].label
    for batch in batches:
        arms += _batched(subject, task, batch, base, chunk)
        if subject.rivals:
            arms += _decoders(subject, task, batch)
    return arms


def _one_by_one(subject: Subject, task: TextTask, chunk: int | None) -> list[Arm]:
    steps = task.cut(task.published_steps)
    window, length = (
        [ancestral_passes(n, positions) for n in (task.published_steps, steps)]
        for positions in (task.window, task.length or task.window)
    )
    arms: list[Arm] = []

    def add(label: str, part: str, run: Run, scale: float, pipeline: Pipeline = subject.joint) -> None:
        after = arms[-1].label if arms else ""
        arms.append(
            Arm(label=label, part=part, after=after, batch=1, count=chunk or 1, run=run, scale=scale,
                counted=pipeline.text_codec.encoder)
        )  # fmt: skip

    theirs = (window[0] + 1) / (window[1] + 1)  # it always predicts once more at the end
    add("published", RIVAL, task.published(subject.published, steps), theirs)
    same: dict[str, Any] = {"order": "random", "temperature": 1.0, "num_steps": steps}
    add("ours, as published", "own code", task.writes(subject.joint, 1, **same), window[0] / window[1])
    if task.length is not None:
        windowed = task.writes(subject.joint, 1, length=task.length, **same)
        add("+ window", "window", windowed, length[0] / length[1])
    options, scale = task.rule
    add("+ rule", "fewer passes", task.writes(subject.joint, 1, **options), scale)
    if subject.isolated is not None:
        add(
            "+ image kept",
            "cached image",
            task.writes(subject.isolated, 1, **options),
            scale,
            subject.isolated,
        )
    return arms


def _batched(subject: Subject, task: TextTask, batch: int, base: str, chunk: int | None) -> list[Arm]:
    """Ours at a batch: in float32 (at 1 that is the arm `base`), in bfloat16, compiled, by a looser rule."""
    options, scale = task.rule
    arms: list[Arm] = []

    def add(label: str, part: str, rule: ReadOptions, dtype: torch.dtype, *, compiled: bool = False) -> None:
        plain = subject.best if dtype == torch.float32 else subject.bfloat16
        used = subject.compiled if compiled else plain
        run, plain_run = (task.writes(pipeline, batch, **{**options, **rule}) for pipeline in (used, plain))
        arms.append(
            Arm(label=f"+ {label}batch {batch}", part=part, after=arms[-1].label if arms else base, batch=batch,
                count=chunk or batch, run=run, counted_run=plain_run if compiled else None, scale=scale,
                counted=used.text_codec.encoder, dtype=dtype)
        )  # fmt: skip

    if batch > 1:
        add("", "batching", {}, torch.float32)
    add("bf16, ", "precision", {}, torch.bfloat16)
    if subject.compiles:
        add("compiled, ", "compiled", {}, torch.bfloat16, compiled=True)
    if task.looser:
        add("looser rule, ", "looser rule", task.looser, torch.bfloat16, compiled=subject.compiles)
    return arms


def _decoders(subject: Subject, task: TextTask, batch: int) -> list[Arm]:
    def run_of(decoder: Autoregressive) -> Run:
        def run(numbers: range) -> list:
            chosen = [n % len(task.images) for n in numbers]
            questions = None if task.questions is None else [task.questions[n] for n in chosen]
            images = [task.images[n] for n in chosen]
            return list(decoder.write(images, questions, task.length or task.window))

        return run

    return [
        Arm(label=f"autoregressive, {name}, batch {batch}", part=RIVAL, after="", batch=batch, count=batch,
            run=run_of(decoder), counted=decoder.model, dtype=decoder.model.dtype)
        for name, decoder in zip(("float32", "bf16"), subject.decoders, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DrawTask:
    """Pictures to draw. `ours` is our way; `max_steps` and `score` as in `TextTask`."""

    name: str
    prompts: list[str]
    ours: ImageSampling
    max_steps: int | None = None
    score: Callable[[list], Score] | None = None

    def cut(self, cfg: ImageSampling) -> tuple[ImageSampling, float]:
        """The way of a call, and the whole's evaluations over the call's."""
        steps = cfg.num_steps if self.max_steps is None else min(cfg.num_steps, self.max_steps)
        shorter = replace(cfg, num_steps=steps)
        return shorter, cfg.num_evaluations / shorter.num_evaluations

    def draws(self, draw: Callable[..., list], **options: Any) -> Run:
        def run(numbers: range) -> list[Image.Image]:
            prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
            return draw(prompts, seed=numbers.start, **options)

        return run

    def in_parts(self, published: Published, batch: int, num_steps: int) -> Run:
        """The published pipeline takes all it gets at once."""
        draw = self.draws(published.draw, num_steps=num_steps)

        def run(numbers: range) -> list[Image.Image]:
            firsts = range(0, len(numbers), batch)
            return [picture for first in firsts for picture in draw(numbers[first : first + batch])]

        return run


def draw_arms(subject: Subject, task: DrawTask, batches: Sequence[int], chunk: int | None) -> list[Arm]:
    """At each batch: the published pipeline, diffusers' SD3, and ours, one thing at a time."""
    arms: list[Arm] = []
    joint, half = subject.joint, subject.bfloat16
    (paper, scale), (own, own_scale) = task.cut(ImageSampling()), task.cut(task.ours)
    for batch in batches:
        common: dict[str, Any] = {"batch": batch, "count": chunk or batch}

        def add(
            label: str, part: str, run: Run, counted: torch.nn.Module, common: dict[str, Any] = common,
            batch: int = batch, **options: Any
        ) -> None:  # fmt: skip
            after = "" if part == RIVAL else arms[-1].label
            arms.append(
                Arm(label=f"{label}, batch {batch}", part=part, after=after, run=run, counted=counted,
                    **common, **options)
            )  # fmt: skip

        if subject.rivals:
            rival = task.draws(subject.sd3.draw, num_steps=paper.num_steps)
            add("diffusers SD3", RIVAL, rival, subject.sd3.model, scale=scale)
        theirs = task.in_parts(subject.published, batch, paper.num_steps)
        add("published", RIVAL, theirs, subject.published.model, scale=scale)
        same = task.draws(joint.generate, sampler=paper, batch_size=batch)
        add("ours, as published", "own code", same, joint.transformer, scale=scale)
        fewer: dict[str, Any] = {"sampler": own, "batch_size": batch}
        run = task.draws(joint.generate, **fewer)
        add("+ sampler", "fewer passes", run, joint.transformer, scale=own_scale)
        low: dict[str, Any] = {"dtype": torch.bfloat16, "scale": own_scale}
        add("+ bf16", "precision", task.draws(half.generate, **fewer), half.transformer, **low)
        if subject.compiles:
            fast = subject.compiled
            run = task.draws(fast.generate, **fewer)
            plain = task.draws(half.generate, **fewer)
            add("+ compiled", "compiled", run, fast.transformer, counted_run=plain, **low)
    return arms


def random_text(
    length: int, published_steps: int, passes: int, *, count: int, side: int, max_passes: int | None
) -> TextTask:
    """Answers of 8 tokens to a question, longer ones as captions, in the number of passes that is given."""
    rng = random.Random(length)
    questions = [" ".join(f"w{rng.randrange(100)}" for _ in range(8)) for _ in range(count)]
    return TextTask(
        name=f"{length} tokens", length=length, window=128 if length <= 128 else length,
        published_steps=published_steps, max_passes=max_passes, images=noise_pictures(count, side),
        ours={"order": "confidence", "temperature": 0.0, "num_steps": passes},
        questions=questions if length == 8 else None,
    )  # fmt: skip


Kind = Literal["gqa", "caption"]
HEADLINES = {"gqa": "accuracy", "caption": "every attribute"}


def world_text(
    pipeline: Pipeline, kind: Kind, ours: ReadOptions, *, count: int, preset: str, steps: int
) -> TextTask:
    """Questions or captions of the small world's test split, with their scorer."""
    with Source(None, WorldSplit(PRESETS[preset], num=max(count, 8))).folder([kind]) as folder:
        items = TEXT_TASKS[kind].read(folder / kind, None)
        items = random.Random(kind).sample(items, min(count, len(items)))
        images = []
        for item in items:
            with Image.open(item.image) as picture:
                images.append(picture.convert("RGB"))
    settings = pipeline.settings
    answers = kind == "gqa"
    own: ReadOptions = {"num_steps": settings.answer_steps if answers else settings.caption_steps, **ours}
    length = ours.get("length") or (settings.answer_length if answers else settings.caption_length)
    questions = [pipeline.style.short_answer(item.question or "") for item in items] if answers else None

    def score(outputs: list) -> Score:
        found = TEXT_TASKS[kind].score(items[: len(outputs)], outputs[: len(items)])
        figure = next(each for each in found.figures if each.name == HEADLINES[kind])
        return Score(figure.value, figure.spread or 0.0)

    return TextTask(
        name="answers" if answers else "captions", length=length, window=settings.text_length, ours=own,
        published_steps=steps, images=images, questions=questions, score=score,
    )  # fmt: skip


def world_pictures(ours: ImageSampling, *, count: int, preset: str) -> DrawTask:
    """GenEval's prompts in the small world, `count` in all, its categories in turns, with the world's judge."""
    each = -(-count // 6)
    made = make_prompts(PRESETS[preset], each)
    prompts = [made[tag * each + k] for k in range(each) for tag in range(len(made) // each)][:count]

    def score(outputs: list) -> Score:
        chosen = prompts[: len(outputs)]
        right = [judged.correct for judged in judge_images(chosen, outputs[: len(chosen)])]
        mean = geneval_figures([prompt.tag for prompt in chosen], right)[0].value
        return Score(mean, 1.96 * sqrt(mean * (1 - mean) / len(right)))

    return DrawTask(name="pictures", prompts=[prompt.text for prompt in prompts], ours=ours, score=score)
