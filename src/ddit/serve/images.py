"""Routes that generate images: generations, edits and variations, in OpenAI's form."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form
from PIL import Image
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from ddit.images import upscale_image
from ddit.serve.answers import Details, ImageData, Images, ImageUsage
from ddit.serve.content import check_form, upload_bytes
from ddit.serve.errors import ApiError, as_job_error
from ddit.serve.files import encode_image_file
from ddit.serve.jobs import Job, Preview, Result, Verb, make_options
from ddit.serve.responses import event, event_stream, merge, run_jobs, started
from ddit.serve.schemas import EditForm, GenerationRequest, ImageRequest, VariationForm
from ddit.serve.service import ANSWERS, Service, distinct_warnings, following_seeds


@dataclass(frozen=True)
class ImageCall:
    """A request for images, ready to run: its jobs, and how their images are sent back."""

    body: ImageRequest
    jobs: list[Job]
    kind: str  # of a stream's events: "image_generation" or "image_edit"

    def encode(self, image: Image.Image) -> tuple[bytes, str]:
        """A generated image as a file, and its size after enlarging."""
        larger = upscale_image(image, self.body.upscale)
        data = encode_image_file(larger, self.body.output_format, self.body.output_compression)
        return data, f"{larger.width}x{larger.height}"


def add_image_routes(app: FastAPI, service: Service) -> None:
    """Adds /v1/images/generations, /v1/images/edits and /v1/images/variations."""
    document: dict[str, Any] = {
        "tags": ["images"],
        "responses": ANSWERS,
        "response_model": Images,
        "response_model_exclude_none": True,
    }
    form = {**document, "dependencies": [Depends(check_form)]}

    @app.post("/v1/images/generations", **document, summary="Generate images")
    async def generate(request: Request, body: GenerationRequest) -> Images | Response:
        prompt = service.check_text(body.prompt, "prompt")
        call = _prepare(service, body, "generate", {"prompt": prompt}, "image_generation")
        return await _answer(service, request, call)

    @app.post(
        "/v1/images/edits", **form, summary="Generate the masked part again, or without a mask vary it all"
    )
    async def edit(request: Request, body: Annotated[EditForm, Form()]) -> Images | Response:
        sample: dict[str, Any] = {"prompt": service.check_text(body.prompt, "prompt")}
        data = await upload_bytes(body.image, "image")
        sample["image"] = await service.reader.from_bytes(data, "image")
        if body.mask is not None:
            if body.strength is not None:
                raise ApiError("strength is of variations: leave it out with a mask", param="strength")
            sample["mask"] = await service.reader.mask_from_bytes(
                await upload_bytes(body.mask, "mask"), "mask"
            )
        elif body.strength is None:  # which asks for a variation
            sample["mask"] = await service.reader.transparency_of(data)
        verb: Verb = "vary" if sample.get("mask") is None else "inpaint"
        call = _prepare(service, body, verb, sample, "image_edit", strength=body.strength)
        return await _answer(service, request, call)

    @app.post(
        "/v1/images/variations", **form, summary="Vary an image, by a prompt or the model's own caption"
    )
    async def vary(request: Request, body: Annotated[VariationForm, Form()]) -> Images | Response:
        image = await service.reader.from_bytes(await upload_bytes(body.image, "image"), "image")
        prompt = body.prompt
        if prompt is None:
            caption = Job("caption", {"image": image}, body.seed)
            prompt = (await run_jobs(request, service.engine, [caption]))[0].value
            if not prompt:
                raise ApiError("the model has no caption for this image: give a prompt", param="prompt")
        sample = {"prompt": service.check_text(prompt, "prompt"), "image": image}
        call = _prepare(service, body, "vary", sample, "image_edit", strength=body.strength)
        return await _answer(service, request, call)


def _prepare(
    service: Service, body: ImageRequest, verb: Verb, sample: dict[str, Any], kind: str, **own: Any
) -> ImageCall:
    """The jobs of a request, within this server's limits. Raises ApiError."""
    service.check_model(body.model)
    service.check_count(body.n, service.config.max_n, "n")
    service.check_count(body.options.get("num_steps"), service.config.max_steps, "num_steps")
    if body.negative_prompt is not None:
        sample["negative_prompt"] = service.check_text(body.negative_prompt, "negative_prompt")
    width, height = service.check_size(body.size, body.upscale)
    side = service.engine.pipeline.settings.image_size
    longest = max(width or side, height or side) * body.upscale  # of what is sent back
    if longest > service.config.max_side:
        raise ApiError(
            f"upscale gives {longest:,} pixels a side, the limit is {service.config.max_side:,}", param="upscale",
            code="invalid_value",
        )  # fmt: skip
    if body.partial_images and not body.stream:
        raise ApiError("partial_images needs stream", param="partial_images")
    if body.stream and body.response_format == "url":
        raise ApiError("a stream answers with b64_json", param="response_format")
    if body.best_of > 1 and verb != "generate":
        raise ApiError("best_of is of generations only", param="best_of")
    if body.best_of > 1 and body.partial_images:
        raise ApiError("partial_images are of a single candidate: leave out best_of", param="partial_images")
    options = {**body.options, "height": height, "width": width}
    try:
        service.engine.pipeline.settings.image_options(options)
    except ValueError as error:
        raise as_job_error(error) from None
    best_of = body.best_of if body.best_of > 1 else None
    kept = make_options(**options, best_of=best_of, **own)
    seeds = following_seeds(body.seed, body.n)
    jobs = [Job(verb, sample, seed, kept, body.partial_images) for seed in seeds]
    return ImageCall(body, jobs, kind)


