"""What the routes of one server share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ddit.serve.answers import ErrorBody
from ddit.serve.content import ImageReader
from ddit.serve.engine import Engine
from ddit.serve.errors import ApiError
from ddit.serve.files import FileStore
from ddit.serve.jobs import Result
from ddit.serve.metrics import Metrics
from ddit.serve.options import ServeConfig
from ddit.serve.schemas import SEEDS

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request is wrong: the message says what",
        401: "The token is missing or wrong",
        404: "There is no such model or file",
        408: "The body did not come in time",
        413: "The body is too large",
        429: "The queue is full: Retry-After says for how long",
        500: "The server failed",
        503: "The server is shutting down, or short of memory",
        504: "Not done in time",
    }.items()
}
"""Answers of every route beside its own, for the OpenAPI document."""

ANSWERS: dict[int | str, dict[str, Any]] = {
    **FAULTS,
    200: {
        "description": "With `stream`, server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}
"""The same for routes that can stream."""


@dataclass(frozen=True)
class Service:
    """One server: its engine and what goes with it."""

    engine: Engine
    config: ServeConfig
    store: FileStore
    reader: ImageReader
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.config.model_name or "mini"

    def check_model(self, name: str | None) -> None:
        """Raises ApiError if a request asks for another model."""
        if name is not None and name != self.model_name:
            raise ApiError(
                f"there is no model '{name[:60]}': this server has '{self.model_name}'",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip

    def check_text(self, text: str, param: str, name: str | None = None) -> str:
        """The text itself. Raises ApiError, which names it or its field, if it is empty or too long."""
        name = name or param
        limit = self.config.max_prompt_chars
        if len(text) > limit:
            raise ApiError(
                f"{name} has {len(text):,} characters, the limit is {limit:,}", param=param, code="too_long"
            )
        if not text.strip():
            raise ApiError(f"{name} is empty", param=param, code="invalid_value")
        return text

    def check_count(self, value: int | None, limit: int, param: str) -> None:
        """Raises ApiError if a number exceeds this server's limit."""
        if value is not None and value > limit:
            raise ApiError(f"{param} is {value:,}, the limit is {limit:,}", param=param, code="invalid_value")

    def check_size(self, size: str, upscale: int) -> tuple[int | None, int | None]:
        """Width and height of a request's size, None for the model's own. Raises ApiError, which says what there is."""
        if size == "auto":
            return None, None
        width, height = map(int, size.split("x"))
        pipeline = self.engine.pipeline
        config, own = pipeline.transformer.config, pipeline.settings.image_size
        unit = pipeline.image_codec.downsample * config.patch_size
        largest = min(unit * config.pos_embed_max_size, self.config.max_side)
        if any(side % unit or not unit <= side <= largest for side in (width, height)):
            raise ApiError(
                f"size {size} is not possible: this server's model generates sides that are multiples of {unit} "
                f"from {unit} to {largest // unit * unit}, by default {own}x{own}; upscale enlarges what is sent back",
                param="size", code="invalid_value",
            )  # fmt: skip
        return width, height

    def count_tokens(self, *texts: str | None) -> int:
        """Tokens of the texts that are given."""
        return sum(len(self.engine.pipeline.text_codec.token_ids(text)) for text in texts if text)

    def count_image_tokens(self, height: int | None = None, width: int | None = None) -> int:
        """Tokens of an image of that size, by default the model's own."""
        pipeline = self.engine.pipeline
        unit = pipeline.image_codec.downsample * pipeline.transformer.config.patch_size
        own = pipeline.settings.image_size
        return ((height or own) // unit) * ((width or own) // unit)

    def file_url(self, request: Request, file_id: str) -> str:
        """The address of a file of the store."""
        base = self.config.public_url or str(request.base_url)
        return f"{base.rstrip('/')}/v1/files/{file_id}/content"


def following_seeds(seed: int, count: int) -> list[int]:
    """The seeds of the samples of one request."""
    return [(seed + row) % SEEDS for row in range(count)]


def distinct_warnings(results: Sequence[Result]) -> list[str]:
    """The warnings of several jobs, each once."""
    return list(dict.fromkeys(warning for result in results for warning in result.warnings))
