"""`ddit serve` as users run it: a process with mini, and OpenAI's own client."""

import base64
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from servers import data_url, level_difference
from typer.testing import CliRunner

from ddit.cli import app
from ddit.pipeline import Pipeline


@contextmanager
def served(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and process of `ddit serve`; at the end it must stop by SIGTERM, with exit code 0."""
    command = [sys.executable, "-m", "ddit", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        address = re.search(r"http://[\d.:]+", process.stderr.readline())
        assert address is not None
        yield address[0], process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def decoded(answer: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in answer.data]


def asked(text: str, image: Image.Image) -> list[Any]:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": data_url(image)}}]
    return [{"role": "user", "content": parts}]


@pytest.mark.slow
def test_openais_client_generates_and_asks_streaming_and_not_two_at_once() -> None:
    pipeline = Pipeline.from_pretrained("mini")
    with served("--api-key", "secret") as (address, _):
        client = client_of(address, "secret")
        assert [model.id for model in client.models.list()] == ["mini"]
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "wrong").models.list()

        answer = client.images.generate(
            model="mini", prompt="a photo of a red car", n=2, extra_body={"seed": 3, "upscale": 1}
        )
        own = pipeline.generate(["a photo of a red car"] * 2, seed=3)
        for one, two in zip(decoded(answer), own, strict=True):
            assert level_difference(one, two) <= 1
        partial = client.images.generate(
            model="mini", prompt="a photo of a red car", stream=True, partial_images=2, extra_body={"seed": 3}
        )
        events = list(partial)
        assert [event.type for event in events] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]

        question = asked("what color is the car?", own[0])
        whole = client.chat.completions.create(model="mini", messages=question, seed=1)
        assert whole.choices[0].message.content == "red"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 1
        stream = client.chat.completions.create(
            model="mini",
            messages=asked("", own[0]),
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == pipeline.caption(own[0], seed=1)[0]
        assert text.endswith("a red car")
        assert sum("pass" in chunk.model_extra["ddit"] for chunk in chunks if chunk.choices) >= 3  # type: ignore[index]
        assert chunks[-1].usage is not None

        with pytest.raises(openai.BadRequestError, match="num_step"):
            client.images.generate(model="mini", prompt="a dog", extra_body={"num_step": 3})
        with pytest.raises(openai.NotFoundError, match="this server has 'mini'"):
            client.images.generate(model="gpt-image-1", prompt="a dog")
        check_files_and_edits(client, own[0])
        check_many_at_once(address, pipeline)


def check_files_and_edits(client: openai.OpenAI, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    file = client.files.create(file=("car.png", buffer.getvalue()), purpose="vision")
    parts: list[Any] = [
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "text", "text": "a photo of a __ car"},
    ]
    answer = client.chat.completions.create(
        model="mini", messages=[{"role": "user", "content": parts}], seed=0
    )
    assert answer.choices[0].message.content == "a photo of a red car"
    assert client.files.delete(file.id).deleted
    edited = client.images.edit(
        model="mini", image=("car.png", buffer.getvalue()), prompt="a photo of a blue car", n=2
    )
    assert [one.size for one in decoded(edited)] == [(64, 64)] * 2


def check_many_at_once(address: str, pipeline: Pipeline) -> None:
    """Two clients of their own at once, each with requests of its own: each gets its own answers."""
    colors = ["red", "blue", "green", "yellow"]

    def work(who: int) -> list[tuple[int, str, Image.Image, str | None]]:
        client, found = client_of(address, "secret"), []
        for color in colors if who else reversed(colors):
            seed = 100 * who + len(found)
            prompt = f"a photo of a {color} car"
            image = decoded(client.images.generate(model="mini", prompt=prompt, extra_body={"seed": seed}))[0]
            question = asked("what color is the car?", image)
            answer = client.chat.completions.create(model="mini", messages=question, seed=seed)
            found.append((seed, prompt, image, answer.choices[0].message.content))
        return found

    with ThreadPoolExecutor(2) as pool:
        results = [one for some in pool.map(work, range(2)) for one in some]
    for seed, prompt, image, answer in results:
        assert level_difference(image, pipeline.generate(prompt, seed=seed)[0]) <= 1
        assert answer == pipeline.answer(image, "what color is the car?", seed=seed)[0]


@pytest.mark.slow
def test_sigterm_finishes_what_was_asked_and_then_exits_with_0() -> None:
    with served("--timeout", "150", "--grace", "150") as (address, process):
        with ThreadPoolExecutor(2) as pool:
            body = {"prompt": "a photo of a dog", "num_steps": 60}
            running = pool.submit(httpx.post, f"{address}/v1/images/generations", json=body, timeout=120)
            while httpx.get(f"{address}/healthz").json()["running"] == 0:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert running.result().status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "0"], "--timeout must be above 0, got 0"),
        (["--replicas", "2"], "--replicas 2 needs --ray"),
        (["--page", "--api-key", "x"], "the page has no login"),
        (["--ray", "--page"], "the page is not served by replicas"),
        (["--max-n", "100"], "max_n 100 does not fit into a queue of 64"),
    ],
)
def test_a_wrong_option_is_found_before_a_model_is_loaded(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "no/such/model", *options])
    assert result.exit_code != 0
    assert message in f"{result.exception} {result.output}"


@pytest.mark.parametrize("verb", ["serve", "page"])
def test_an_address_that_is_taken_is_found_before_a_model_is_loaded(verb: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, [verb, "--model", "no/such/model", "--port", str(port)])
    assert isinstance(result.exception, ValueError)
    assert f"cannot listen on 127.0.0.1:{port}" in str(result.exception)
