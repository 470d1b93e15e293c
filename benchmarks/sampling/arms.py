"""The arms: the rivals; and ours, in settings each of which adds one thing to the one before."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image

from benchmarks.sampling.measure import Arm, Run, Score, half_width
from benchmarks.sampling.published import Published
from benchmarks.sampling.subjects import (
    Autoregressive,
    StableDiffusion3,
    in_bfloat16,
    isolated,
    noise_images,
)
from ddit.diffusion.flow import num_evaluations
from ddit.eval.evaluate import EvalData
from ddit.eval.geneval import score_images, tally_categories
from ddit.eval.runner import TEXT_TASKS
from ddit.eval.world_tasks import WorldSplit
from ddit.pipeline import Pipeline
from ddit.settings import ImageSampling
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
    """Texts to sample about images.

    Attributes:
        length: positions that ours fill after the prompt; None is the whole window.
        window: text tokens of the published arm, with the prompt.
        published_steps: of its sampler.
        ours: options of our sampling, with `num_steps`.
        looser: the options that make it one of fewer steps; empty: there is no such arm.
        max_steps: a call is cut to so many steps, and scaled; None does it whole.
        score: of all outputs in order; None if the weights are random.
    """

    name: str
    length: int | None
    window: int
    published_steps: int
    ours: dict[str, Any]
    images: list[Image.Image]
    questions: list[str] | None
    looser: dict[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    score: Callable[[list], Score] | None = None

    def cut(self, steps: int) -> int:
        """The steps of a call."""
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def options(self) -> tuple[dict[str, Any], float]:
        """Our options of a call, and the steps of the whole task over the call's."""
        steps: int = self.ours["num_steps"]
        return {**self.ours, "num_steps": self.cut(steps), "length": self.length}, steps / self.cut(steps)

    def run(self, pipeline: Pipeline, batch: int, **options: Any) -> Run:
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

    def run_published(self, published: Published, steps: int) -> Run:
        def run(numbers: range) -> list[str]:
            return [
                published.sample_text(
                    self.images[n % len(self.images)],
                    None if self.questions is None else self.questions[n % len(self.questions)],
                    window=self.window, num_steps=steps, seed=n,
                )
                for n in numbers
            ]  # fmt: skip

        return run


def expected_steps(steps: int, positions: int) -> float:
    """Of random order: of N steps, those in which at least one of the positions is filled."""
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
        [expected_steps(n, positions) for n in (task.published_steps, steps)]
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
    add("published", RIVAL, task.run_published(subject.published, steps), theirs)
    same: dict[str, Any] = {"order": "random", "temperature": 1.0, "num_steps": steps}
    add("ours, as published", "own code", task.run(subject.joint, 1, **same), window[0] / window[1])
    if task.length is not None:
        windowed = task.run(subject.joint, 1, length=task.length, **same)
        add("+ window", "window", windowed, length[0] / length[1])
    options, scale = task.options
    add("+ rule", "fewer steps", task.run(subject.joint, 1, **options), scale)
    if subject.isolated is not None:
        add(
            "+ image reused",
            "cached image",
            task.run(subject.isolated, 1, **options),
            scale,
            subject.isolated,
        )
    return arms


