"""Chat completions in OpenAI's form: an answer, a caption or filled blanks, about the newest image."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from ddit.serve.service import ANSWERS, Service, distinct_warnings, following_seeds
from ddit.serve.texts import TextView
from ddit.settings import MAX_LENGTH


@dataclass(frozen=True)
class ChatCall:
    """A request for texts, ready to run."""

    body: ChatRequest
    jobs: list[Job]
    notices: list[str]  # about the request; those about a text come with its result
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
    service.check_count(body.n, service.config.max_n, "n")
    service.check_count(body.options.get("num_steps"), service.config.max_steps, "num_steps")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options needs stream", param="stream_options")
    asked = _last_of_user(body.messages)
    text = body.messages[asked].text
    shown = _newest_with_image(body.messages)
    image = None if shown is None else await _read_image(service, body.messages, shown)
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
    if verb == "answer" and service.engine.pipeline.transformer.config.text_block_size:
        sample["history"] = _history(body.messages[shown or 0 : asked]) or None
    given = body.options if verb == "caption" else {**body.options, "style": None}
    options = make_options(**given, length=_length(service, body, verb))
    jobs = [Job(verb, sample, seed, options) for seed in following_seeds(body.seed, body.n)]
    num_told = 2 * len(sample.get("history") or ())
    notices = [*body.notices, *_unused(body, verb, asked, shown, num_told)]
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    return ChatCall(body, jobs, notices, answer_id, int(time.time()), service.model_name)


def _length(service: Service, body: ChatRequest, verb: Verb) -> int | None:
    """Positions to fill, by max_tokens; None is the model's own number, and the most unless it writes in blocks.

    A text to infill has its own.
    """
    pipeline, most = service.engine.pipeline, body.most_tokens
    if most is None or verb == "infill":
        return None
    if pipeline.transformer.config.text_block_size:
        return min(most, MAX_LENGTH)
    settings = pipeline.settings
    own = settings.answer_length if verb == "answer" else settings.caption_length
    return None if most >= (own or settings.text_length) else most


def _history(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The questions and answers among messages, oldest first."""
    return [
        (one.text, other.text)
        for one, other in pairwise(messages)
        if (one.role, other.role) == ("user", "assistant") and one.text.strip() and other.text.strip()
    ]


def _last_of_user(messages: Sequence[Message]) -> int:
    """The place of the last message of a user, whose text is shown. Raises ApiError if there is none."""
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    if not places:
        raise ApiError("messages contain none of a user", param="messages")
    return places[-1]


def _newest_with_image(messages: Sequence[Message]) -> int | None:
    """The place of the last message with an image, which is shown."""
    places = [place for place, message in enumerate(messages) if message.images]
    return places[-1] if places else None


async def _read_image(service: Service, messages: Sequence[Message], place: int) -> Image:
    """The image of that message. Raises ApiError if it has several: the model is shown one."""
    images = messages[place].images
    param = f"messages.{place}.content"
    if len(images) > 1:
        raise ApiError(
            f"the model is shown one image: messages.{place} has {len(images)}", param=param, code="too_many_images"
        )  # fmt: skip
    content = messages[place].content
    assert isinstance(content, list)
    return await _read_part(service, images[0], f"{param}.{content.index(images[0])}")


def _unused(body: ChatRequest, verb: Verb, asked: int, shown: int | None, num_told: int) -> list[str]:
    """Notices about what the model is not shown. num_told: texts of earlier turns that it is."""
    found = []
    messages = body.messages
    if num_images := sum(len(message.images) for message in messages[:shown]):
        found.append(f"images of earlier messages are not shown to the model: {num_images}")
    num_texts = sum(bool(m.text.strip()) for place, m in enumerate(messages) if place != asked) - num_told
    if num_texts:
        found.append(f"messages other than the last of a user are not shown to the model: {num_texts}")
    if verb == "caption" and messages[asked].text.strip():
        found.append("the text of the message is not shown to the model, since task is caption")
    if shown is not None:
        url = messages[shown].images[0].image_url
        if url is not None and url.detail not in (None, "auto", "low"):
            found.append("'detail' is ignored: the model sees all images at one size")
    if verb == "infill" and body.most_tokens is not None:
        found.append("'max_tokens' is ignored: a text with blanks has its own length")
    if verb != "caption" and "style" in body.options:
        found.append("'style' is ignored: it is of captions")
    return found


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
        ddit=ChatDetails(
            task=call.verb,
            seeds=seeds,
            notices=[*call.notices, *distinct_warnings(results)],
            first_block_seconds=[r.first_block_seconds for r in results if r.first_block_seconds is not None],
        ),
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
            own: dict[str, Any] = {"text": found.value, "notices": [*call.notices, *found.warnings]}
            if found.first_block_seconds is not None:
                own["first_block_seconds"] = found.first_block_seconds
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
