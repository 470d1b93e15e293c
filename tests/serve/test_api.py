"""Files, figures, limits, tokens and faults of the API."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from servers import ask, client_of, encoded, noise_image, pipeline, post, with_client

from ddit.serve.api import create_app
from ddit.serve.options import Limits, ServeConfig

GENERATE, CHAT = "/v1/images/generations", "/v1/chat/completions"


# --- files ---


def test_an_upload_can_be_asked_about_and_removed() -> None:
    async def run(client: httpx.AsyncClient) -> tuple[str, list[int]]:
        file = (
            await client.post(
                "/v1/files", data={"purpose": "vision"}, files={"file": encoded(noise_image(5))}
            )
        ).json()
        body = ask("is there a dog?", seed=4)
        body["messages"][0]["content"].append({"type": "file", "file": {"file_id": file["id"]}})
        answer = (await client.post(CHAT, json=body)).json()["choices"][0]["message"]["content"]
        path = f"/v1/files/{file['id']}"
        statuses = [(await client.get(path)).status_code, (await client.delete(path)).status_code]
        return answer, [
            *statuses,
            (await client.get(path)).status_code,
            (await client.post(CHAT, json=body)).status_code,
        ]

    answer, statuses = with_client(run)
    assert answer == pipeline().answer(noise_image(5), "is there a dog?", seed=4)[0]
    assert statuses == [200, 200, 404, 400]


# --- what goes on beside ---


def test_models_health_and_figures_are_shown() -> None:
    async def run(client: httpx.AsyncClient) -> list[httpx.Response]:
        await client.post(GENERATE, json={"prompt": "a dog", "n": 4})
        await client.post(GENERATE, json={"prompt": 3})
        return [
            await client.get(path)
            for path in ("/v1/models", "/v1/models/mini", "/v1/models/x", "/healthz", "/metrics")
        ]

    models, model, other, health, figures = with_client(run, ServeConfig(limits=Limits(max_wait=200)))
    assert models.json()["data"] == [model.json()]
    assert model.json()["id"] == "mini"
    assert other.status_code == 404
    assert health.json() == {"status": "ok", "waiting": 0, "running": 0}
    lines = figures.text.splitlines()
    for line in (
        'ddit_requests_total{route="/v1/images/generations",status="200"} 1.0',
        'ddit_requests_total{route="/v1/images/generations",status="400"} 1.0',
        'ddit_batch_size_bucket{le="2.0",verb="generate"} 0.0',
        'ddit_batch_size_bucket{le="4.0",verb="generate"} 1.0',
        'ddit_model_passes_total{verb="generate"} 3.0',
        'ddit_jobs_total{verb="generate"} 4.0',
        "ddit_rejected_total 0.0",
        "ddit_jobs_waiting 0.0",
    ):
        assert line in lines


def test_two_clients_at_once_get_their_own_answers_from_one_batch() -> None:
    app = create_app(pipeline(), ServeConfig(limits=Limits(max_wait=300)))

    async def run() -> tuple[list[httpx.Response], str]:
        async with client_of(app) as client:
            bodies = [ask("what color is the dog?", noise_image(row), seed=row) for row in range(5)]
            answers = await asyncio.gather(*[client.post(CHAT, json=body) for body in bodies])
            return list(answers), (await client.get("/metrics")).text

    answers, figures = asyncio.run(run())
    own = [pipeline().answer(noise_image(row), "what color is the dog?", seed=row)[0] for row in range(5)]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == own
    assert 'ddit_batch_size_count{verb="answer"} 1.0' in figures


def test_a_full_queue_is_answered_429_with_the_seconds_to_wait() -> None:
    config = ServeConfig(limits=Limits(max_queue=2, max_batch_size=1), max_n=2)

    async def run(client: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"prompt": "a dog", "num_steps": 20}
        return await asyncio.gather(*[client.post(GENERATE, json=body) for _ in range(8)])

    answers = with_client(run, config)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(refused) in (5, 6)
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_request_that_takes_too_long_is_answered_504_streamed_or_not() -> None:
    config = ServeConfig(limits=Limits(timeout=0.2), max_steps=100_000)
    body = {"prompt": "a dog", "num_steps": 50_000}
    answer = post(GENERATE, config, json=body)
    assert answer.status_code == 504
    assert answer.json()["error"]["message"] == "not done within 0.2 s"
    streamed = post(GENERATE, config, json={**body, "stream": True, "partial_images": 1})
    assert streamed.status_code == 200 or streamed.json()["error"]["code"] == "timeout"
    assert "not done within 0.2 s" in streamed.text


def test_a_plain_server_says_at_its_root_where_its_documents_are() -> None:
    async def run(client: httpx.AsyncClient) -> tuple[dict[str, str], list[int]]:
        index = (await client.get("/")).json()
        places = [index[name] for name in ("docs", "openapi", "health")]
        return index, [(await client.get(place)).status_code for place in places]

    index, statuses = with_client(run, ServeConfig(api_key="secret"))
    assert (index["docs"], index["api"], index["model"]) == ("/docs", "/v1", "mini")
    assert statuses == [200] * 3


def test_a_server_with_a_token_wants_it_and_only_health_documents_and_files_do_not() -> None:
    async def run(client: httpx.AsyncClient) -> list[int]:
        right, wrong = {"authorization": "Bearer secret"}, {"authorization": "Bearer secre"}
        answers = [
            await client.get("/v1/models"),
            await client.get("/v1/models", headers=wrong),
            await client.get("/v1/models", headers={"authorization": "Basic secret"}),
            await client.get("/metrics"),
            await client.post(GENERATE, json={"prompt": "a dog"}),
            await client.get("/v1/models", headers=right),
            await client.get("/healthz"),
            await client.get("/openapi.json"),
        ]
        generated = await client.post(
            GENERATE, json={"prompt": "a dog", "response_format": "url"}, headers=right
        )
        url = generated.json()["data"][0]["url"]
        answers += [await client.get(url), await client.delete(url.removesuffix("/content"))]
        assert answers[0].json()["error"]["code"] == "invalid_api_key"
        return [answer.status_code for answer in answers]

    assert with_client(run, ServeConfig(api_key="secret")) == [401] * 5 + [200] * 4 + [401]


def test_the_page_of_the_document_has_its_scripts_from_this_server() -> None:
    async def run(client: httpx.AsyncClient) -> tuple[list[str], list[httpx.Response]]:
        page = (await client.get("/docs")).text
        sources = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
        return sources, [await client.get(source) for source in sources]

    sources, answers = with_client(run, ServeConfig(api_key="secret"))
    assert any(source.endswith(".js") for source in sources)
    assert all(source.startswith("/") for source in sources)
    assert [answer.status_code for answer in answers] == [200] * len(sources)


def test_a_body_that_is_too_large_is_answered_413_announced_or_not() -> None:
    async def chunks():
        for _ in range(30):
            yield b"x" * 1000

    async def run(client: httpx.AsyncClient) -> list[httpx.Response]:
        headers = {"content-type": "application/json"}
        return [
            await client.post(CHAT, content=b"x" * 30_000, headers=headers),
            await client.post(CHAT, content=chunks(), headers=headers),
            await client.post(CHAT, json={"messages": [{"role": "user", "content": "is there a dog?"}]}),
        ]

    announced, chunked, small = with_client(run, ServeConfig(max_body_bytes=20_000))
    assert announced.status_code == chunked.status_code == 413
    assert announced.json()["error"]["message"] == "the body is larger than 20,000 bytes"
    assert small.status_code == 200


def test_pages_of_other_origins_may_use_the_api_only_where_that_is_said() -> None:
    async def preflight(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
        return await client.options(GENERATE, headers=headers)

    assert "access-control-allow-origin" not in with_client(preflight).headers
    allowed = with_client(preflight, ServeConfig(cors_origin=("https://a.example",)))
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"


def test_a_fault_of_ours_is_answered_500_without_its_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(pipeline(), "generate", fail)
    answer = post(GENERATE, json={"prompt": "a dog"})
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the server failed at this request",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "a secret path" in caplog.text