def _batched(subject: Subject, task: TextTask, batch: int, base: str, chunk: int | None) -> list[Arm]:
    """Ours at a batch: in float32 (at 1 that is the arm `base`), in bfloat16, compiled, by a looser rule."""
    options, scale = task.options
    arms: list[Arm] = []

    def add(
        label: str, part: str, looser: dict[str, Any], dtype: torch.dtype, *, compiled: bool = False
    ) -> None:
        plain = subject.best if dtype == torch.float32 else subject.bfloat16
        used = subject.compiled if compiled else plain
        run, plain_run = (task.run(pipeline, batch, **{**options, **looser}) for pipeline in (used, plain))
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
            return list(decoder.generate(images, questions, task.length or task.window))

        return run

    return [
        Arm(label=f"autoregressive, {name}, batch {batch}", part=RIVAL, after="", batch=batch, count=batch,
            run=run_of(decoder), counted=decoder.model, dtype=decoder.model.dtype)
        for name, decoder in zip(("float32", "bf16"), subject.decoders, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Images to sample. `ours` is our setting; `max_steps` and `score` as in `TextTask`."""

    name: str
    prompts: list[str]
    ours: ImageSampling
    max_steps: int | None = None
    score: Callable[[list], Score] | None = None

    def cut(self, cfg: ImageSampling) -> tuple[ImageSampling, float]:
        """The setting of a call, and the evaluations of the whole task over the call's."""
        steps = cfg.num_steps if self.max_steps is None else min(cfg.num_steps, self.max_steps)
        shorter = replace(cfg, num_steps=steps)
        return shorter, num_evaluations(cfg) / num_evaluations(shorter)

    def run(self, generate: Callable[..., list], **options: Any) -> Run:
        def run(numbers: range) -> list[Image.Image]:
            prompts = [self.prompts[n % len(self.prompts)] for n in numbers]
            return generate(prompts, seed=numbers.start, **options)

        return run

    def in_parts(self, published: Published, batch: int, num_steps: int) -> Run:
        """The published pipeline takes all that it gets as one batch."""
        sample = self.run(published.sample_images, num_steps=num_steps)

        def run(numbers: range) -> list[Image.Image]:
            firsts = range(0, len(numbers), batch)
            return [image for first in firsts for image in sample(numbers[first : first + batch])]

        return run


def image_arms(subject: Subject, task: ImageTask, batches: Sequence[int], chunk: int | None) -> list[Arm]:
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
            rival = task.run(subject.sd3.generate, num_steps=paper.num_steps)
            add("diffusers SD3", RIVAL, rival, subject.sd3.model, scale=scale)
        theirs = task.in_parts(subject.published, batch, paper.num_steps)
        add("published", RIVAL, theirs, subject.published.model, scale=scale)
        same = task.run(joint.generate, batch_size=batch, **asdict(paper))
        add("ours, as published", "own code", same, joint.transformer, scale=scale)
        fewer: dict[str, Any] = {**asdict(own), "batch_size": batch}
        run = task.run(joint.generate, **fewer)
        add("+ sampler", "fewer steps", run, joint.transformer, scale=own_scale)
        low: dict[str, Any] = {"dtype": torch.bfloat16, "scale": own_scale}
        add("+ bf16", "precision", task.run(half.generate, **fewer), half.transformer, **low)
        if subject.compiles:
            fast = subject.compiled
            run = task.run(fast.generate, **fewer)
            plain = task.run(half.generate, **fewer)
            add("+ compiled", "compiled", run, fast.transformer, counted_run=plain, **low)
    return arms


def random_text(
    length: int, published_steps: int, steps: int, *, count: int, side: int, max_steps: int | None
) -> TextTask:
    """Answers of 8 tokens to a question, longer ones as captions, in a given number of steps."""
    rng = random.Random(length)
    questions = [" ".join(f"w{rng.randrange(100)}" for _ in range(8)) for _ in range(count)]
    return TextTask(
        name=f"{length} tokens", length=length, window=128 if length <= 128 else length,
        published_steps=published_steps, max_steps=max_steps, images=noise_images(count, side),
        ours={"order": "confidence", "temperature": 0.0, "num_steps": steps},
        questions=questions if length == 8 else None,
    )  # fmt: skip


Kind = Literal["gqa", "caption"]
HEADLINES = {"gqa": "accuracy", "caption": "every attribute"}


def world_text(
    pipeline: Pipeline, kind: Kind, ours: dict[str, Any], *, count: int, preset: str, steps: int
) -> TextTask:
    """Questions or captions of the small world's test split, with their scorer."""
    with EvalData(None, WorldSplit(PRESETS[preset], num=max(count, 8))).open([kind]) as folder:
        items = TEXT_TASKS[kind].read(folder / kind, None).items
        items = random.Random(kind).sample(items, min(count, len(items)))
        images = []
        for item in items:
            with Image.open(item.image) as image:
                images.append(image.convert("RGB"))
    settings = pipeline.settings
    answers = kind == "gqa"
    own = {"num_steps": settings.answer_steps if answers else settings.caption_steps, **ours}
    length = ours.get("length") or (settings.answer_length if answers else settings.caption_length)
    questions = [pipeline.style.short_answer(item.question or "") for item in items] if answers else None

    def score(outputs: list) -> Score:
        found = TEXT_TASKS[kind].score(items[: len(outputs)], outputs[: len(items)])
        figure = next(each for each in found.figures if each.name == HEADLINES[kind])
        return Score(figure.value, half_width(figure.value, figure.num))

    return TextTask(
        name="answers" if answers else "captions", length=length, window=settings.text_length, ours=own,
        published_steps=steps, images=images, questions=questions, score=score,
    )  # fmt: skip


def world_images(ours: ImageSampling, *, count: int, preset: str) -> ImageTask:
    """GenEval's prompts in the small world, `count` in all, its categories in turns, scored by the world's detector."""
    each = -(-count // 6)
    made = make_prompts(PRESETS[preset], each)
    prompts = [made[tag * each + k] for k in range(each) for tag in range(len(made) // each)][:count]

    def score(outputs: list) -> Score:
        chosen = prompts[: len(outputs)]
        right = [found.correct for found in score_images(chosen, outputs[: len(chosen)])]
        mean = tally_categories([prompt.tag for prompt in chosen], right)[0].value
        return Score(mean, half_width(mean, len(right)))

    return ImageTask(name="images", prompts=[prompt.text for prompt in prompts], ours=ours, score=score)
