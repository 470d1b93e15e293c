"""A real server behind a socket: clients that leave or are slow, streams as they come, shutting down."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from servers import ask, client_of, noise_image, pipeline, running

from ddit.inference.batching import Step
from ddit.serve.api import create_app
from ddit.serve.engine import _StepSplitter
from ddit.serve.options import Limits, ServeConfig
from ddit.serve.server import GracefulServer

GENERATE, CHAT = "/v1/images/generations", "/v1/chat/completions"


def figure(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def wait_for(condition, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_call_that_runs_for_it(stream: bool) -> None:
    app = create_app(pipeline(), ServeConfig(max_steps=1_000_000))
    body = {"prompt": "a dog", "num_steps": 1_000_000, "stream": stream, "partial_images": 3 if stream else 0}
    with running(app) as address, httpx.Client(base_url=address, timeout=20) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(GENERATE, json=body, timeout=httpx.Timeout(5, read=0.3))
        wait_for(lambda: client.get("/healthz").json() == {"status": "ok", "waiting": 0, "running": 0})
        assert client.post(GENERATE, json={"prompt": "a dog"}).status_code == 200


def test_a_client_that_leaves_while_it_waits_frees_its_place() -> None:
    app = create_app(
        pipeline(), ServeConfig(max_steps=1_000_000, limits=Limits(max_batch_size=1, max_queue=1), max_n=1)
    )
    long = {"prompt": "a dog", "num_steps": 1_000_000}
    with running(app) as address, httpx.Client(base_url=address, timeout=20) as client:
        first = threading.Thread(target=lambda: leave(address, long, after=2.0))
        first.start()
        wait_for(lambda: client.get("/healthz").json()["running"] == 1)
        leave(address, long, after=0.2)
        wait_for(lambda: client.get("/healthz").json()["waiting"] == 0)
        answer = client.post(GENERATE, json={"prompt": "a dog", "num_steps": 1})
        first.join()
        assert answer.status_code == 200


def leave(address: str, body: dict, after: float) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + GENERATE, json=body, timeout=httpx.Timeout(5, read=after))


def test_steps_come_while_the_text_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = _StepSplitter.on_step

    def slowly(self: _StepSplitter, step: Step) -> None:
        take_step(self, step)
        time.sleep(0.2)

    monkeypatch.setattr(_StepSplitter, "on_step", slowly)
    app = create_app(pipeline(), ServeConfig())
    body = ask(None, noise_image(1), seed=1, stream=True, order="confidence", num_steps=9)
    with (
        running(app) as address,
        httpx.Client(base_url=address, timeout=20) as client,
        client.stream("POST", CHAT, json=body) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        next(lines)
        first = json.loads(next(lines).removeprefix("data: "))
        assert first["ddit"]["pass"] == 1
        assert httpx.get(address + "/healthz").json()["running"] == 1  # answered while the model works
        assert sum(1 for _ in lines) == 8 + 2  # the other steps, the text and its end


def test_a_body_that_does_not_come_is_given_up() -> None:
    app = create_app(pipeline(), ServeConfig(body_timeout=0.3))
    with running(app) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b'{"mess')
            assert connection.recv(65_536).startswith(b"HTTP/1.1 408")


def test_large_bodies_are_held_only_so_many_at_a_time() -> None:
    app = create_app(pipeline(), ServeConfig(max_body_bytes=50_000, body_timeout=5))
    with running(app) as address, httpx.Client(base_url=address, timeout=20) as client:
        host, _, port = address.removeprefix("http://").partition(":")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50000\r\n\r\n"
        crowd = [socket.create_connection((host, int(port))) for _ in range(40)]
        answers = []
        for connection in crowd:
            connection.settimeout(10)
            connection.sendall(head.encode() + b" " * 50_000)
        for connection in crowd:
            answers.append(connection.recv(65_536)[9:12])
            connection.close()
        assert set(answers) <= {b"400", b"503"}
        assert client.get("/healthz").status_code == 200


def test_shutting_down_finishes_what_runs_and_what_waits() -> None:
    app = create_app(pipeline(), ServeConfig(max_steps=1000, limits=Limits(max_batch_size=1)))
    found: list[int] = []

    def generate(address: str) -> None:
        found.append(
            httpx.post(address + GENERATE, json={"prompt": "a dog", "num_steps": 300}, timeout=60).status_code
        )

    with running(app) as address:
        threads = [threading.Thread(target=generate, args=(address,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(
            lambda: httpx.get(address + "/healthz").json() == {"status": "ok", "waiting": 2, "running": 1}
        )
    for thread in threads:
        thread.join()
    assert found == [200, 200, 200]


def test_what_the_grace_does_not_suffice_for_is_answered_503() -> None:
    app = create_app(pipeline(), ServeConfig(max_steps=1_000_000))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = GracefulServer(uvicorn.Config(app, log_level="warning"), app.state.service, grace=0.3)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_for(lambda: server.started)
        found: list[httpx.Response] = []
        body = {"prompt": "a dog", "num_steps": 1_000_000}
        asking = threading.Thread(
            target=lambda: found.append(httpx.post(address + GENERATE, json=body, timeout=30))
        )
        asking.start()
        wait_for(lambda: httpx.get(address + "/healthz").json()["running"] == 1)
        server.should_exit = True
        for one in (asking, thread):
            one.join(30)
            assert not one.is_alive()
    assert found[0].status_code == 503
    assert found[0].json()["error"]["code"] == "stopping"


def test_an_engine_that_stops_refuses_with_503() -> None:
    app = create_app(pipeline(), ServeConfig())

    async def run() -> list[httpx.Response]:
        async with client_of(app) as client:
            await app.state.service.engine.stop()
            return [await client.get("/healthz"), await client.post(GENERATE, json={"prompt": "a dog"})]

    health, refused = asyncio.run(run())
    assert health.status_code == refused.status_code == 503
    assert refused.json()["error"]["code"] == "stopping"


# --- requests made from the document ---


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_requests_made_from_the_document_never_break_the_server() -> None:
    import schemathesis  # seconds to import
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    app = create_app(pipeline(), ServeConfig(max_steps=20, limits=Limits(timeout=20)))
    seen: dict[int, int] = {}
    with running(app) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=60,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def attempt(case) -> None:
                answer = case.call(timeout=30)
                seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
                case.validate_response(answer, checks=checks)
                assert answer.status_code < 500

            attempt()
        assert httpx.get(f"{address}/healthz").json()["status"] == "ok"
    assert sum(seen.values()) > 300
    assert seen.get(200, 0) > 20
    assert seen.get(400, 0) > 20
