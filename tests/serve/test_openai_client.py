"""OpenAI's own client: every parameter of its methods does what docs/serving.md says of it."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject, ImagesResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.image_edit_completed_event import ImageEditCompletedEvent
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from pydantic import BaseModel
from servers import ask, encoded, events, noise_image, pipeline, post, running

from ddit.serve.api import create_app
from ddit.serve.openai_fields import CHAT_FIELDS, FILE_FIELDS, IMAGE_FIELDS

# the client's own: variations and retrieve_content are deprecated there
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GENERATE, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
PNG = encoded(noise_image(1))
MESSAGES = ask("is there a dog?", noise_image(1))["messages"]
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


class Row(NamedTuple):
    """A row of a table in docs/serving.md."""

    names: tuple[str, ...]
    says: str


def table(header: str) -> list[Row]:
    """The rows of the table whose header begins so."""
    _, _, below = PAGE.partition(f"\n| {header}")
    lines = below.partition("\n\n")[0].splitlines()[2:]
    cells = [re.fullmatch(r"\| (.*?) \| (.*) \|", line) for line in lines]
    return [Row(tuple(re.findall(r"`([\w.]+)`", cell[1])), cell[2]) for cell in cells if cell]


TABLES = {name: table(f"`{name}`") for name in ("images.generate", "chat.completions.create", "files.create")}
METHODS = table("method")
FIELDS = {
    "images.generate": IMAGE_FIELDS,
    "chat.completions.create": CHAT_FIELDS,
    "files.create": FILE_FIELDS,
}
CALLS = {
    "images.generate": ("images.generate", "images.edit", "images.create_variation"),
    "chat.completions.create": ("chat.completions.create",),
    "files.create": ("files.create",),
}
NEEDED: dict[str, dict[str, Any]] = {
    "images.generate": {"prompt": "a dog"},
    "images.edit": {"image": PNG, "prompt": "a dog"},
    "images.create_variation": {"image": PNG, "extra_body": {"prompt": "a dog"}},
    "chat.completions.create": {"model": "mini", "messages": MESSAGES},
    "files.create": {"file": PNG, "purpose": "vision"},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
EXAMPLES: dict[str, dict[str, Any]] = {
    # of images
    "prompt": {}, "image": {}, "model": {"model": "mini"}, "n": {"n": 2}, "size": {"size": "32x32"},
    "stream": {"stream": True}, "partial_images": {"partial_images": 1, "stream": True},
    "mask": {"mask": encoded(noise_image(2).convert("RGBA"))}, "response_format": {"response_format": "url"},
    "output_format": {"output_format": "webp"}, "background": {"background": "opaque"},
    "output_compression": {"output_compression": 50, "output_format": "jpeg"},
    "quality": {"quality": "high"}, "complexity": {"complexity": "low"}, "style": {"style": "vivid"},
    "input_fidelity": {"input_fidelity": "high"}, "user": {"user": "me"},
    "safety_identifier": {"safety_identifier": "a"},
    "moderation": {"moderation": "low"}, "frame_count": {"frame_count": 4},
    "frame_duration_ms": {"frame_duration_ms": 100},
    "svg": {"svg": {"model": "x"}}, "markup": {"markup": PNG},
    # of texts
    "messages": {}, "seed": {"seed": 3}, "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "temperature": {"temperature": 0.5}, "top_p": {"top_p": 0}, "max_tokens": {"max_tokens": 3},
    "max_completion_tokens": {"max_completion_tokens": 10**9}, "modalities": {"modalities": ["text"]},
    "metadata": {"metadata": {"a": "b"}}, "store": {"store": True}, "service_tier": {"service_tier": "flex"},
    "prompt_cache_key": {"prompt_cache_key": "a"}, "prompt_cache_options": {"prompt_cache_options": {"ttl": "30m"}},
    "prompt_cache_retention": {"prompt_cache_retention": "24h"}, "reasoning_effort": {"reasoning_effort": "high"},
    "prediction": {"prediction": {"type": "content", "content": "a"}}, "verbosity": {"verbosity": "low"},
    "presence_penalty": {"presence_penalty": 0.5}, "frequency_penalty": {"frequency_penalty": -0.5},
    "parallel_tool_calls": {"parallel_tool_calls": False}, "audio": {"audio": {"voice": "a", "format": "wav"}},
    "functions": {"functions": [{"name": "f"}]}, "function_call": {"function_call": {"name": "f"}},
    "tools": {"tools": [TOOL]}, "tool_choice": {"tool_choice": "required"}, "logit_bias": {"logit_bias": {"5": 1}},
    "logprobs": {"logprobs": True}, "top_logprobs": {"top_logprobs": 2}, "stop": {"stop": ["."]},
    "web_search_options": {"web_search_options": {}},
    # of files
    "file": {}, "purpose": {"purpose": "user_data"},
    "expires_after": {"expires_after": {"anchor": "created_at", "seconds": 3600}},
}  # fmt: skip
EXAMPLES_OF_TEXTS = {
    "response_format": {"response_format": {"type": "json_object"}},
    "moderation": {"moderation": {"model": "omni-moderation-latest"}},
}


def method_of(client: Any, name: str) -> Any:
    for part in name.split("."):
        client = getattr(client, part)
    return client


def parameters(name: str) -> list[str]:
    offline = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")
    found = inspect.signature(method_of(offline, name)).parameters
    return [parameter for parameter in found if parameter not in OF_THE_CLIENT]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(create_app(pipeline())) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


# --- the table ---


@pytest.mark.parametrize("name", TABLES)
def test_the_table_has_every_parameter_of_the_installed_client(name: str) -> None:
    listed = [parameter for row in TABLES[name] for parameter in row.names if parameter in EXAMPLES]
    assert sorted(listed) == sorted({one for call in CALLS[name] for one in parameters(call)})


@pytest.mark.parametrize("name", TABLES)
def test_what_the_table_ignores_and_refuses_is_what_the_server_does(name: str) -> None:
    for word, is_refused in (("ignored", False), ("refused", True)):
        listed = {one for row in TABLES[name] if row.says.startswith(word) for one in row.names}
        assert listed == {one for one, field in FIELDS[name].items() if field.refused is is_refused}


def test_other_ways_to_ask_for_a_text_have_no_parameters_of_their_own() -> None:
    own = set(parameters("chat.completions.create"))
    assert set(parameters("chat.completions.parse")) <= own
    assert set(parameters("chat.completions.stream")) <= own


CASES = [
    (call, one, row.says)
    for name, calls in CALLS.items()
    for call in calls
    for row in TABLES[name]
    for one in row.names
    if one in parameters(call)
]


@pytest.mark.parametrize(("call", "name", "says"), CASES)
def test_each_parameter_does_what_its_row_says(
    client: openai.OpenAI, call: str, name: str, says: str
) -> None:
    example = (EXAMPLES_OF_TEXTS if call.startswith("chat") else {}).get(name) or EXAMPLES[name]
    given = {**NEEDED[call], **example}
    if says.startswith("refused"):
        with pytest.raises(openai.BadRequestError) as refused:
            method_of(client, call)(**given)
        assert refused.value.param == name
        assert f"'{name}' is not supported by this server: " in refused.value.message
        return
    found = notices(method_of(client, call)(**given))
    if says.startswith("ignored"):
        assert len(found) == 1
        assert found[0].startswith(f"'{name}' is ignored: ")
    else:
        assert says.startswith("honoured")
        assert found == []


def notices(answer: Any) -> list[str]:
    """Those of an answer or of a stream."""
    parts = list(answer) if isinstance(answer, openai.Stream) else [answer]
    return [line for part in parts for line in (part.model_extra.get("ddit") or {}).get("notices", ())]


NEUTRAL = [
    (path, name, value)
    for path, fields in ((GENERATE, IMAGE_FIELDS), (CHAT, CHAT_FIELDS))
    for name, field in fields.items()
    for value in (None, *field.neutral)
]


@pytest.mark.parametrize(("path", "name", "value"), NEUTRAL)
def test_a_value_that_asks_for_nothing_passes_without_a_notice(
    address: str, path: str, name: str, value: Any
) -> None:
    body = {"prompt": "a dog"} if path == GENERATE else {"messages": MESSAGES}
    answer = httpx.post(address + path, json={**body, name: value})
    assert answer.status_code == 200
    assert answer.json()["ddit"]["notices"] == []


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        ("images.generate", {"background": "transparent"}, "background: the model's images are opaque"),
        ("images.generate", {"output_format": "gif"}, "output_format must be 'png', 'jpeg' or 'webp', got 'gif'"),
        ("images.generate", {"size": "256x256"}, "multiples of 8 from 8 to 48, by default 32x32; upscale enlarges"),
        ("images.generate", {"size": "1024x1024"}, "size 1024x1024 is not possible"),
        ("images.generate", {"size": "33x32"}, "multiples of 8 from 8 to 48"),
        ("images.generate", {"size": "large"}, "'large' is not auto or WIDTHxHEIGHT"),
        ("images.edit", {"image": [PNG, PNG]}, "'image' is given 2 times: one is used here"),
        ("images.edit", {"size": "512x512"}, "size 512x512 is not possible"),
        ("images.create_variation", {"size": "256x256"}, "size 256x256 is not possible"),
        ("chat.completions.create", {"modalities": ["text", "audio"]}, "the model writes text only"),
        ("chat.completions.create", {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ("chat.completions.create", {"max_tokens": 2, "max_completion_tokens": 3}, "give one of them"),
        ("chat.completions.create", {"messages": []}, "messages must be at least 1 long, got []"),
        ("chat.completions.create", {"presence_penalty": 3}, "presence_penalty must be at most 2, got 3"),
        ("files.create", {"purpose": "fine-tune"}, "'fine-tune' is not supported: files are images to ask about"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_honoured_are_refused_with_their_reason(
    client: openai.OpenAI, call: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        method_of(client, call)(**{**NEEDED[call], **given})
    assert message in refused.value.message


# --- methods ---

ASKED_FOR = {
    "models.retrieve": {"model": "mini"}, "models.delete": {"model": "mini"}, "files.delete": {"file_id": "F"},
    "files.retrieve": {"file_id": "F"}, "files.content": {"file_id": "F"}, "files.retrieve_content": {"file_id": "F"},
    "files.wait_for_processing": {"id": "F"}, "chat.completions.retrieve": {"completion_id": "c"},
    "chat.completions.update": {"completion_id": "c", "metadata": {}},
    "chat.completions.delete": {"completion_id": "c"}, "responses.create": {"model": "mini", "input": "a"},
    "completions.create": {"model": "mini", "prompt": "a"},
}  # fmt: skip


@pytest.mark.parametrize(("names", "says"), METHODS)
def test_each_method_does_what_its_row_says(client: openai.OpenAI, names: tuple[str, ...], says: str) -> None:
    for name in names:
        file_id = client.files.create(file=PNG, purpose="vision").id
        given = {one: file_id if two == "F" else two for one, two in ASKED_FOR.get(name, {}).items()}
        if says == "honoured":
            method_of(client, name)(**given)
            continue
        with pytest.raises(openai.APIStatusError, match=r"this server has no [A-Z]+ /v1/.*: \w+") as refused:
            method_of(client, name)(**given)
        assert refused.value.status_code in (404, 405)


def test_the_methods_of_files_and_models_and_texts_are_all_listed(client: openai.OpenAI) -> None:
    listed = {name for row in METHODS for name in row.names} | {
        one for some in CALLS.values() for one in some
    }
    listed |= {"chat.completions.parse", "chat.completions.stream"}
    for resource in ("files", "models", "chat.completions", "images"):
        kind = type(method_of(client, resource))
        public = [
            name for name, one in vars(kind).items() if not name.startswith("_") and inspect.isfunction(one)
        ]
        assert {f"{resource}.{name}" for name in public} <= listed


def test_the_clients_helpers_for_texts_work(client: openai.OpenAI) -> None:
    own = pipeline().infill(noise_image(1), "a ___ dog", seed=3)[0]
    given: Any = {"model": "mini", "messages": ask("a ___ dog", noise_image(1))["messages"], "seed": 3}
    assert client.chat.completions.parse(**given).choices[0].message.content == own
    with client.chat.completions.stream(**given) as stream:
        assert stream.get_final_completion().choices[0].message.content == own


# --- answers ---


def test_answers_are_of_the_clients_types(address: str) -> None:
    def check(kind: type[BaseModel], data: Any) -> None:
        kind.model_validate(data, strict=True)

    with httpx.Client(base_url=address, timeout=60) as http:
        check(ImagesResponse, http.post(GENERATE, json={"prompt": "a dog"}).json())
        streamed = events(
            http.post(GENERATE, json={"prompt": "a dog", "stream": True, "partial_images": 1}).text
        )
        check(ImageGenPartialImageEvent, streamed[0])
        check(ImageGenCompletedEvent, streamed[-1])
        form = {"data": {"prompt": "a dog", "stream": "true"}, "files": {"image": PNG}}
        check(ImageEditCompletedEvent, events(http.post(EDIT, **form).text)[-1])
        check(ChatCompletion, http.post(CHAT, json={"messages": MESSAGES}).json())
        body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
        for chunk in events(http.post(CHAT, json=body).text)[:-1]:
            check(ChatCompletionChunk, chunk)
        file = http.post("/v1/files", files={"file": PNG}).json()
        check(FileObject, file)
        check(FileDeleted, http.delete(f"/v1/files/{file['id']}").json())
        check(Model, http.get("/v1/models/mini").json())


# --- seeds ---


def seeds(seed: int | None, n: int = 1) -> list[int]:
    return post(GENERATE, json={"prompt": "a dog", "seed": seed, "n": n}).json()["ddit"]["seeds"]


def test_seed_minus_one_is_a_random_one() -> None:
    first, second = seeds(-1), seeds(-1)
    assert first != second
    assert all(0 <= seed < 2**32 for seed in first + second)


def test_every_other_64_bit_seed_is_one_of_the_pipelines_and_always_the_same() -> None:
    assert seeds(-2, n=3) == [2**62 - 2, 2**62 - 1, 0]
    assert seeds(-(2**63)) == seeds(2**62) == [0]
    assert seeds(2**63 - 1) == [2**62 - 1]
    answers = [
        post(CHAT, json={"messages": MESSAGES, "seed": -7, "temperature": 1.5}).json() for _ in range(2)
    ]
    assert answers[0]["choices"] == answers[1]["choices"]
