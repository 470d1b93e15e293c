"""Sampling beside the published pipeline, diffusers' SD3 and an autoregressive decoder, all in turns in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.sampling --published PATH [--quick]

from the repository's root. PATH is your own checkout of github.com/zijieli-Jlee/Dual-Diffusion. Two kinds of models:
random weights of 20 M and of 300 M parameters, whose texts take the steps that --steps gives; and with --model (and
--isolated) a trained one, whose steps are what its rule needs and whose scores are measured beside the speed. Before
anything is timed, the published model must give our logits. Writes sampling.md and sampling_*.png.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.sampling.arms import (
    Arm,
    ImageTask,
    Kind,
    Subject,
    TextTask,
    image_arms,
    random_text,
    text_arms,
    world_images,
    world_text,
)
from benchmarks.sampling.measure import Clock, measure
from benchmarks.sampling.published import Published
from benchmarks.sampling.report import Table, write
from benchmarks.sampling.subjects import SIZES, random_pipeline
from ddit.pipeline import Pipeline
from ddit.schema import override
from ddit.settings import ImageSampling
from ddit.world import PRESETS

QUICK = {
    "sizes": ["20M"], "lengths": [8, 32], "batches": [1, 4], "image_batches": [1], "rounds": 1, "items": 4,
    "vocab": 2048, "max_steps": [("20M", 4)], "no_compile": True, "no_memory": True,
}  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    add = parser.add_argument
    add("--published", required=True, help="your checkout of the published code")
    add(
        "--sizes", nargs="*", default=list(SIZES), choices=list(SIZES), help="of the models of random weights"
    )
    add("--lengths", nargs="+", type=int, default=[8, 32, 128, 256], help="tokens of their texts")
    add("--published-steps", nargs="+", type=pair, default=[(8, 16), (32, 32), (128, 64), (256, 256)],
        metavar="TOKENS:STEPS", help="of the published rule")  # fmt: skip
    add("--steps", nargs="+", type=pair, default=[(8, 2), (32, 12), (128, 49), (256, 98)],
        metavar="TOKENS:STEPS", help="of ours by these models [default: 2.6 tokens a step, as mini]")  # fmt: skip
    add("--max-steps", nargs="+", type=limit, default=[("20M", 16), ("300M", 4)], metavar="SIZE:STEPS",
        help="of a timed call; beyond, times and FLOPs are scaled")  # fmt: skip
    add("--batches", nargs="+", type=int, default=[1, 8, 32], help="of texts")
    add("--image-batches", nargs="+", type=int, default=[1, 8], help="of images")
    add("--vocab", type=int, default=32128)
    add("--model", help="trained, its image side not isolated, such as runs/mini/mini-stage4/export")
    add("--isolated", help="the same model, converted to an isolated image side, such as mini")
    add("--preset", default="fixed", choices=sorted(PRESETS), help="of the small world")
    add("--window", type=int, help="text tokens of the published rule; by default the trained model's own")
    add("--items", type=int, default=192, help="answers, captions and images of the trained model")
    add("--trained-steps", nargs=2, type=int, default=[16, 32], metavar=("ANSWER", "CAPTION"),
        help="of the published rule")  # fmt: skip
    add("--answer-rule", nargs="*", type=setting, default=[], metavar="NAME=VALUE",
        help="over the model's own settings: order, threshold, num_steps, length, ...")  # fmt: skip
    add("--caption-rule", nargs="*", type=setting, default=[], metavar="NAME=VALUE")
    add("--looser-rule", nargs="*", type=setting, default=[], metavar="NAME=VALUE",
        help="one more arm, of fewer steps: over both rules")  # fmt: skip
    add("--image-sampling", nargs="*", type=setting, default=[], metavar="NAME=VALUE",
        help="over the trained model's settings, for all models: sampler, num_steps, ...")  # fmt: skip
    add("--rounds", type=int, default=5, help="of the models of random weights")
    add("--arm-seconds", type=float, default=30, help="after which an arm of these has no further round")
    add("--no-compile", action="store_true")
    add("--no-memory", action="store_true")
    add("--cpu-time", action="store_true", help="processor time: on a busy machine, with one thread")
    add("--threads", type=int, default=1)
    add(
        "--quick",
        action="store_true",
        help="the smallest of everything, two minutes; its figures mean little",
    )
    add("--out", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args(arguments)
    options.max_steps = dict(options.max_steps)
    for name in ("published_steps", "steps"):
        given = dict(getattr(options, name))
        setattr(options, name, given)
        if missing := set(options.lengths) - set(given):
            parser.error(f"--{name.replace('_', '-')} says nothing of {', '.join(map(str, missing))} tokens")
    return options


def pair(text: str) -> tuple[int, int]:
    tokens, steps = text.split(":")
    return int(tokens), int(steps)


def limit(text: str) -> tuple[str, int]:
    size, steps = text.split(":")
    return size, int(steps)


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


class Benchmark:
    """The tables so far; the page is rewritten after each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.tables, self.start = options, [], time.monotonic()
        self.clock = Clock.start(cpu_time=options.cpu_time)

    def table(
        self, subject: Subject, task: TextTask | ImageTask, arms: list[Arm], note: str, rounds: int
    ) -> None:
        trained = task.score is not None
        clock = Clock(self.clock.now, {})
        results = measure(
            arms,
            clock,
            rounds=rounds,
            fresh=trained,
            arm_seconds=self.options.arm_seconds,
            memory=not self.options.no_memory,
        )
        for result in results.values():
            if task.score is not None:
                result.score = task.score(result.outputs)
        self.tables.append(Table(subject.name, task.name, results, clock, note))
        print("\n".join(self.tables[-1].lines()), flush=True)
        write(self.tables, self.options.out, time.monotonic() - self.start)

    def random_model(self, size: str, image_sampling: ImageSampling) -> None:
        options = self.options
        pipeline = random_pipeline(size, options.vocab)
        subject = Subject.random(size, pipeline, options.published, compiles=not options.no_compile)
        print(f"{size}: the two models' outputs differ by {subject.published.check_same():.1e}", flush=True)
        most = options.max_steps.get(size)
        for length in options.lengths:
            task = random_text(
                length, options.published_steps[length], options.steps[length], count=max(options.batches),
                side=pipeline.settings.image_size, max_steps=most,
            )  # fmt: skip
            note = (
                f"Random weights. Published: {task.published_steps} steps over a window of {task.window} tokens; "
                f"ours: {options.steps[length]} steps, as given, over {length} tokens after the prompt."
            )
            self.table(subject, task, text_arms(subject, task, options.batches, None), note, options.rounds)
        prompts = [f"w{i} w{i + 1} w{i + 2}" for i in range(max(options.image_batches))]
        task = ImageTask(name="images", prompts=prompts, ours=image_sampling, max_steps=most)
        note = f"Random weights. Ours: {image_sampling}."
        self.table(
            subject, task, image_arms(subject, task, options.image_batches, None), note, options.rounds
        )

    def trained_model(self, pipeline: Pipeline, image_sampling: ImageSampling) -> None:
        """Rounds of one batch of the largest size, each of its own samples, until all items are done."""
        options = self.options
        tuned = (
            None if options.isolated is None else Pipeline.from_pretrained(options.isolated, dtype="float32")
        )
        published = Published(options.published, pipeline)
        print(f"trained: the two models' outputs differ by {published.check_same():.1e}", flush=True)
        name = Path(options.isolated or options.model).name
        subject = Subject(name, pipeline, tuned, published, rivals=False, compiles=not options.no_compile)
        rules: tuple[tuple[Kind, list], ...] = (
            ("gqa", options.answer_rule),
            ("caption", options.caption_rule),
        )
        for (kind, rule), steps in zip(rules, options.trained_steps, strict=True):
            chunk, rounds = parts_of(options.items, max(options.batches))
            task = world_text(
                pipeline, kind, dict(rule), count=chunk * rounds, preset=options.preset, steps=steps
            )
            task = replace(
                task,
                window=options.window or task.window,
                looser=dict(options.looser_rule),
            )
            ours = override(pipeline.settings.text_sampling, sampling_of(rule))
            note = (
                f"Small world `{options.preset}`, test split, {chunk * rounds} {task.name}. Published: {steps} steps, "
                f"random order, temperature 1, the whole window of {task.window} tokens. Ours: "
                f"{ours}, at most {task.ours['num_steps']} steps, "
                f"{f'the looser rule {task.looser}, ' if task.looser else ''}"
                f"{'the whole window' if task.length is None else f'{task.length} tokens after the prompt'}"
                f"{'' if tuned is not None else '; no converted model was given, so that no image is reused'}."
            )
            self.table(subject, task, text_arms(subject, task, options.batches, chunk), note, rounds)
        chunk, rounds = parts_of(options.items, max(options.image_batches))
        task = world_images(image_sampling, count=chunk * rounds, preset=options.preset)
        note = (
            f"Small world `{options.preset}`, test split, {chunk * rounds} prompts, GenEval's mean. "
            f"Ours: {image_sampling}."
        )
        self.table(subject, task, image_arms(subject, task, options.image_batches, chunk), note, rounds)


def sampling_of(rule: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in rule if name not in ("num_steps", "length")}


def parts_of(items: int, largest: int) -> tuple[int, int]:
    """Samples of a round, and rounds."""
    return largest, max(items // largest, 1)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    benchmark = Benchmark(options)
    trained = None if options.model is None else Pipeline.from_pretrained(options.model, dtype="float32")
    own = ImageSampling() if trained is None else trained.settings.image_sampling
    image_sampling = replace(own, **dict(options.image_sampling))
    try:
        if trained is not None:
            benchmark.trained_model(trained, image_sampling)
        for size in options.sizes:
            benchmark.random_model(size, image_sampling)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
