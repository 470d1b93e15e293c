"""A model that writes in blocks over HTTP: earlier turns, long texts, the first block's time; and on the page."""

import asyncio
from typing import Any

import httpx
import pytest
from servers import ask, events, noise_image, with_client
from tiny_models import tiny_pipeline

from ddit.serve.api import create_app
from ddit.serve.engine import Engine
from ddit.serve.page_runs import Runs

CHAT = "/v1/chat/completions"
BLOCKS = tiny_pipeline(image_attends_text=False, text_block_size=3)


def post(body: dict[str, Any]) -> httpx.Response:
    return with_client(lambda client: client.post(CHAT, json=body), app=create_app(BLOCKS))


def test_max_tokens_goes_beyond_the_models_own_length_block_by_block() -> None:
    body = ask(None, noise_image(3), seed=1, max_tokens=30)
    whole = post(body).json()
    own = BLOCKS.caption(noise_image(3), seed=1, length=30)[0]
    assert whole["choices"][0]["message"]["content"] == own
    assert whole["usage"]["completion_tokens"] > BLOCKS.settings.text_length
    (seconds,) = whole["ddit"]["first_block_seconds"]
    assert seconds > 0
    *chunks, _ = events(post({**body, "stream": True}).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == own
    sizes = [len(chunk["ddit"]["tokens"]) for chunk in chunks if "tokens" in chunk["ddit"]]
    assert sizes[0] <= 6 < sizes[-1]  # the block at work, and what is before it
    assert sorted(sizes) == sizes
    assert [True for chunk in chunks if chunk["ddit"].get("first_block_seconds", 0) > 0] == [True]


def test_earlier_turns_about_the_image_are_shown() -> None:
    body = ask("is there a cat?", noise_image(1), seed=1)
    body["messages"] = [
        *ask("is there a dog?", noise_image(2))["messages"],
        {"role": "assistant", "content": "yes"},
        *body["messages"],
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "how many?"},
    ]
    found = post(body).json()
    told = BLOCKS.answer(noise_image(1), "how many?", history=[[("is there a cat?", "no")]], seed=1)[0]
    assert found["choices"][0]["message"]["content"] == told
    assert found["ddit"]["notices"] == [
        "images of earlier messages are not shown to the model: 1",
        "messages other than the last of a user are not shown to the model: 2",
    ]


def test_a_style_is_of_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = post(ask("is there a dog?", noise_image(1), style="detailed")).json()
    assert answer["ddit"]["notices"] == ["'style' is ignored: it is of captions"]
    refused = post(ask(None, noise_image(1), style="detailed"))
    assert refused.status_code == 400
    assert "writes no detailed captions" in refused.json()["error"]["message"]
    monkeypatch.setattr("ddit.prompts.DETAILED_QUESTION", "what is there of the photo")
    found = post(ask(None, noise_image(1), style="detailed", seed=2)).json()["choices"][0]["message"][
        "content"
    ]
    assert found == BLOCKS.caption(noise_image(1), style="detailed", seed=2)[0]


def test_on_the_page_blocks_appear_as_they_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddit.prompts.DETAILED_QUESTION", "what is there of the photo")

    async def run() -> tuple[bool, list[str]]:
        engine = Engine(BLOCKS)
        await engine.start()
        runs = Runs(engine, pace=0)
        frames = [html async for html in runs.write("caption", noise_image(1), "", False, style="detailed")]
        await engine.stop(1)
        return runs.can_describe, frames

    can_describe, frames = asyncio.run(run())
    assert can_describe
    assert frames[0].count('class="word ') == 3
    assert max(html.count("word masked") for html in frames) <= 3
    text = BLOCKS.caption(noise_image(1), style="detailed")[0]
    assert f">{text}</p>" in frames[-1]
