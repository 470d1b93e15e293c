"""Whatever a client sends is answered with a clear 4xx, and the server lives on."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from servers import ask, data_url, encoded, noise_image, pipeline, running

from ddit.serve.api import create_app
from ddit.serve.options import ServeConfig
from ddit.serve.schemas import ApiModel, ChatRequest, EditForm, GenerationRequest, VariationForm

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
CHAT, FILES = "/v1/chat/completions", "/v1/files"
JSON = {"content-type": "application/json"}
PNG = encoded(noise_image())
MEGABYTE = "a dog " * 170_000


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    """A few hundred bytes that say they are a GIF of 60,000 x 60,000 pixels."""
    head = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\0" + b"\x02" + b"\x02L\x01" + b"\0"
    return head + frame * 20 + b";"


def text_bomb() -> bytes:
    """A PNG with compressed text of 200 MB."""
    whole = encoded(noise_image())
    body = b"Comment\0\0" + zlib.compress(b"x" * 200_000_000, 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return whole[:33] + chunk + whole[33:]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'


def chat_with(url: Any, text: str = "what is it?") -> dict[str, Any]:
    body = ask(text)
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
    return body


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def generation(**fields: Any) -> tuple[str, dict[str, Any]]:
    return GENERATE, {"json": {"prompt": "a dog", **fields}}


def raw(path: str, content: str | bytes) -> tuple[str, dict[str, Any]]:
    return path, {"content": content, "headers": JSON}


def talk(**fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"json": ask("what color is the dog?", noise_image(), **fields)}


def messages(*given: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"json": {"model": "mini", "messages": list(given)}}


def part(**fields: Any) -> tuple[str, dict[str, Any]]:
    return messages({"role": "user", "content": [fields]})


def edit(path: str = EDIT, files: dict[str, Any] | None = None, **fields: str) -> tuple[str, dict[str, Any]]:
    return path, {"data": {"prompt": "a dog", **fields}, "files": {"image": PNG} if files is None else files}


def mask(side: int, level: int) -> bytes:
    return encoded(Image.new("L", (side, side), level))


def damaged_avif() -> bytes:
    """One whose decoder raises RuntimeError."""
    whole = encoded(Image.radial_gradient("L").resize((64, 64)).convert("RGB"), "AVIF")
    return whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    # bodies that are none
    "nothing": raw(GENERATE, ""),
    "half an object": raw(GENERATE, '{"prompt": "a dog"'),
    "a list": raw(GENERATE, "[]"),
    "a number": raw(GENERATE, "3"),
    "null": raw(CHAT, "null"),
    "bytes": raw(CHAT, b"\x00\xff\xfe\x80"),
    "not UTF-8": raw(GENERATE, b'{"prompt": "a d\xf6g"}'),
    "deep nesting": raw(CHAT, "[" * 200_000),
    "deep objects": raw(CHAT, '{"a":' * 100_000),
    "a number of 5000 digits": raw(GENERATE, '{"prompt": "a dog", "seed": ' + "9" * 5000 + "}"),
    "JSON as a form": (GENERATE, {"content": '{"prompt": "a dog"}', "headers": {"content-type": "text/plain"}}),
    "JSON as an edit": (EDIT, {"json": {"prompt": "a dog"}}),
    "a form without its boundary": (EDIT, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
    "a form cut off": (
        EDIT,
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="image"; file',
            "headers": {"content-type": "multipart/form-data; boundary=x"},
        },
    ),
    # generations
    "no prompt": (GENERATE, {"json": {}}),
    "an empty prompt": generation(prompt=""),
    "a blank prompt": generation(prompt=" \n\t "),
    "a prompt that is null": generation(prompt=None),
    "a prompt that is a number": generation(prompt=3),
    "a prompt that is a list": generation(prompt=["a dog"]),
    "a megabyte of prompt": generation(prompt=MEGABYTE),
    "a lone surrogate": raw(GENERATE, '{"prompt": "a \\ud800 dog"}'),
    "a lone surrogate in a message": raw(
        CHAT, json.dumps(ask("half \ud83d?", noise_image()))  # which JSON spells in ASCII
    ),
    "a damaged AVIF": (CHAT, {"json": chat_with(url_of(damaged_avif(), "image/avif"))}),
    "a damaged AVIF to vary": (VARY, {"files": {"image": damaged_avif()}}),
    "a damaged AVIF as an upload": (FILES, {"data": {"purpose": "vision"}, "files": {"file": damaged_avif()}}),
    "the end-of-text token": generation(prompt="a </s> dog"),
    "the mask token": generation(prompt="a <extra_id_0> dog"),
    "n = -1": generation(n=-1),
    "n = 0": generation(n=0),
    "n = 1000000": generation(n=1_000_000),
    "n = 1.5": generation(n=1.5),
    "n as a string": generation(n="2"),
    "n = true": generation(n=True),
    "NaN guidance": raw(GENERATE, '{"prompt": "a dog", "guidance_scale": NaN}'),
    "infinite guidance": raw(GENERATE, '{"prompt": "a dog", "guidance_scale": Infinity}'),
    "guidance of 1e999": raw(GENERATE, '{"prompt": "a dog", "guidance_scale": 1e999}'),
    "negative guidance": generation(guidance_scale=-1),
    "guidance as a string": generation(guidance_scale="2"),
    "no steps": generation(num_steps=0),
    "a billion steps": generation(num_steps=1_000_000_000),
    "half a step": generation(num_steps=0.5),
    "a seed of 2^63": generation(seed=2**63),
    "a seed of -2^63 - 1": generation(seed=-(2**63) - 1),
    "a seed of 2^70": generation(seed=2**70),
    "a seed as a string": generation(seed="0"),
    "a seed with a fraction": generation(seed=1.5),
    "an unknown sampler": generation(sampler="magic"),
    "a shift of 0": generation(shift=0),
    "an infinite shift": raw(GENERATE, '{"prompt": "a dog", "shift": Infinity}'),
    "a switch as a number": generation(shift_by_size=1),
    "a rescale above 1": generation(guidance_rescale=1.5),
    "an interval of one time": generation(guidance_interval=[0.5]),
    "an interval of texts": generation(guidance_interval=["0.1", "0.9"]),
    "an interval that falls": generation(guidance_interval=[0.9, 0.1]),
    "a batch size": generation(batch_size=64),
    "a height": generation(height=64),
    "a size of words": generation(size="large"),
    "a size of zero": generation(size="0x0"),
    "a negative size": generation(size="-32x32"),
    "a size off the grid": generation(size="33x32"),
    "a size beyond the model": generation(size="512x512"),
    "a size of 99999x99999": generation(size="99999x99999"),
    "a size as a number": generation(size=32),
    "upscaling by 0": generation(upscale=0),
    "upscaling beyond the limit": generation(upscale=64, size="48x48"),
    "best of none": generation(best_of=0),
    "best of a thousand": generation(best_of=1000),
    "an unknown format": generation(output_format="svg"),
    "a quality of 1000": generation(output_compression=1000),
    "an answer as a file": generation(response_format="file"),
    "four partial images": generation(stream=True, partial_images=4),
    "partial images without a stream": generation(partial_images=2),
    "partial images of the best of two": generation(stream=True, partial_images=1, best_of=2),
    "a stream of URLs": generation(stream=True, response_format="url"),
    "stream as a string": generation(stream="yes"),
    "a misspelt field": generation(num_step=3),
    "an empty negative prompt": generation(negative_prompt=""),
    "a megabyte of negative prompt": generation(negative_prompt=MEGABYTE),
    "a transparent background": generation(background="transparent"),
    "another model": generation(model="dall-e-3"),
    "a model that is a path": generation(model="../../etc/passwd"),
    # edits and variations
    "an edit without an image": edit(files={"mask": PNG}),
    "an edit without a prompt": (EDIT, {"files": {"image": PNG}}),
    "an empty image": edit(files={"image": b""}),
    "half an image": edit(files={"image": PNG[: len(PNG) // 2]}),
    "an SVG": edit(files={"image": ("a.svg", SVG, "image/svg+xml")}),
    "a script": edit(files={"image": ("a.png", b"#!/bin/sh\nrm -rf /\n", "image/png")}),
    "a path in a filename": edit(files={"image": ("../../etc/passwd", PNG)}),
    "a Windows path in a filename": edit(files={"image": ("..\\..\\a.png", PNG)}),
    "a header of 30,000 x 30,000": edit(files={"image": png_of_size(30_000, 30_000)}),
    "a header of 0 x 0": edit(files={"image": png_of_size(0, 0)}),
    "a header without its data": edit(files={"image": png_of_size(64, 64)}),
    "a GIF bomb": edit(files={"image": gif_bomb()}),
    "a bomb of text in a PNG": edit(files={"image": text_bomb()}),
    "a mask of another size": edit(files={"image": PNG, "mask": mask(16, 255)}),
    "a mask with nothing to generate": edit(files={"image": PNG, "mask": mask(32, 0)}),
    "a mask that is no image": edit(files={"image": PNG, "mask": b"x"}),
    "a mask with a strength": edit(files={"image": PNG, "mask": mask(32, 255)}, strength="0.5"),
    "two images": (EDIT, {"data": {"prompt": "a dog"}, "files": [("image[]", PNG), ("image[]", PNG)]}),
    "five files": (EDIT, {"data": {"prompt": "a dog"}, "files": [("image", PNG)] * 5}),
    "an image as a string": edit(files={"mask": PNG}, image=data_url(noise_image())),
    "an unknown file": edit(files={"image": PNG, "extra": PNG}),
    "strength NaN": edit(strength="nan"),
    "strength 0": edit(strength="0"),
    "strength 2": edit(strength="2"),
    "strength of words": edit(strength="strong"),
    "an interval of one time in a form": edit(guidance_interval="0.5"),
    "an edit with two prompts": (EDIT, {"data": {"prompt": ["a dog", "a cat"]}, "files": {"image": PNG}}),
    "an edit of n = -1": edit(n="-1"),
    "an edit of n = one": edit(n="one"),
    "an edit with an unknown field": edit(magic="1"),
    "an edit of a megabyte": edit(prompt=MEGABYTE),
    "a hundred fields": edit(**{f"field{i}": "1" for i in range(100)}),
    "a variation without an image": (VARY, {"data": {"prompt": "a dog"}, "files": {"mask": PNG}}),
    "a variation with a mask": edit(VARY, files={"image": PNG, "mask": mask(32, 255)}),
    # chat
    "no messages": (CHAT, {"json": {"model": "mini"}}),
    "an empty list of messages": messages(),
    "messages as a string": (CHAT, {"json": {"messages": "what is it?"}}),
    "a message that is a string": messages("what is it?"),
    "a message without a role": messages({"content": "what is it?"}),
    "an unknown role": messages({"role": "robot", "content": "what is it?"}),
    "no message of a user": messages({"role": "system", "content": "be brief"}),
    "neither text nor image": messages({"role": "user", "content": ""}),
    "content that is a number": messages({"role": "user", "content": 3}),
    "three hundred messages": messages(*[{"role": "user", "content": "what is it?"}] * 300),
    "a part without a type": part(text="what is it?"),
    "an unknown part": part(type="video_url", video_url={"url": "data:,"}),
    "a text part without text": part(type="text"),
    "an image part without one": part(type="image_url"),
    "an image that is null": part(type="image_url", image_url=None),
    "a URL that is a number": part(type="image_url", image_url={"url": 3}),
    "a megabyte of question": messages({"role": "user", "content": MEGABYTE}),
    "truncated base64": (CHAT, {"json": chat_with(data_url(noise_image())[:-3])}),
    "a truncated image": (CHAT, {"json": chat_with(url_of(PNG[:100]))}),
    "base64 with other letters": (CHAT, {"json": chat_with("data:image/png;base64,@@@@")}),
    "a data URL that is not base64": (CHAT, {"json": chat_with("data:image/png,abc")}),
    "a data URL of nothing": (CHAT, {"json": chat_with("data:image/png;base64,")}),
    "a data URL of text": (CHAT, {"json": chat_with(url_of(b"hello", "text/plain"))}),
    "a data URL of an SVG": (CHAT, {"json": chat_with(url_of(SVG, "image/svg+xml"))}),
    "a data URL of a huge header": (CHAT, {"json": chat_with(url_of(png_of_size(30_000, 30_000)))}),
    "a data URL of a GIF bomb": (CHAT, {"json": chat_with(url_of(gif_bomb(), "image/gif"))}),
    "a path as a URL": (CHAT, {"json": chat_with("/etc/passwd")}),
    "a file URL": (CHAT, {"json": chat_with("file:///etc/passwd")}),
    "an FTP URL": (CHAT, {"json": chat_with("ftp://example.com/a.png")}),
    "a foreign URL": (CHAT, {"json": chat_with("http://127.0.0.1:9/a.png")}),
    "a URL of nothing": (CHAT, {"json": chat_with("")}),
    "a file that is not there": part(type="file", file={"file_id": "file-" + "0" * 32}),
    "a file id with a path": part(type="file", file={"file_id": "../../etc/passwd"}),
    "a file without anything": part(type="file", file={}),
    "temperature NaN": raw(CHAT, json.dumps(ask("what is it?", temperature=float("nan")))),
    "temperature -1": talk(temperature=-1),
    "temperature 3": talk(temperature=3),
    "top_p -0.1": talk(top_p=-0.1),
    "top_p 2": talk(top_p=2),
    "no tokens": talk(max_tokens=0),
    "an unknown order": talk(order="alphabetical"),
    "the order of 0.1 that is random now": talk(order="first-hitting"),
    "a guidance of 1000": talk(text_guidance_scale=1000),
    "an unknown task": talk(task="translate"),
    "filling in without blanks": talk(task="infill"),
    "eleven answers": talk(n=11),
    "tools": talk(tools=[{"type": "function", "function": {"name": "f"}}]),
    "a JSON schema": talk(response_format={"type": "json_schema", "json_schema": {}}),
    "stop words": talk(stop=["red"]),
    "logprobs": talk(logprobs=True),
    "stream_options without a stream": talk(stream_options={"include_usage": True}),
    "blocks of -1": talk(block_size=-1),
    "a question of reserved tokens": messages({"role": "user", "content": "is </s> there?"}),
    # files
    "an upload of nothing": (FILES, {"files": {"file": b""}}),
    "an upload without a file": (FILES, {"data": {"purpose": "vision"}}),
    "an upload of text": (FILES, {"files": {"file": ("a.txt", b"hello")}}),
    "an upload of an SVG": (FILES, {"files": {"file": ("a.svg", SVG)}}),
    "an upload with a path": (FILES, {"files": {"file": ("../a.png", PNG)}}),
    "an upload for another purpose": (FILES, {"data": {"purpose": "fine-tune"}, "files": {"file": PNG}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = create_app(pipeline(), ServeConfig(max_body_bytes=3_000_000, max_side=1024))
    with running(app) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_answered_4xx_with_a_clear_message(client: httpx.Client, name: str) -> None:
    path, request = BAD[name]
    answer = client.post(path, **request)
    assert 400 <= answer.status_code < 500, answer.text
    fault = answer.json()["error"]
    assert set(fault) == {"message", "type", "param", "code"}
    assert 10 <= len(fault["message"]) <= 520
    assert "\n" not in fault["message"]
    assert fault["type"] == "invalid_request_error"
    assert client.get("/healthz").json() == {"status": "ok", "waiting": 0, "running": 0}


def test_there_are_a_hundred_and_more() -> None:
    assert len(BAD) > 100


def test_after_all_of_them_the_server_generates(client: httpx.Client) -> None:
    for path, request in BAD.values():
        client.post(path, **request)
    assert client.post(GENERATE, json={"prompt": "a dog"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/images/generations", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/files", 405),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd/content", 404),
        ("GET", "/v1/files/file-0/content", 404),
        ("DELETE", "/v1/files/file-0", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
def test_wrong_paths_and_methods_are_answered_in_the_same_shape(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_large_image_within_the_limits_is_read(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3900, 4000), "red").save(buffer, "JPEG")
    body = chat_with(url_of(buffer.getvalue()), "what color is it?")
    assert client.post(CHAT, json=body).status_code == 200


# --- numbers that are none ---


def floats_of(body: type[ApiModel]) -> list[str]:
    return [name for name, field in body.model_fields.items() if "float" in str(field.annotation)]


FLOATS = [
    (path, name, value)
    for path, body in (
        (GENERATE, GenerationRequest),
        (EDIT, EditForm),
        (VARY, VariationForm),
        (CHAT, ChatRequest),
    )
    for name in floats_of(body)
    for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-5", "1" + "0" * 400)
]


def test_every_route_has_its_floats_here() -> None:
    found = {(path, name) for path, name, _ in FLOATS}
    for given in (
        (GENERATE, "guidance_scale"),
        (EDIT, "strength"),
        (CHAT, "temperature"),
        (CHAT, "presence_penalty"),
    ):
        assert given in found


@pytest.mark.parametrize(("path", "name", "value"), FLOATS)
def test_a_float_that_is_not_finite_or_out_of_its_range_is_refused(
    client: httpx.Client, path: str, name: str, value: str
) -> None:
    pair = name == "guidance_interval"
    if path in (EDIT, VARY):
        data = {"prompt": "a dog", name: [value, value] if pair else value}
        answer = client.post(path, data=data, files={"image": PNG})
    else:
        rest = ask("is there a dog?") if path == CHAT else {"prompt": "a dog"}
        body = json.dumps({**rest, name: "?"}).replace('"?"', f"[0, {value}]" if pair else value)
        answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["error"]["message"] or name in str(answer.json()["error"]["param"])
