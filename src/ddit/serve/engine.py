"""The engine under the server: jobs of many clients, batched into calls of one `Pipeline`.

Jobs wait in a bounded queue of the event loop. One worker thread runs the model, one call at a time: the oldest job
with all others of its kind. Every sample has its own seed, so that each client gets what a call of its own would give.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from ddit.diffusion.text_sampler import TextState
from ddit.inference.batching import Step
from ddit.pipeline import Pipeline
from ddit.serve.calls import call_pipeline
from ddit.serve.jobs import BatchReport, Job, Overloaded, Preview, Result, Stopping, TimedOut
from ddit.serve.options import Limits
from ddit.serve.texts import TextView

log = logging.getLogger(__name__)


class _Abandoned(Exception):
    """Raised out of a call whose jobs nobody waits for any more."""


@dataclass(eq=False)
class Stream:
    """The events of one job: an asynchronous iterator over its steps and, as the last one, its `Result`.

    To leave it early, call `aclose` (or use `contextlib.aclosing`), which drops the job. It belongs to the engine's
    event loop.

    The iteration raises TimedOut, Stopping, or what the pipeline raises for this job.
    """

    job: Job
    timeout: float
    deadline: float  # of the loop's clock
    wants_steps: bool
    created: float = field(default_factory=time.monotonic)
    is_wanted: bool = True
    state: Any = None
    first_block_seconds: float | None = None
    _events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Step[Any] | Preview | Result:
        if not self.is_wanted and self._events.empty():
            raise StopAsyncIteration
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self._events.get()
        except TimeoutError:
            self.drop()
            raise self._late() from None
        except asyncio.CancelledError:
            self.drop()
            raise
        if isinstance(event, Exception):
            raise event
        return event

    def _late(self) -> TimedOut:
        return TimedOut(f"not done within {self.timeout:g} s")

    def expire(self) -> None:
        """Ends it: its time is over."""
        self.put(self._late())

    async def result(self) -> Result:
        """The result, past all steps."""
        async for event in self:
            if isinstance(event, Result):
                return event
        raise asyncio.CancelledError  # it was closed elsewhere

    async def aclose(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Nobody waits for it any more; if its call is running, its rows are ignored."""
        self.is_wanted = False

    def put(self, event: Any) -> None:
        """Adds an event, from the event loop. A result or an exception is the last one."""
        if not self.is_wanted:
            return
        if isinstance(event, Result | Exception):
            self.is_wanted = False
        self._events.put_nowait(event)


