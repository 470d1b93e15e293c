"""Options of a server: its limits, who may use it, where its files are. Imports nothing heavy."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from ddit.schema import Panel, strict

Count = Annotated[int, Field(ge=1)]


@strict
class Limits:
    """Of the engine: its batches, its queue, the time of a job."""

    panel: ClassVar[str] = "Limits"

    max_batch_size: Annotated[Count, Field(description="jobs in one call of the model")] = 16
    max_wait: Annotated[
        float, Field(ge=0, description="milliseconds that an idle server waits for more jobs to batch")
    ] = 4.0
    max_queue: Annotated[Count, Field(description="jobs that may wait; more are answered with 429")] = 64
    timeout: Annotated[float, Field(gt=0, description="seconds of a request, queue included")] = 60.0


@strict
class ServeConfig:
    """Settings of the HTTP API.

    Raises:
        ValueError: for a value out of range.
    """

    panel: ClassVar[str] = "Limits"

    model_name: Annotated[
        str | None,
        Field(description="what clients call the model [default: its folder's name]"),
        Panel("Server"),
    ] = None
    api_key: Annotated[
        str | None, Field(description="bearer token that requests must bring"), Panel("Server")
    ] = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    max_n: Annotated[Count, Field(description="images or answers of one request")] = 10
    max_steps: Annotated[Count, Field(description="sampling steps of one image or text")] = 100
    max_side: Annotated[Count, Field(description="pixels per side of an image that is sent back")] = 2048
    max_prompt_chars: Annotated[Count, Field(description="characters of a prompt, question or text")] = 2000
    max_image_pixels: Annotated[Count, Field(description="pixels of an image that is sent in")] = 16_000_000
    max_body_bytes: Annotated[Count, Field(description="bytes of a request")] = 20_000_000
    body_timeout: Annotated[float, Field(gt=0, description="seconds for a request's body to arrive")] = 30.0
    fetch_urls: Annotated[
        bool, Field(description="fetch images from public addresses that clients name"), Panel("Server")
    ] = False
    files: Annotated[
        Path | None,
        Field(
            description="folder of uploads and of images sent as URLs; replicas may share it "
            "[default: a temporary one]"
        ),
        Panel("Server"),
    ] = None
    max_files: Annotated[Count, Field(description="files that are kept; the oldest go first")] = 1000
    max_files_bytes: Annotated[Count, Field(description="bytes of the files that are kept")] = 1_000_000_000
    public_url: Annotated[
        str | None,
        Field(description="this server's address in URLs of images [default: the request's]"),
        Panel("Server"),
    ] = None
    cors_origin: Annotated[
        tuple[str, ...],
        Field(description="origin whose pages may use the API; may be given several times"),
        Panel("Server"),
    ] = ()

    def __post_init__(self) -> None:
        if self.max_n > self.limits.max_queue:
            raise ValueError(f"max_n {self.max_n} does not fit into a queue of {self.limits.max_queue}")
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise ValueError("api_key must be of one or more ASCII characters")
