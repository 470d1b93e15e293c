"""Servers for the tests: the application over a tiny model, in this process or behind a socket."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.pipeline import Pipeline
from ddit.serve.api import create_app
from ddit.serve.options import ServeConfig


@cache
def pipeline() -> Pipeline:
    return tiny_pipeline()


def noise_image(seed: int = 0, side: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def decoded(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")


def level_difference(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def ask(text: str | None, image: Image.Image | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    content: list[dict[str, Any]] = [] if text is None else [{"type": "text", "text": text}]
    if image is not None:
        content.append({"type": "image_url", "image_url": {"url": data_url(image)}})
    return {"model": "mini", "messages": [{"role": "user", "content": content}], **fields}


def events(text: str) -> list[Any]:
    """The data of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this process, within the application's lifespan."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", **options) as client:
            yield client


def with_client(work: Any, config: ServeConfig | None = None, app: FastAPI | None = None) -> Any:
    """What `work(client)` gives."""

    async def run() -> Any:
        async with client_of(app or create_app(pipeline(), config)) as client:
            return await work(client)

    return asyncio.run(run())


def post(path: str, config: ServeConfig | None = None, **given: Any) -> httpx.Response:
    """The answer of a new server to one request."""
    return with_client(lambda client: client.post(path, **given), config)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of a real server of the application, on a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
