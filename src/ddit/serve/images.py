"""Routes that draw: generations, edits, variations, in OpenAI's form."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ddit.images import upscale_image
from ddit.serve.content import check_is_form, upload_bytes
from ddit.serve.errors import ApiError
from ddit.serve.files import encode_image_file
from ddit.serve.jobs import Job, Preview, Result, Verb, make_options
from ddit.serve.responses import event_stream, merge, run_jobs, sse, started
from ddit.serve.schemas import ApiModel, DrawRequest, EditRequest, GenerationRequest, VariationRequest
from ddit.serve.service import FAULTS, Service, distinct, random_seed

Form = TypeVar("Form", bound=ApiModel)

MAX_FORM_FIELD_BYTES = 64_000

IMAGES_ANSWER: dict[str, Any] = {
    "description": "The pictures; with `stream`, server-sent events",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["created", "data"],
                "properties": {
                    "created": {"type": "integer"},
                    "data": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"b64_json": {"type": "string"}, "url": {"type": "string"}},
                        },
                    },
                    "size": {"type": "string"},
                    "output_format": {"type": "string"},
                    "usage": {"type": "object"},
                    "ddit": {"type": "object", "description": "seeds of the pictures, and notices"},
                },
            }
        },
        "text/event-stream": {"schema": {"type": "string"}},
    },
}


@dataclass(frozen=True)
class Drawing:
    """A request to draw, ready to run: its jobs, and how what they draw is sent back."""

    asked: DrawRequest
    jobs: list[Job]
    event: str  # of streams: "image_generation" or "image_edit"

    @property
    def seeds(self) -> list[int]:
        return [job.seed for job in self.jobs]

    def encode(self, image: Image.Image) -> tuple[bytes, str]:
        """A drawn picture as a file, and its size after enlarging."""
        larger = upscale_image(image, self.asked.upscale)
        data = encode_image_file(larger, self.asked.output_format, self.asked.output_compression)
        return data, f"{larger.width}x{larger.height}"


def add_picture_routes(app: FastAPI, service: Service) -> None:
    """Adds /v1/images/generations, /v1/images/edits and /v1/images/variations."""

    @app.post(
        "/v1/images/generations",
        tags=["images"],
        responses={**FAULTS, 200: IMAGES_ANSWER},
        summary="Draw pictures",
    )
    async def generate(request: Request, asked: GenerationRequest) -> Response:
        prompt = service.check_text(asked.prompt, "prompt")
        drawing = _drawing(service, asked, "generate", {"prompt": prompt}, "image_generation")
        return await _answer(service, request, drawing)

    @app.post(
        "/v1/images/edits", tags=["images"], responses={**FAULTS, 200: IMAGES_ANSWER},
        openapi_extra=_form_document(EditRequest, image=True, mask=False),
        summary="Redraw the masked part of a picture, or, without a mask, vary it",
    )  # fmt: skip
    async def edit(request: Request) -> Response:
        check_is_form(request)
        async with request.form(max_files=4, max_fields=64, max_part_size=MAX_FORM_FIELD_BYTES) as form:
            asked, files = _read_form(EditRequest, form.multi_items())
            sample: dict[str, Any] = {"prompt": service.check_text(asked.prompt, "prompt")}
            sample["image"] = await service.reader.from_bytes(await _file(files, "image"), "image")
            if "mask" in files:
                if asked.strength is not None:
                    raise ApiError("strength is of variations: it goes without a mask", param="strength")
                sample["mask"] = await service.reader.mask_from_bytes(await _file(files, "mask"), "mask")
        verb: Verb = "inpaint" if "mask" in sample else "vary"
        drawing = _drawing(service, asked, verb, sample, "image_edit", strength=asked.strength)
        return await _answer(service, request, drawing)

    @app.post(
        "/v1/images/variations", tags=["images"], responses={**FAULTS, 200: IMAGES_ANSWER},
        openapi_extra=_form_document(VariationRequest, image=True),
        summary="Vary a picture, by a prompt or by the model's caption of it",
    )  # fmt: skip
    async def vary(request: Request) -> Response:
        check_is_form(request)
        async with request.form(max_files=2, max_fields=64, max_part_size=MAX_FORM_FIELD_BYTES) as form:
            asked, files = _read_form(VariationRequest, form.multi_items())
            if "mask" in files:
                raise ApiError("a mask is of edits: use /v1/images/edits", param="mask")
            image = await service.reader.from_bytes(await _file(files, "image"), "image")
        prompt = asked.prompt
        if prompt is None:
            caption = Job("caption", {"image": image}, asked.seed or 0)
            prompt = (await run_jobs(request, service.engine, [caption]))[0].value
            if not prompt:
                raise ApiError("the model has no caption of this picture: give a prompt", param="prompt")
        sample = {"prompt": service.check_text(prompt, "prompt"), "image": image}
        drawing = _drawing(service, asked, "vary", sample, "image_edit", strength=asked.strength)
        return await _answer(service, request, drawing)


def _drawing(
    service: Service, asked: DrawRequest, verb: Verb, sample: dict[str, Any], event: str, **own: Any
) -> Drawing:
    """The jobs of a request within this server's limits. Raises ApiError."""
    service.check_model(asked.model)
    service.check_count(asked.n, service.config.max_n, "n")
    service.check_count(asked.num_steps, service.config.max_steps, "num_steps")
    if asked.negative_prompt is not None:
        sample["negative_prompt"] = service.check_text(asked.negative_prompt, "negative_prompt")
    width, height = (None, None) if asked.size == "auto" else map(int, asked.size.split("x"))
    side = service.engine.pipeline.settings.image_size
    longest = max(width or side, height or side) * asked.upscale  # of what is sent back
    service.check_count(longest, service.config.max_side, "size" if asked.upscale == 1 else "upscale")
    if asked.partial_images and not asked.stream:
        raise ApiError("partial_images goes with stream", param="partial_images")
    if asked.stream and asked.response_format == "url":
        raise ApiError("streams answer with b64_json", param="response_format")
    if asked.best_of > 1 and verb != "generate":
        raise ApiError("best_of is of generations", param="best_of")
    if asked.best_of > 1 and asked.partial_images:
        raise ApiError("partial_images are of one picture: leave out best_of", param="partial_images")
    options = make_options(
        num_steps=asked.num_steps, guidance_scale=asked.guidance_scale, sampler=asked.sampler, height=height,
        width=width, best_of=asked.best_of if asked.best_of > 1 else None, **own,
    )  # fmt: skip
    seed = random_seed() if asked.seed is None else asked.seed
    jobs = [Job(verb, sample, seed + row, options, asked.partial_images) for row in range(asked.n)]
    return Drawing(asked, jobs, event)


