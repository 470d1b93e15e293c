"""Requests and the engine: the jobs of a request together, for as long as its client stays."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from ddit.inference.batching import Step
from ddit.serve.engine import Engine, Stream
from ddit.serve.errors import ApiError, as_job_error
from ddit.serve.jobs import Job, Preview, Result

Value = TypeVar("Value")


async def run_jobs(request: Request, engine: Engine, jobs: Sequence[Job]) -> list[Result]:
    """The results of a request's jobs, which are dropped if the client leaves. Raises ApiError."""
    try:
        return await while_connected(request, engine.run_all(jobs))
    except Exception as error:
        raise as_job_error(error) from error


async def while_connected(request: Request, work: Awaitable[Value]) -> Value:
    """The value of the work, which is cancelled if the client leaves. The request's body must have been read."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client left", status=499, code="client_left")
        return await task
    finally:
        for one in (task, leaving):
            one.cancel()
        with suppress(asyncio.CancelledError):
            await leaving


async def merge(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Step[Any] | Preview | Result]]:
    """The events of several jobs as they come, with the job's number. Drops all jobs when it is left."""
    events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def follow(number: int, stream: Stream) -> None:
        try:
            async for found in stream:
                events.put_nowait((number, found))
        except Exception as error:
            events.put_nowait((number, error))

    tasks = [asyncio.create_task(follow(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            number, found = await events.get()
            if isinstance(found, Exception):
                raise found
            left -= isinstance(found, Result)
            yield number, found
    finally:
        for task, stream in zip(tasks, streams, strict=True):
            task.cancel()
            stream.drop()
        await asyncio.gather(*tasks, return_exceptions=True)


async def started(request: Request, events: AsyncGenerator[Value]) -> AsyncGenerator[Value]:
    """The same events, once the first has come: a fault before it still has its own status. Raises ApiError."""
    try:
        first = await while_connected(request, anext(events))
    except Exception as error:
        raise as_job_error(error) from error

    async def rest() -> AsyncGenerator[Value]:
        async with aclosing(events):
            yield first
            async for found in events:
                yield found

    return rest()


# --- server-sent events ---


def event(data: Any, kind: str | None = None) -> ServerSentEvent:
    """An event of a stream: text, or what is sent as JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    return ServerSentEvent(text, event=kind, sep="\n")


def event_stream(events: AsyncGenerator[ServerSentEvent]) -> EventSourceResponse:
    """An answer of server-sent events, with pings while nothing happens; it is cancelled if the client leaves.

    At SIGTERM the response itself would end at once, but the engine ends the stream: its jobs are finished first.
    """
    return EventSourceResponse(_with_fault(events), sep="\n", shutdown_grace_period=math.inf)


async def _with_fault(events: AsyncGenerator[ServerSentEvent]) -> AsyncGenerator[ServerSentEvent]:
    """A fault after the answer's head was sent becomes its last event, as OpenAI's clients read it."""
    async with aclosing(events):
        try:
            async for found in events:
                yield found
        except Exception as error:
            yield event(as_job_error(error).body, "error")
