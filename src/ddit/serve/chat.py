"""Chat completions in OpenAI's form: an answer, a caption or filled blanks, about the newest image."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from PIL.Image import Image
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from ddit.inference.batching import Step
from ddit.prompts import BLANK
from ddit.serve.answers import ChatCompletion, ChatDetails, ChatMessage, ChatUsage, Choice
from ddit.serve.errors import ApiError
from ddit.serve.jobs import Job, Result, Verb, make_options
from ddit.serve.responses import event, event_stream, merge, run_jobs, started
from ddit.serve.schemas import ChatRequest, ContentPart, Message
from ddit.serve.service import ANSWERS, Service, distinct_warnings, random_seed
from ddit.serve.texts import TextView


@dataclass(frozen=True)
class ChatCall:
    """A request for texts, ready to run."""

    body: ChatRequest
    jobs: list[Job]
    id: str
    created: int
    model: str

    @property
    def verb(self) -> Verb:
        return self.jobs[0].verb

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def add_chat_routes(app: FastAPI, service: Service) -> None:
    """Adds /v1/chat/completions."""

    @app.post(
        "/v1/chat/completions",
        tags=["chat"],
        responses=ANSWERS,
        response_model=ChatCompletion,
        summary="Generate texts about an image",
    )
    async def complete(request: Request, body: ChatRequest) -> ChatCompletion | Response:
        call = await _prepare(service, body)
        if body.stream:
            events = merge(service.engine.streams(call.jobs))
            return event_stream(_stream(service, call, await started(request, events)))
        return _completion(service, call, await run_jobs(request, service.engine, call.jobs))


async def _prepare(service: Service, body: ChatRequest) -> ChatCall:
    """The jobs of a request, within this server's limits. Raises ApiError."""
    service.check_model(body.model)
    count = body.n or 1
    service.check_count(count, service.config.max_n, "n")
    service.check_count(body.options.get("num_steps"), service.config.max_steps, "num_steps")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options needs stream", param="stream_options")
    text = _last_text(body.messages)
    image = await _newest_image(service, body.messages)
    if image is None and not text.strip() and body.task != "caption":
        raise ApiError("messages contain neither a text of a user nor an image", param="messages")
    verb: Verb = body.task or (
        "caption" if not text.strip() else "infill" if BLANK.search(text) else "answer"
    )
    sample: dict[str, Any] = {"image": image}
    if verb != "caption":
        sample["question" if verb == "answer" else "text"] = service.check_text(
            text, "messages", "the last message of a user"
        )
    options = make_options(**body.options, length=_length(service, body, verb))
    seed = random_seed() if body.seed is None else body.seed
    jobs = [Job(verb, sample, seed + row, options) for row in range(count)]
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    return ChatCall(body, jobs, answer_id, int(time.time()), service.model_name)


def _length(service: Service, body: ChatRequest, verb: Verb) -> int | None:
    """Positions to fill, by max_tokens; None, and the most, is the model's own number. A text to infill has its own."""
    most = body.max_completion_tokens or body.max_tokens
    settings = service.engine.pipeline.settings
    own = settings.answer_length if verb == "answer" else settings.caption_length
    return None if most is None or verb == "infill" or most >= (own or settings.text_length) else most


def _last_text(messages: Sequence[Message]) -> str:
    """The text of the last message of a user. Raises ApiError if there is no such message."""
    for message in reversed(messages):
        if message.role == "user":
            if message.content is None or isinstance(message.content, str):
                return message.content or ""
            return "\n".join(part.text for part in message.content if part.text)
    raise ApiError("messages contain none of a user", param="messages")


async def _newest_image(service: Service, messages: Sequence[Message]) -> Image | None:
    """The last image of the conversation, if any. Others are not read."""
    for number, message in reversed(list(enumerate(messages))):
        if isinstance(message.content, list):
            for place, part in reversed(list(enumerate(message.content))):
                if part.type != "text":
                    return await _read_part(service, part, f"messages.{number}.content.{place}")
    return None


async def _read_part(service: Service, part: ContentPart, param: str) -> Image:
    if part.type == "image_url" and part.image_url is not None:
        return await service.reader.from_url(part.image_url.url, f"{param}.image_url.url")
    file = part.file
    assert file is not None
    if file.file_id is not None:
        return await service.reader.from_file(file.file_id, f"{param}.file.file_id")
    return await service.reader.from_url(file.file_data or "", f"{param}.file.file_data")


def _completion(service: Service, call: ChatCall, results: Sequence[Result]) -> ChatCompletion:
    """The answer that is not streamed."""
    view = TextView(service.engine.pipeline, call.verb)
    choices = [
        Choice(
            index=number,
            message=ChatMessage(content=result.value),
            finish_reason="length" if view.is_cut(result.state) else "stop",
        )
        for number, result in enumerate(results)
    ]
    seeds = [job.seed for job in call.jobs]
    return ChatCompletion(
        **call.head("chat.completion"),
        choices=choices,
        usage=_usage(service, call, results),
        ddit=ChatDetails(task=call.verb, seeds=seeds, notices=distinct_warnings(results)),
    )


async def _stream(
    service: Service, call: ChatCall, events: AsyncGenerator[tuple[int, Any]]
) -> AsyncGenerator[ServerSentEvent]:
    """A chunk a step: its delta is what can be appended, its field `ddit` the whole text so far."""
    views = [TextView(service.engine.pipeline, call.verb) for _ in call.jobs]
    wants_usage = call.body.stream_options is not None and call.body.stream_options.include_usage
    results: list[Result] = []

    def chunk(number: int, delta: Any, own: dict[str, Any], finish: str | None = None) -> ServerSentEvent:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if wants_usage else {}
        return event({**call.head("chat.completion.chunk"), "choices": [choice], **usage, "ddit": own})

    for number, job in enumerate(call.jobs):
        yield chunk(number, {"role": "assistant", "content": ""}, {"task": call.verb, "seed": job.seed})
    async for number, found in events:
        view = views[number]
        if isinstance(found, Step):
            tokens = [token.as_dict() for token in view.tokens(found.state)]
            delta = {"content": view.advance(found.state)}
            yield chunk(number, delta, {"pass": found.done, "of": found.total, "tokens": tokens})
        elif isinstance(found, Result):
            results.append(found)
            own = {"text": found.value, "notices": list(found.warnings)}
            yield chunk(number, {"content": view.finish(found.value)}, own)
            yield chunk(number, {}, {}, "length" if view.is_cut(found.state) else "stop")
    if wants_usage:
        usage = _usage(service, call, results).model_dump()
        yield event({**call.head("chat.completion.chunk"), "choices": [], "usage": usage})
    yield event("[DONE]")


def _usage(service: Service, call: ChatCall, results: Sequence[Result]) -> ChatUsage:
    sample = call.jobs[0].sample
    text = BLANK.sub(" ", sample.get("text") or "")
    prompt = service.count_tokens(sample.get("question"), text)
    if sample["image"] is not None:
        prompt += service.count_image_tokens()
    view = TextView(service.engine.pipeline, call.verb)
    count = sum(view.num_generated(result.state) for result in results)
    return ChatUsage(prompt_tokens=prompt, completion_tokens=count, total_tokens=prompt + count)
