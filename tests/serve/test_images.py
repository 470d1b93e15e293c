"""Images over HTTP are those of the pipeline for the same seed, in OpenAI's form."""

import io

import httpx
import pytest
from PIL import Image
from servers import ask, decoded, encoded, events, level_difference, noise_image, pipeline, post, with_client
from sse_starlette.sse import AppStatus

from ddit.errors import collect_warnings
from ddit.schema import list_options
from ddit.serve.schemas import ChatRequest, GenerationRequest
from ddit.settings import CaptionOptions, ImageOptions

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
CHAT = "/v1/chat/completions"


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
    assert set(ChatRequest.OPTIONS) == names_of(CaptionOptions) - {"height", "width", "batch_size", "length"}
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
