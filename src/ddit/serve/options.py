"""What a server is told: its bounds, who may use it, where its files are. Imports nothing heavy."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ddit.serve.jobs import Limits


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the HTTP API.

    Attributes:
        model_name: what clients call the model.
        api_key: the bearer token that requests must bring; None asks for none.
        limits: of the engine: batches, queue, time of a request.
        max_body_bytes: of a request, counted while it comes in.
        body_timeout: seconds within which a request's body must have come.
        max_image_pixels: of a picture that is sent, by its header.
        max_prompt_chars: of a prompt, question or text.
        max_n: pictures or answers of one request.
        max_steps: steps of one picture or text.
        max_side: pixels of a side of a picture that is sent back, after enlarging.
        fetch_urls: whether pictures are fetched from public addresses that clients name.
        files: folder of uploads and of pictures answered as URLs, which replicas may share; None: a temporary one.
        max_files, max_files_bytes: what is kept there; the oldest goes first.
        public_url: how clients reach this server, for URLs of pictures; None: as the request says.
        cors_origins: origins whose pages may use the API; by default none.

    Raises:
        ValueError: for a value out of range.
    """

    model_name: str = "mini"
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    max_body_bytes: int = 20_000_000
    body_timeout: float = 30.0
    max_image_pixels: int = 16_000_000
    max_prompt_chars: int = 2_000
    max_n: int = 10
    max_steps: int = 100
    max_side: int = 2_048
    fetch_urls: bool = False
    files: Path | None = None
    max_files: int = 1_000
    max_files_bytes: int = 1_000_000_000
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("max_body_bytes", "max_image_pixels", "max_prompt_chars", "max_n", "max_steps", "max_side")
        for name in (*counts, "max_files", "max_files_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.body_timeout < math.inf:
            raise ValueError(f"body_timeout must be above 0 and finite, got {self.body_timeout}")
        if self.max_n > self.limits.max_queue:
            raise ValueError(f"max_n {self.max_n} does not fit into a queue of {self.limits.max_queue}")
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise ValueError("api_key must be of one or more ASCII characters")
