"""Texts over HTTP are those of the pipeline for the same seed, in OpenAI's form, streamed or not."""

from itertools import pairwise
from typing import Any

import httpx
import pytest
from servers import ask, data_url, events, noise_image, pipeline, post, with_client

GENERATE, CHAT = "/v1/images/generations", "/v1/chat/completions"


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


def test_data_urls_may_name_any_type_since_the_bytes_tell() -> None:
    body = ask("is there a dog?", seed=4)
    url = data_url(noise_image(1)).replace("image/png", "image/jpeg;charset=utf-8")
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    assert post(CHAT, json=body).status_code == 200


def test_an_image_of_one_pixel_is_an_image() -> None:
    assert post(CHAT, json=ask("is there a dog?", noise_image(side=1))).status_code == 200


# --- what the model is not shown ---


def image_part(seed: int, detail: str | None = None) -> dict[str, Any]:
    url = {"url": data_url(noise_image(seed))} | ({"detail": detail} if detail else {})
    return {"type": "image_url", "image_url": url}


def said(*messages: Any, **fields: Any) -> httpx.Response:
    return post(CHAT, json={"messages": list(messages), "seed": 1, **fields})


QUESTION = {"type": "text", "text": "what color is the dog?"}


def test_two_images_in_a_message_are_refused() -> None:
    answer = said({"role": "user", "content": [QUESTION, image_part(1), image_part(2)]})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "the model is shown one image: messages.0 has 2",
        "type": "invalid_request_error",
        "param": "messages.0.content",
        "code": "too_many_images",
    }


def test_images_and_texts_of_other_messages_are_noticed() -> None:
    first = {"role": "user", "content": [QUESTION, image_part(1), image_part(2)]}
    answer = said(
        {"role": "system", "content": "be brief"},
        first,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "name": "me", "content": [QUESTION, image_part(3)]},
    ).json()
    assert answer["ddit"]["notices"] == [
        "images of earlier messages are not shown to the model: 2",
        "messages other than the last of a user are not shown to the model: 2",
    ]
    own = pipeline().answer(noise_image(3), QUESTION["text"], seed=1)[0]
    assert answer["choices"][0]["message"]["content"] == own


def test_a_stream_has_the_notices_too() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "is there a dog?"}]
    chunks = events(said(*messages, stream=True).text)[:-1]
    found = [line for chunk in chunks for line in chunk["ddit"].get("notices", [])]
    assert found == ["messages other than the last of a user are not shown to the model: 1"]


@pytest.mark.parametrize(
    ("content", "fields", "notice"),
    [
        ([QUESTION, image_part(1, "high")], {}, "'detail' is ignored: the model sees all images at one size"),
        ([QUESTION, image_part(1, "auto")], {}, None),
        ([QUESTION, image_part(1)], {"task": "caption"}, "the text of the message is not shown to the model, since"),
        ("a ___ dog", {"max_tokens": 3}, "'max_tokens' is ignored: a text with blanks has its own length"),
    ],
)  # fmt: skip
def test_what_a_message_asks_for_in_vain_is_noticed(
    content: Any, fields: dict[str, Any], notice: str | None
) -> None:
    found = said({"role": "user", "content": content}, **fields).json()["ddit"]["notices"]
    assert len(found) == (notice is not None)
    assert all(line.startswith(notice or "") for line in found)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": None}], "neither a text of a user nor an image"),
        ([{"role": "user", "content": []}], "neither a text of a user nor an image"),
        ([{"role": "user"}], "neither a text of a user nor an image"),
        ([{"role": "system", "content": "be brief"}], "messages contain none of a user"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "'input_audio' are not"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "text, image_url and file are"),
    ],
)  # fmt: skip
def test_messages_without_anything_to_answer_are_refused(messages: list[Any], message: str) -> None:
    answer = said(*messages)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_top_p_0_takes_the_likeliest_tokens() -> None:
    answers = [said({"role": "user", "content": [QUESTION, image_part(1)]}, top_p=0).json() for _ in range(2)]
    own = pipeline().answer(noise_image(1), QUESTION["text"], seed=1, top_p=1e-9)[0]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [own, own]
