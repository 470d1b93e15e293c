"""Requests and the engine: jobs of one request together, for as long as its client is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from ddit.inference.batching import Step
from ddit.serve.engine import Engine, Stream
from ddit.serve.errors import ApiError, as_job_error
from ddit.serve.jobs import Job, Preview, Result

Value = TypeVar("Value")

PING_SECONDS = 15.0
"""How long a stream may be silent: proxies close connections on which nothing happens."""


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


async def merge(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Step[Any] | Preview | Result]]:
    """What comes out of several jobs, with the job's number, as it comes. Drops them all when it is left."""
    events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def follow(number: int, stream: Stream) -> None:
        try:
            async for event in stream:
                events.put_nowait((number, event))
        except Exception as error:
            events.put_nowait((number, error))

    tasks = [asyncio.create_task(follow(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            number, event = await events.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Result)
            yield number, event
    finally:
        for task, stream in zip(tasks, streams, strict=True):
            task.cancel()
            stream.drop()
        await asyncio.gather(*tasks, return_exceptions=True)


def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Server-sent events as an answer, with pings while nothing happens.

    When the client leaves, Starlette cancels the iteration.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _with_pings(_with_errors(events)), media_type="text/event-stream", headers=headers
    )


def sse(data: Any, event: str | None = None) -> str:
    """One server-sent event; data other than a string as JSON, which has no line breaks."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


async def _with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """A fault after the head of the answer is gone becomes its last event, as OpenAI's clients read it."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        yield sse(as_job_error(error).body, "error")


async def _with_pings(events: AsyncIterator[str]) -> AsyncIterator[str]:
    coming = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=PING_SECONDS)
            if not done:
                yield ": ping\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            yield event
            coming = asyncio.ensure_future(anext(events))
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await coming
        await events.aclose()  # type: ignore[attr-defined]


async def started(request: Request, events: AsyncIterator[Value]) -> AsyncIterator[Value]:
    """The same events, once the first has come: a fault before it still has a status of its own. Raises ApiError."""
    try:
        first = await while_connected(request, anext(events))
    except Exception as error:
        raise as_job_error(error) from error

    async def rest() -> AsyncIterator[Value]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    return rest()
