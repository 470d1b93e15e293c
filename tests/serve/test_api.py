"""The API answers as OpenAI's does, with what the pipeline gives for the same seed."""

import asyncio
import io
import json
import re
from itertools import pairwise
from typing import Any

import httpx
import pytest
from PIL import Image
from servers import (
    ask,
    client_of,
    data_url,
    decoded,
    encoded,
    level_difference,
    noise_image,
    pipeline,
    with_client,
)
from sse_starlette.sse import AppStatus

from ddit.errors import collect_warnings
from ddit.schema import list_options
from ddit.serve.api import create_app
from ddit.serve.options import Limits, ServeConfig
from ddit.serve.schemas import ChatRequest, GenerationRequest
from ddit.settings import ImageOptions, TextOptions

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
CHAT = "/v1/chat/completions"


def events(text: str) -> list[Any]:
    """The data of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def post(path: str, config: ServeConfig | None = None, **given: Any) -> httpx.Response:
    return with_client(lambda client: client.post(path, **given), config)


# --- images ---


def test_images_are_those_of_the_seed_and_the_next_ones() -> None:
    body = {"prompt": "a red car", "n": 3, "seed": 5, "num_steps": 4, "guidance_scale": 3, "sampler": "euler"}
    answer = post(GENERATE, json=body).json()
    own = pipeline().generate(["a red car"] * 3, seed=5, num_steps=4, guidance_scale=3, sampler="euler")
    for one, two in zip(answer["data"], own, strict=True):
        assert level_difference(decoded(one["b64_json"]), two) <= 1
    assert answer["ddit"] == {"seeds": [5, 6, 7], "notices": []}
    assert answer["size"] == "32x32"
    assert answer["usage"]["output_tokens"] == 3 * 16


def test_every_option_of_sampling_is_a_field() -> None:
    assert set(GenerationRequest.OPTIONS) == names_of(ImageOptions) - {
        "height", "width", "batch_size", "negative_prompt",
    }  # fmt: skip
    assert set(ChatRequest.OPTIONS) == names_of(TextOptions) - {"height", "width", "batch_size", "length"}
    options = {"shift": 2.0, "guidance_interval": [0.2, 0.9], "guidance_rescale": 0.5, "shift_by_size": True}
    answer = post(GENERATE, json={"prompt": "a dog", "seed": 5, "size": "48x24", **options}).json()
    own = pipeline().generate("a dog", seed=5, height=24, width=48, **options)[0]
    assert level_difference(decoded(answer["data"][0]["b64_json"]), own) <= 1


def test_a_form_repeats_the_field_of_an_option_with_several_values() -> None:
    data = {"prompt": "a dog", "seed": "3", "shift": "2", "guidance_interval": ["0.2", "0.9"]}
    own = pipeline().vary(noise_image(2), "a dog", seed=3, shift=2.0, guidance_interval=(0.2, 0.9))[0]
    for name in ("guidance_interval", "guidance_interval[]"):
        data[name] = data.pop("guidance_interval")
        answer = post(EDIT, data=data, files={"image": encoded(noise_image(2))}).json()
        assert level_difference(decoded(answer["data"][0]["b64_json"]), own) <= 1


def names_of(options: type) -> set[str]:
    return {option.name for option in list_options(options)}


def test_without_a_seed_a_random_one_is_taken_and_answered() -> None:
    async def twice(client: httpx.AsyncClient) -> list[dict]:
        return [(await client.post(GENERATE, json={"prompt": "a dog"})).json() for _ in range(2)]

    first, second = with_client(twice)
    assert first["ddit"]["seeds"] != second["ddit"]["seeds"]
    own = pipeline().generate("a dog", seed=first["ddit"]["seeds"][0])[0]
    assert level_difference(decoded(first["data"][0]["b64_json"]), own) <= 1


def test_the_best_of_several_is_the_pipelines() -> None:
    answer = post(GENERATE, json={"prompt": "a red car", "seed": 5, "best_of": 3, "n": 2}).json()
    own = pipeline().generate(["a red car"] * 2, seed=5, best_of=3)
    for one, two in zip(answer["data"], own, strict=True):
        assert level_difference(decoded(one["b64_json"]), two) <= 1


def test_size_is_generated_and_upscale_enlarges_what_is_sent() -> None:
    body = {
        "prompt": "a dog",
        "size": "48x24",
        "upscale": 2,
        "output_format": "webp",
        "negative_prompt": "a cat",
    }
    answer = post(GENERATE, json=body).json()
    assert answer["size"] == "96x48"
    assert decoded(answer["data"][0]["b64_json"]).size == (96, 48)


def test_a_url_leads_to_the_image_and_can_be_asked_about() -> None:
    async def run(client: httpx.AsyncClient) -> tuple[str, Image.Image, str]:
        generated = (
            await client.post(GENERATE, json={"prompt": "a dog", "seed": 1, "response_format": "url"})
        ).json()
        url = generated["data"][0]["url"]
        file = await client.get(url)
        assert file.headers["x-content-type-options"] == "nosniff"
        body = ask("is there a dog?", seed=4)
        body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
        answer = (await client.post(CHAT, json=body)).json()["choices"][0]["message"]["content"]
        return url, decoded_bytes(file.content), answer

    url, image, answer = with_client(run)
    assert url.startswith("http://test/v1/files/file-")
    assert level_difference(image, pipeline().generate("a dog", seed=1)[0]) <= 1
    assert answer == pipeline().answer(image, "is there a dog?", seed=4)[0]


def decoded_bytes(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_stream_shows_partial_images_then_the_one_of_the_seed() -> None:
    body = {"prompt": "a dog", "seed": 9, "num_steps": 6, "stream": True, "partial_images": 2, "n": 2}
    found = events(post(GENERATE, json=body).text)
    for index in range(2):
        own = [event for event in found if event["ddit"]["index"] == index]
        assert [event["type"] for event in own] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        assert [event.get("partial_image_index") for event in own] == [0, 1, None]
        expected = pipeline().generate("a dog", seed=9 + index, num_steps=6)[0]
        assert level_difference(decoded(own[-1]["b64_json"]), expected) <= 1
        assert level_difference(decoded(own[0]["b64_json"]), expected) > 1


def test_a_stream_is_not_cut_off_at_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppStatus, "should_exit", True)  # as sse-starlette sets it at SIGTERM
    found = events(post(GENERATE, json={"prompt": "a dog", "stream": True, "partial_images": 2}).text)
    assert [event["type"].rpartition(".")[2] for event in found] == [
        "partial_image",
        "partial_image",
        "completed",
    ]


def test_an_edit_generates_where_the_mask_is_transparent() -> None:
    image = noise_image(1)
    mask = image.convert("RGBA")
    mask.putalpha(Image.new("L", image.size, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    files = {"image": encoded(image), "mask": encoded(mask)}
    answer = post(EDIT, data={"prompt": "a dog", "seed": "3", "n": "2"}, files=files).json()
    white = Image.new("L", image.size, 0)
    white.paste(255, (0, 0, 16, 32))
    own = pipeline().inpaint(image, white, ["a dog"] * 2, seed=3)
    for one, two in zip(answer["data"], own, strict=True):
        assert level_difference(decoded(one["b64_json"]), two) <= 1


def test_a_mask_without_transparency_is_white_where_it_is_generated() -> None:
    image, white = noise_image(1), Image.new("L", (32, 32), 0)
    white.paste(255, (16, 0, 32, 32))
    files = {"image[]": encoded(image), "mask": encoded(white)}
    answer = post(EDIT, data={"prompt": "a dog", "seed": "3"}, files=files).json()
    own = pipeline().inpaint(image, white, "a dog", seed=3)[0]
    assert level_difference(decoded(answer["data"][0]["b64_json"]), own) <= 1


def test_an_edit_without_a_mask_varies_the_image_and_streams_too() -> None:
    data = {"prompt": "a dog", "seed": "3", "strength": "0.3", "stream": "true", "partial_images": "1"}
    found = events(post(EDIT, data=data, files={"image": encoded(noise_image(2))}).text)
    assert [event["type"] for event in found] == ["image_edit.partial_image", "image_edit.completed"]
    own = pipeline().vary(noise_image(2), "a dog", strength=0.3, seed=3)[0]
    assert level_difference(decoded(found[-1]["b64_json"]), own) <= 1


def test_a_variation_goes_by_the_models_caption() -> None:
    answer = post(VARY, data={"seed": "3"}, files={"image": encoded(noise_image(2))}).json()
    caption = pipeline().caption(noise_image(2), seed=3)[0]
    with collect_warnings():  # the caption is too long for a prompt, and is cut
        own = pipeline().vary(noise_image(2), caption, seed=3)[0]
    assert level_difference(decoded(answer["data"][0]["b64_json"]), own) <= 1


# --- texts ---


@pytest.mark.parametrize(
    ("text", "verb"),
    [("what color is the dog?", "answer"), (None, "caption"), ("a ___ dog is a __", "infill")],
)
def test_a_text_is_that_of_its_seed_streamed_or_not(text: str | None, verb: str) -> None:
    async def run(client: httpx.AsyncClient) -> tuple[dict, str]:
        body = ask(text, noise_image(3), seed=11, temperature=0.9)
        whole = (await client.post(CHAT, json=body)).json()
        stream = await client.post(
            CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}}
        )
        return whole, stream.text

    whole, stream = with_client(run)
    given = (noise_image(3),) if text is None else (noise_image(3), text)
    own = getattr(pipeline(), verb)(*given, seed=11, temperature=0.9)[0]
    assert whole["choices"][0]["message"]["content"] == own
    assert whole["ddit"]["task"] == verb
    *chunks, usage, done = events(stream)
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == own
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == whole["choices"][0]["finish_reason"]
    assert set(reasons[:-1]) == {None}


def test_a_stream_shows_each_step_and_its_words_stay_once_settled() -> None:
    chunks = events(post(CHAT, json=ask(None, noise_image(3), seed=2, stream=True)).text)
    steps = [chunk["ddit"] for chunk in chunks[:-1] if "pass" in chunk["ddit"]]
    assert [(one["pass"], one["of"]) for one in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for before, after in pairwise(steps):
        for old, new in zip(before["tokens"], after["tokens"], strict=False):
            assert not old["settled"] or new == old
    settled = [sum(token["settled"] for token in one["tokens"]) for one in steps]
    assert settled == sorted(settled)
    assert all(token["settled"] for token in steps[-1]["tokens"])


def test_several_answers_have_the_seeds_from_the_first_on() -> None:
    body = ask("what color is the dog?", noise_image(3), seed=20, n=3, order="random", temperature=1.5)
    answer = post(CHAT, json=body).json()
    own = pipeline().answer(
        noise_image(3), ["what color is the dog?"] * 3, seed=20, order="random", temperature=1.5
    )
    assert [choice["message"]["content"] for choice in answer["choices"]] == own


def test_the_last_users_text_and_the_newest_image_are_what_is_shown() -> None:
    body = ask("is there a cat?", noise_image(1), seed=1)
    body["messages"] = [
        {"role": "system", "content": "be brief"},
        *ask("no", noise_image(2))["messages"],
        *body["messages"],
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "what color is the dog?"},
    ]
    answer = post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    assert answer == pipeline().answer(noise_image(1), "what color is the dog?", seed=1)[0]


def test_a_question_without_an_image_is_asked_without_one() -> None:
    answer = post(CHAT, json={"messages": [{"role": "user", "content": "is there a dog?"}], "seed": 3}).json()
    assert answer["choices"][0]["message"]["content"] == pipeline().answer(None, "is there a dog?", seed=3)[0]


def test_max_tokens_bounds_what_is_filled_and_the_models_own_length_is_the_most() -> None:
    async def run(client: httpx.AsyncClient) -> list[dict]:
        bodies = [ask(None, noise_image(1), seed=1, max_tokens=count) for count in (2, 4096)]
        return [(await client.post(CHAT, json=body)).json() for body in bodies]

    short, own = with_client(run)
    assert short["usage"]["completion_tokens"] <= 2
    assert (
        short["choices"][0]["message"]["content"] == pipeline().caption(noise_image(1), seed=1, length=2)[0]
    )
    assert own["choices"][0]["message"]["content"] == pipeline().caption(noise_image(1), seed=1)[0]


def test_words_that_the_model_does_not_know_are_answered() -> None:
    answer = post(CHAT, json=ask("what color is the zebra?", noise_image())).json()
    assert answer["ddit"]["notices"] == ["the model does not know the word 'zebra'"]


def test_what_openais_clients_send_and_does_not_matter_is_ignored() -> None:
    fields = {
        "user": "me",
        "presence_penalty": 0.5,
        "store": False,
        "tools": None,
        "response_format": {"type": "text"},
    }
    assert post(CHAT, json=ask("is there a dog?", noise_image(), **fields)).status_code == 200
    assert post(GENERATE, json={"prompt": "a dog", "user": "me", "quality": "high"}).status_code == 200


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


def test_data_urls_may_name_any_type_since_the_bytes_tell() -> None:
    body = ask("is there a dog?", seed=4)
    url = data_url(noise_image(1)).replace("image/png", "image/jpeg;charset=utf-8")
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    assert post(CHAT, json=body).status_code == 200


def test_an_image_of_one_pixel_is_an_image() -> None:
    assert post(CHAT, json=ask("is there a dog?", noise_image(side=1))).status_code == 200