async def _answer(service: Service, request: Request, call: ImageCall) -> Images | Response:
    if call.body.stream:
        events = merge(service.engine.streams(call.jobs))
        return event_stream(_stream(service, call, await started(request, events)))
    results = await run_jobs(request, service.engine, call.jobs)
    files = [await asyncio.to_thread(call.encode, result.value) for result in results]
    data = [await _image_data(service, request, call, file) for file, _ in files]
    seeds = [job.seed for job in call.jobs]
    return Images(
        created=int(time.time()),
        data=data,
        **_facts(call, files[0][1]),
        usage=_usage(service, call, results),
        ddit=Details(seeds=seeds, notices=[*call.body.notices, *distinct_warnings(results)]),
    )


async def _image_data(service: Service, request: Request, call: ImageCall, file: bytes) -> ImageData:
    if call.body.response_format == "b64_json":
        return ImageData(b64_json=base64.b64encode(file).decode())
    stored = await service.reader.store_file(file, call.body.output_format)
    return ImageData(url=service.file_url(request, stored.id))


async def _stream(
    service: Service, call: ImageCall, events: AsyncGenerator[tuple[int, Any]]
) -> AsyncGenerator[ServerSentEvent]:
    """OpenAI's events of an image: partial ones, then the whole; of several images, as they come."""
    num_partial = [0] * len(call.jobs)
    async for number, found in events:
        if not isinstance(found, Preview | Result):
            continue
        image = found.value if isinstance(found, Result) else found.image
        data, size = await asyncio.to_thread(call.encode, image)
        kind = f"{call.kind}.{'completed' if isinstance(found, Result) else 'partial_image'}"
        body: dict[str, Any] = {
            "type": kind,
            "b64_json": base64.b64encode(data).decode(),
            "created_at": int(time.time()),
            "quality": "auto",
            **_facts(call, size),
        }
        own: dict[str, Any] = {"index": number, "seed": call.jobs[number].seed}
        if isinstance(found, Result):
            body["usage"] = _usage(service, call, [found]).model_dump()
            own["notices"] = [*call.body.notices, *found.warnings]
        else:
            body["partial_image_index"] = num_partial[number]
            num_partial[number] += 1
            own |= {"step": found.done, "of": found.total}
        yield event({**body, "ddit": own}, kind)


def _facts(call: ImageCall, size: str) -> dict[str, Any]:
    return {
        "size": size,
        "output_format": call.body.output_format,
        "background": "opaque",
    }


def _usage(service: Service, call: ImageCall, results: Sequence[Result]) -> ImageUsage:
    """Tokens as OpenAI counts them: of what goes in, and of the images that come out."""
    sample = call.jobs[0].sample
    image = results[0].value
    text = service.count_tokens(sample["prompt"], sample.get("negative_prompt"))
    per_image = service.count_image_tokens(image.height, image.width)
    source = per_image if "image" in sample else 0
    output = len(results) * per_image
    return ImageUsage(
        input_tokens=text + source,
        input_tokens_details={"text_tokens": text, "image_tokens": source},
        output_tokens=output,
        total_tokens=text + source + output,
    )