async def _answer(service: Service, request: Request, drawing: Drawing) -> Response:
    if drawing.asked.stream:
        events = merge(service.engine.streams(drawing.jobs))
        return event_stream(_stream(service, drawing, await started(request, events)))
    results = await run_jobs(request, service.engine, drawing.jobs)
    files = [await asyncio.to_thread(drawing.encode, result.value) for result in results]
    if drawing.asked.response_format == "url":
        stored = [
            await asyncio.to_thread(service.store.put, data, drawing.asked.output_format) for data, _ in files
        ]
        data = [{"url": service.file_url(request, file.id)} for file in stored]
    else:
        data = [{"b64_json": base64.b64encode(data).decode()} for data, _ in files]
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": data,
            **_about(drawing, files[0][1]),
            "usage": _usage(service, drawing, results),
            "ddit": {"seeds": drawing.seeds, "notices": distinct([result.notices for result in results])},
        }
    )


async def _stream(
    service: Service, drawing: Drawing, events: AsyncIterator[tuple[int, Any]]
) -> AsyncIterator[str]:
    """OpenAI's events of a drawing: partial pictures, then the whole one; of several pictures, as they come."""
    shown = [0] * len(drawing.jobs)
    async for number, event in events:
        if not isinstance(event, Preview | Result):
            continue
        is_result = isinstance(event, Result)
        image = event.value if is_result else event.image
        data, size = await asyncio.to_thread(drawing.encode, image)
        kind = f"{drawing.event}.{'completed' if is_result else 'partial_image'}"
        body: dict[str, Any] = {
            "type": kind,
            "b64_json": base64.b64encode(data).decode(),
            "created_at": int(time.time()),
            **_about(drawing, size),
        }
        own: dict[str, Any] = {"index": number, "seed": drawing.jobs[number].seed}
        if isinstance(event, Result):
            body["usage"] = _usage(service, drawing, [event])
            own["notices"] = list(event.notices)
        else:
            body["partial_image_index"] = shown[number]
            shown[number] += 1
            own |= {"step": event.done, "of": event.total}
        yield sse({**body, "ddit": own}, kind)


def _about(drawing: Drawing, size: str) -> dict[str, str]:
    return {
        "size": size,
        "output_format": drawing.asked.output_format,
        "quality": "auto",
        "background": "opaque",
    }


def _usage(service: Service, drawing: Drawing, results: Sequence[Result]) -> dict[str, Any]:
    """Tokens, as OpenAI counts them: read, and drawn."""
    sample = drawing.jobs[0].sample
    drawn = results[0].value
    size = drawn.height, drawn.width
    text = service.count_tokens(sample["prompt"], sample.get("negative_prompt"))
    read = service.count_image_tokens(*size) if "image" in sample else 0
    output = len(results) * service.count_image_tokens(*size)
    return {
        "input_tokens": text + read,
        "input_tokens_details": {"text_tokens": text, "image_tokens": read},
        "output_tokens": output,
        "total_tokens": text + read + output,
    }


# --- forms ---


def _read_form(
    model: type[Form], items: Sequence[tuple[str, UploadFile | str]]
) -> tuple[Form, dict[str, UploadFile]]:
    """A form's fields, checked, and its files by name ("image[]" is how clients name one of a list)."""
    fields: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
    for name, value in items:
        is_file = isinstance(value, UploadFile)
        name = name.removesuffix("[]") if is_file else name
        if name in fields or name in files:
            raise ApiError(f"'{name[:60]}' is given twice: one is what this server takes", param=name[:60])
        if is_file and name not in ("image", "mask"):
            raise ApiError(f"unexpected file '{name[:60]}'", param=name[:60])
        if is_file:
            files[name] = value
        elif name in ("image", "mask"):
            raise ApiError(f"'{name}' must be a file", param=name)
        else:
            fields[name] = value
    try:
        return model.model_validate(fields), files
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


async def _file(files: dict[str, UploadFile], name: str) -> bytes:
    if name not in files:
        raise ApiError(f"the file '{name}' is missing", param=name, code="missing_file")
    return await upload_bytes(files[name], name)


def _form_document(model: type[ApiModel], **files: bool) -> dict[str, Any]:
    """A form in the OpenAPI document: a model's fields and files, each with whether it must be given."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    for name in files:
        schema["properties"][name] = {"type": "string", "format": "binary"}
    schema["required"] = [*schema.get("required", []), *(name for name, needed in files.items() if needed)]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
