"""The engine gives every client what a call of its own would give, within its bounds."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.pipeline import Pipeline
from ddit.serve.engine import Engine
from ddit.serve.jobs import BatchReport, Job, Overloaded, Preview, Result, Stopping, TimedOut, make_options
from ddit.serve.options import Limits

PROMPTS = ["a photo of a dog", "a red car", "two red dog", "a blue dog", "a green car"]


@cache
def pipeline() -> Pipeline:
    return tiny_pipeline()


def noise_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def generate(prompt: str = "a dog", seed: int = 0, num_previews: int = 0, **options) -> Job:
    return Job("generate", {"prompt": prompt}, seed, make_options(**options), num_previews)


def ask(question: str = "what color is the dog?", image: Image.Image | None = None, seed: int = 0) -> Job:
    return Job("answer", {"image": image, "question": question}, seed)


def level_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@asynccontextmanager
async def started(
    limits: Limits | None = None, on_batch: Callable[[BatchReport], None] | None = None
) -> AsyncIterator[Engine]:
    engine = Engine(pipeline(), limits, on_batch=on_batch)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@asynccontextmanager
async def held(engine: Engine) -> AsyncIterator[threading.Event]:
    """Within this context the worker is busy with something else, until the event is set."""
    gate = threading.Event()
    blocked = engine._executor.submit(gate.wait, 30)
    try:
        yield gate
    finally:
        gate.set()
        assert blocked.result(30)


def test_jobs_at_once_go_in_one_call_and_each_gets_what_a_call_of_its_own_gives() -> None:
    reports: list[BatchReport] = []

    async def run() -> list[Result]:
        async with started(Limits(max_wait=500), reports.append) as engine:
            jobs = [generate(prompt, 10 * row) for row, prompt in enumerate(PROMPTS)]
            return await asyncio.gather(*[engine.run(job) for job in jobs])

    results = asyncio.run(run())
    for row, prompt in enumerate(PROMPTS):
        own = pipeline().generate(prompt, seed=10 * row)[0]
        assert level_difference(results[row].value, own) <= 1
    assert [report.size for report in reports] == [len(PROMPTS)]
    assert reports[0].num_steps == 3


def test_jobs_of_different_kinds_do_not_go_together_and_the_oldest_goes_first() -> None:
    reports: list[BatchReport] = []

    async def run() -> list[Result]:
        async with started(Limits(max_batch_size=2), reports.append) as engine, held(engine) as gate:
            first = asyncio.create_task(engine.run(generate()))
            await asyncio.sleep(0.05)
            jobs = [
                ask(image=noise_image(1)),
                generate(num_steps=2),
                ask(image=noise_image(2)),
                generate(num_steps=2),
                generate(),
            ]
            tasks = [asyncio.create_task(engine.run(job)) for job in [*jobs, ask(), generate(num_steps=2)]]
            await asyncio.sleep(0)
            gate.set()
            return await asyncio.gather(first, *tasks)

    results = asyncio.run(run())
    assert [(report.verb, report.size) for report in reports] == [
        ("generate", 1),
        ("answer", 2),
        ("generate", 2),
        ("generate", 1),
        ("answer", 1),  # without an image
        ("generate", 1),
    ]
    assert results[1].value == pipeline().answer(noise_image(1), "what color is the dog?")[0]
    assert results[3].value == pipeline().answer(noise_image(2), "what color is the dog?")[0]


def test_captions_without_an_image_go_one_by_one_each_with_its_seed() -> None:
    async def run() -> list[Result]:
        async with started() as engine:
            return await asyncio.gather(*[engine.run(Job("caption", {}, seed)) for seed in range(3)])

    own = [pipeline().caption(None, seed=seed)[0] for seed in range(3)]
    assert [result.value for result in asyncio.run(run())] == own


def test_a_stream_shows_every_step_of_its_own_sample_and_then_the_result() -> None:
    async def run() -> list[list]:
        async def collect(job: Job) -> list:
            return [event async for event in engine.stream(job)]

        async with started(Limits(max_wait=300)) as engine:
            return await asyncio.gather(
                *[collect(generate(prompt, row)) for row, prompt in enumerate(PROMPTS)]
            )

    for row, events in enumerate(asyncio.run(run())):
        alone: list = []
        own = pipeline().generate(PROMPTS[row], seed=row, on_step=alone.append)[0]
        *steps, result = events
        assert [(step.done, step.total, tuple(step.rows)) for step in steps] == [
            (n, 3, (0,)) for n in (1, 2, 3)
        ]
        for step, single in zip(steps, alone, strict=True):
            assert np.allclose(step.state.latents, single.state.latents, rtol=1e-3, atol=1e-2)
            assert np.allclose(step.state.clean, single.state.clean, rtol=1e-3, atol=1e-2)
        assert level_difference(result.value, own) <= 1


def test_previews_are_spread_over_the_steps() -> None:
    async def run() -> list:
        async with started() as engine:
            return [event async for event in engine.stream(generate(num_previews=2, num_steps=6))]

    previews = [event for event in asyncio.run(run()) if isinstance(event, Preview)]
    assert [(preview.done, preview.total) for preview in previews] == [(2, 6), (4, 6)]
    assert all(preview.image.size == (32, 32) for preview in previews)


def test_a_full_queue_refuses_with_the_seconds_that_it_needs_and_takes_several_jobs_or_none() -> None:
    async def run() -> None:
        async with started(Limits(max_queue=3)) as engine, held(engine):
            running = engine.stream(generate())
            await asyncio.sleep(0.05)
            assert (engine.num_running, engine.num_waiting) == (1, 0)
            engine.streams([generate(), generate()])
            with pytest.raises(Overloaded) as refused:
                engine.streams([generate(), generate()])
            assert refused.value.retry_after >= 1
            assert engine.num_waiting == 2
            engine.stream(generate())
            with pytest.raises(Overloaded):
                engine.stream(generate())
            await running.aclose()

    asyncio.run(run())


def test_a_job_that_is_not_done_in_time_is_given_up_and_leaves_the_queue() -> None:
    async def run() -> None:
        async with started(Limits(timeout=0.1)) as engine, held(engine):
            engine.stream(generate())
            await asyncio.sleep(0.05)
            with pytest.raises(TimedOut, match=r"not done within 0\.1 s"):
                await engine.run(generate())
            assert engine.num_waiting == 0

    asyncio.run(run())


def test_a_cancelled_job_leaves_the_queue_and_its_neighbours_alone() -> None:
    reports: list[BatchReport] = []

    async def run() -> Result:
        async with started(on_batch=reports.append) as engine, held(engine) as gate:
            engine.stream(ask())
            await asyncio.sleep(0.05)
            leaving, staying = (
                asyncio.create_task(engine.run(generate())),
                asyncio.create_task(engine.run(generate(seed=7))),
            )
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            assert engine.num_waiting == 1
            gate.set()
            return await staying

    result = asyncio.run(run())
    assert level_difference(result.value, pipeline().generate("a dog", seed=7)[0]) <= 1
    assert [(report.verb, report.size) for report in reports] == [("answer", 1), ("generate", 1)]


def test_a_call_that_nobody_waits_for_ends_with_its_next_step() -> None:
    async def run() -> None:
        async with started() as engine:
            stream = engine.stream(generate(num_steps=5000))
            await anext(stream)
            await stream.aclose()
            async with asyncio.timeout(5):
                await engine.run(generate(num_steps=1))

    asyncio.run(run())


def test_what_is_wrong_with_one_sample_fails_that_job_alone() -> None:
    async def run() -> list:
        async with started(Limits(max_wait=300)) as engine:
            jobs = [generate("a dog", 3), generate("  "), generate("a cat", 4)]
            return await asyncio.gather(*[engine.run(job) for job in jobs], return_exceptions=True)

    first, wrong, last = asyncio.run(run())
    assert isinstance(wrong, ValueError)
    assert "prompt is empty" in str(wrong)
    assert level_difference(first.value, pipeline().generate("a dog", seed=3)[0]) <= 1
    assert level_difference(last.value, pipeline().generate("a cat", seed=4)[0]) <= 1


def test_a_fault_of_the_model_fails_its_batch_and_the_next_one_is_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corrupt = tiny_pipeline()

    async def run() -> list:
        engine = Engine(corrupt, Limits(max_wait=300))
        await engine.start()
        with monkeypatch.context() as patch:
            patch.setattr(corrupt, "generate", lambda *_, **__: 1 / 0)
            faults = await asyncio.gather(
                engine.run(generate()), engine.run(generate()), return_exceptions=True
            )
        after = await engine.run(generate())
        await engine.stop()
        return [*faults, after]

    *faults, after = asyncio.run(run())
    assert [type(fault) for fault in faults] == [ZeroDivisionError] * 2
    assert isinstance(after, Result)
    assert "a call of generate failed" in caplog.text


def test_what_the_model_does_not_know_is_reported_to_the_client_who_wrote_it_and_nobody_else() -> None:
    async def run() -> list[Result]:
        async with started(Limits(max_wait=300)) as engine:
            blanks = Job("infill", {"image": noise_image(1), "text": "a zebra ___ dog"})
            return await asyncio.gather(
                engine.run(generate("a hat")), engine.run(generate("a dog")), engine.run(blanks)
            )

    hat, dog, zebra = asyncio.run(run())
    assert dog.warnings == ()
    assert ["'hat'" in notice for notice in hat.warnings] == [True]
    assert ["'zebra'" in notice for notice in zebra.warnings] == [True]


def test_stopping_finishes_what_was_taken_and_takes_no_more() -> None:
    async def run() -> list[Result]:
        engine = Engine(pipeline())
        await engine.start()
        tasks = [
            asyncio.create_task(engine.run(job)) for job in [generate(num_steps=20), ask(), generate(seed=5)]
        ]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(engine.stop(grace=30))
        await asyncio.sleep(0)
        with pytest.raises(Stopping):
            engine.stream(generate())
        await stopping
        return [task.result() for task in tasks]

    assert all(isinstance(result, Result) for result in asyncio.run(run()))


def test_stopping_gives_up_what_is_not_done_within_the_grace() -> None:
    async def run() -> None:
        engine = Engine(pipeline())
        await engine.start()
        tasks = [asyncio.create_task(engine.run(job)) for job in [generate(num_steps=100_000), ask()]]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await engine.stop(grace=0.1)
        faults = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(fault) for fault in faults] == [Stopping, Stopping]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_size", 0),
        ("max_queue", -1),
        ("max_wait", float("nan")),
        ("timeout", 0),
        ("timeout", float("inf")),
    ],
)
def test_limits_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})
