"""Chat completions in OpenAI's form: a question, a caption, or blanks to fill in, about the newest picture."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ddit.inference.batching import Step
from ddit.inference.text_generator import WRITING_FIELDS
from ddit.prompts import BLANK
from ddit.serve.errors import ApiError
from ddit.serve.jobs import Job, Result, Verb, make_options
from ddit.serve.responses import event_stream, merge, run_jobs, sse, started
from ddit.serve.schemas import ChatRequest, ContentPart, Message
from ddit.serve.service import FAULTS, Service, distinct, random_seed
from ddit.serve.texts import TextView

CHAT_ANSWER: dict[str, Any] = {
    "description": "The text; with `stream`, server-sent events",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["id", "object", "created", "model", "choices", "usage"],
                "properties": {
                    "id": {"type": "string"},
                    "object": {"const": "chat.completion"},
                    "created": {"type": "integer"},
                    "model": {"type": "string"},
                    "choices": {"type": "array", "items": {"type": "object"}},
                    "usage": {"type": "object"},
                    "ddit": {"type": "object", "description": "the task, seeds, and notices"},
                },
            }
        },
        "text/event-stream": {"schema": {"type": "string"}},
    },
}


@dataclass(frozen=True)
class Conversation:
    """A request to write, ready to run."""

    asked: ChatRequest
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
        responses={**FAULTS, 200: CHAT_ANSWER},
        summary="Write about a picture",
    )
    async def complete(request: Request, asked: ChatRequest) -> Response:
        talk = await _conversation(service, asked)
        if asked.stream:
            events = merge(service.engine.streams(talk.jobs))
            return event_stream(_stream(service, talk, await started(request, events)))
        results = await run_jobs(request, service.engine, talk.jobs)
        return JSONResponse(_whole(service, talk, results))


async def _conversation(service: Service, asked: ChatRequest) -> Conversation:
    """What is asked, as jobs within this server's limits. Raises ApiError."""
    service.check_model(asked.model)
    count = asked.n or 1
    service.check_count(count, service.config.max_n, "n")
    service.check_count(asked.num_steps, service.config.max_steps, "num_steps")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError("stream_options goes with stream", param="stream_options")
    text = _last_text(asked.messages)
    image = await _newest_picture(service, asked.messages)
    if image is None and not text.strip() and asked.task != "caption":
        raise ApiError("messages hold neither a text of a user nor a picture", param="messages")
    verb: Verb = asked.task or (
        "caption" if not text.strip() else "infill" if BLANK.search(text) else "answer"
    )
    sample: dict[str, Any] = {"image": image}
    if verb != "caption":
        sample["question" if verb == "answer" else "text"] = service.check_text(
            text, "messages", "the last message of a user"
        )
    options = make_options(
        num_steps=asked.num_steps,
        length=_window(service, asked, verb),
        **{name: getattr(asked, name) for name in WRITING_FIELDS},
    )
    seed = random_seed() if asked.seed is None else asked.seed
    jobs = [Job(verb, sample, seed + row, options) for row in range(count)]
    return Conversation(
        asked, jobs, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), service.config.model_name
    )


def _window(service: Service, asked: ChatRequest, verb: Verb) -> int | None:
    """Positions to write: max_tokens, but no more than the model's own. Blanks are as many as there are."""
    most = asked.max_completion_tokens or asked.max_tokens
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
    raise ApiError("messages hold none of a user", param="messages")


async def _newest_picture(service: Service, messages: Sequence[Message]) -> Any:
    """The last picture of the conversation, if any. Others are not looked at."""
    for number, message in reversed(list(enumerate(messages))):
        if isinstance(message.content, list):
            for place, part in reversed(list(enumerate(message.content))):
                if part.type != "text":
                    return await _picture(service, part, f"messages.{number}.content.{place}")
    return None


async def _picture(service: Service, part: ContentPart, param: str) -> Any:
    if part.type == "image_url" and part.image_url is not None:
        return await service.reader.from_url(part.image_url.url, f"{param}.image_url.url")
    file = part.file
    assert file is not None
    if file.file_id is not None:
        return await service.reader.from_file(file.file_id, f"{param}.file.file_id")
    return await service.reader.from_url(file.file_data or "", f"{param}.file.file_data")


def _whole(service: Service, talk: Conversation, results: Sequence[Result]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    view = TextView(service.engine.pipeline, talk.verb)
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": result.value, "refusal": None},
            "logprobs": None,
            "finish_reason": "length" if view.is_cut(result.state) else "stop",
        }
        for number, result in enumerate(results)
    ]
    return {
        **talk.head("chat.completion"),
        "choices": choices,
        "usage": _usage(service, talk, results),
        "ddit": {
            "task": talk.verb,
            "seeds": [job.seed for job in talk.jobs],
            "notices": distinct([result.notices for result in results]),
        },
    }


async def _stream(
    service: Service, talk: Conversation, events: AsyncIterator[tuple[int, Any]]
) -> AsyncIterator[str]:
    """A chunk a pass: its delta is what may be appended, its field `ddit` the whole text as it settles."""
    views = [TextView(service.engine.pipeline, talk.verb) for _ in talk.jobs]
    wants_usage = talk.asked.stream_options is not None and talk.asked.stream_options.include_usage
    results: list[Result] = []

    def chunk(number: int, delta: dict[str, Any], own: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if wants_usage else {}
        return sse({**talk.head("chat.completion.chunk"), "choices": [choice], **usage, "ddit": own})

    for number, job in enumerate(talk.jobs):
        yield chunk(number, {"role": "assistant", "content": ""}, {"task": talk.verb, "seed": job.seed})
    async for number, event in events:
        view = views[number]
        if isinstance(event, Step):
            tokens = [token.as_dict() for token in view.tokens(event.state)]
            delta = {"content": view.advance(event.state)}
            yield chunk(number, delta, {"pass": event.done, "of": event.total, "tokens": tokens})
        elif isinstance(event, Result):
            results.append(event)
            own = {"text": event.value, "notices": list(event.notices)}
            yield chunk(number, {"content": view.finish(event.value)}, own)
            yield chunk(number, {}, {}, "length" if view.is_cut(event.state) else "stop")
    if wants_usage:
        usage = _usage(service, talk, results)
        yield sse({**talk.head("chat.completion.chunk"), "choices": [], "usage": usage})
    yield sse("[DONE]")


def _usage(service: Service, talk: Conversation, results: Sequence[Result]) -> dict[str, int]:
    """Tokens: of the text and the picture that were read, and written."""
    sample = talk.jobs[0].sample
    read = service.count_tokens(sample.get("question"), BLANK.sub(" ", cast(str, sample.get("text") or "")))
    if sample["image"] is not None:
        read += service.count_image_tokens()
    view = TextView(service.engine.pipeline, talk.verb)
    written = sum(view.num_written(result.state) for result in results)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