class Engine:
    """Runs jobs in batches on one pipeline.

    Args:
        pipeline: used by the engine's thread alone while it runs.
        limits: of its batches, its queue and the time of a job.
        on_batch: called on the event loop after every call of the model.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        limits: Limits | None = None,
        *,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.limits = limits or Limits()
        self.on_batch = on_batch
        self._waiting: deque[Stream] = deque()
        self._running: list[Stream] = []
        self._seconds_per_job = 0.2  # a running mean, for Retry-After
        self._is_stopping = False
        self._dispatcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the worker; the engine then belongs to this event loop."""
        if self._dispatcher is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._arrival, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._is_stopping = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ddit-model")
        self._dispatcher = asyncio.create_task(self._dispatch(), name="ddit-dispatcher")

    async def stop(self, grace: float = 0.0) -> None:
        """Takes no more jobs, finishes those it has within `grace` seconds, drops the rest, ends the worker."""
        dispatcher, self._is_stopping = self._dispatcher, True
        if dispatcher is None:
            return
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            for stream in [*self._waiting, *self._running]:
                stream.put(Stopping("the server was stopped before this was done"))
            self._waiting.clear()
            self._arrival.set()
            await self._idle.wait()  # a call that nobody waits for ends with its next step
        dispatcher.cancel()
        await asyncio.gather(dispatcher, return_exceptions=True)
        self._executor.shutdown()
        self._dispatcher = None

    @property
    def is_running(self) -> bool:
        return self._dispatcher is not None and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue that someone waits for."""
        self._drop_unwanted()
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Jobs of the call that is running."""
        return len(self._running)

    # --- jobs ---

    def stream(self, job: Job) -> Stream:
        """Queues a job. Raises Overloaded if the queue is full, Stopping if the engine does not run."""
        return self.streams([job])[0]

    def streams(self, jobs: Sequence[Job], *, steps: bool = True) -> list[Stream]:
        """Queues several jobs, all or none of them; without `steps` their streams give results only."""
        if not self.is_running:
            raise Stopping("the server is shutting down")
        self._drop_unwanted()
        if len(self._waiting) + len(jobs) > self.limits.max_queue:
            raise Overloaded(self.retry_after)
        timeout = self.limits.timeout
        streams = [Stream(job, timeout, self._loop.time() + timeout, steps) for job in jobs]
        self._waiting += streams
        self._arrival.set()
        self._idle.clear()
        return streams

    async def run(self, job: Job) -> Result:
        """The result of a job. Raises as `stream` and as the iteration of a stream."""
        return (await self.run_all([job]))[0]

    async def run_all(self, jobs: Sequence[Job]) -> list[Result]:
        """The results of several jobs, all of them or an error."""
        streams = self.streams(jobs, steps=False)
        try:
            return [await stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.drop()

    async def in_worker(self, function: Callable[..., Any], *given: Any) -> Any:
        """Runs a function in the model's thread, between calls: for work with the pipeline that is not a job."""
        return await self._loop.run_in_executor(self._executor, function, *given)

    @property
    def retry_after(self) -> int:
        """Seconds until the jobs of now are done, by the measured rate."""
        count = len(self._waiting) + len(self._running)
        return min(max(math.ceil(count * self._seconds_per_job), 1), 600)

    def _drop_unwanted(self) -> None:
        """Takes from the queue what nobody waits for and what is too late."""
        now = self._loop.time()
        for stream in self._waiting:
            if stream.deadline <= now:
                stream.expire()
        if any(not stream.is_wanted for stream in self._waiting):
            self._waiting = deque(stream for stream in self._waiting if stream.is_wanted)

    # --- batches, on the event loop ---

    async def _dispatch(self) -> None:
        was_idle = True
        while True:
            if not self._waiting:
                self._idle.set()
                self._arrival.clear()
                await self._arrival.wait()
                was_idle = True
            if was_idle:
                await self._gather()
            was_idle = False
            batch = self._next_batch()
            if batch:
                await self._run(batch)

    async def _gather(self) -> None:
        """Waits until the oldest job's batch is full, at most `max_wait`."""
        until = self._loop.time() + self.limits.max_wait / 1000
        while (left := until - self._loop.time()) > 0 and not self._is_stopping:
            if len(self._next_batch(take=False)) >= self.limits.max_batch_size:
                return
            self._arrival.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrival.wait()
            except TimeoutError:
                return

    def _next_batch(self, *, take: bool = True) -> list[Stream]:
        """The oldest job and the next ones of its kind."""
        self._drop_unwanted()
        if not self._waiting:
            return []
        kind = self._waiting[0].job.kind
        batch = [stream for stream in self._waiting if stream.job.kind == kind][: self.limits.max_batch_size]
        if take:
            taken = set(map(id, batch))
            self._waiting = deque(stream for stream in self._waiting if id(stream) not in taken)
        return batch

    async def _run(self, batch: list[Stream]) -> None:
        self._running = batch
        try:
            await self._attempt(batch)
        finally:
            self._running = []

    async def _attempt(self, batch: list[Stream]) -> None:
        """One call. A ValueError is the fault of a sample: then each goes alone, so that only that one fails."""
        began, splitter = time.monotonic(), _StepSplitter(self, batch)
        jobs = [stream.job for stream in batch]
        try:
            results = await self._loop.run_in_executor(
                self._executor, call_pipeline, self.pipeline, jobs, splitter.on_step
            )
        except _Abandoned:
            return
        except ValueError as error:
            if len(batch) == 1:
                batch[0].put(error)
                return
            for stream in batch:
                await self._attempt([stream])
            return
        except Exception as error:
            log.exception("a call of %s failed", jobs[0].verb)
            for stream in batch:
                stream.put(error)
            return
        seconds = time.monotonic() - began
        self._seconds_per_job += 0.2 * (seconds / len(batch) - self._seconds_per_job)
        if self.on_batch is not None:
            self.on_batch(BatchReport(jobs[0].verb, len(batch), splitter.count, seconds))
        now = time.monotonic()
        for stream, (value, warnings) in zip(batch, results, strict=True):
            seconds, first = now - stream.created, stream.first_block_seconds
            stream.put(Result(value, stream.state, warnings, seconds, first))


class _StepSplitter:
    """Gives each stream its rows of a call's steps; `on_step` runs in the worker's thread."""

    def __init__(self, engine: Engine, batch: list[Stream]) -> None:
        self.engine, self.batch = engine, batch
        self.view = TextView(engine.pipeline, batch[0].job.verb)
        self.count = 0

    def on_step(self, step: Step[Any]) -> None:
        self.count += 1
        if not any(stream.is_wanted for stream in self.batch):
            raise _Abandoned
        events: list[tuple[Stream, Any]] = []
        for place, row in enumerate(step.rows):
            stream = self.batch[row]
            if not stream.is_wanted:
                continue
            own: Any = type(step.state)(*(part[place : place + 1] for part in step.state))
            stream.state = own
            if (
                isinstance(step.state, TextState)
                and stream.first_block_seconds is None
                and self.view.has_block(own)
            ):
                stream.first_block_seconds = time.monotonic() - stream.created
            if stream.wants_steps:
                events.append((stream, Step(step.done, step.total, (0,), own)))
                if stream.job.num_previews and self._is_due(stream.job, step):
                    image = self.engine.pipeline.decode(own.clean)[0]
                    events.append((stream, Preview(step.done, step.total, image)))
        if events:
            self.engine._loop.call_soon_threadsafe(_put_all, events)

    @staticmethod
    def _is_due(job: Job, step: Step[Any]) -> bool:
        """Whether a preview falls on this step: they come after 1/(n+1), 2/(n+1), ... of the steps."""
        parts = job.num_previews + 1
        return (
            step.done * parts // step.total > (step.done - 1) * parts // step.total and step.done < step.total
        )


def _put_all(events: Sequence[tuple[Stream, Any]]) -> None:
    for stream, event in events:
        stream.put(event)
