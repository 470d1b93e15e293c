"""What users of diffusers, transformers and OpenAI's client type: the table of docs/coming_from.md, and wrong calls."""

import ast
import base64
import inspect
import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from servers import ask, pipeline, running
from tiny_models import tiny_pipeline

from ddit import habits
from ddit.pipeline import Pipeline
from ddit.serve.api import create_app

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text()
VERBS = ["generate", "inpaint", "vary", "caption", "answer", "infill", "score", "choose", "__call__"]
QUESTION = "what color is the dog?"


class Row(NamedTuple):
    """A row of the table: what is typed, what comes of it, and what is typed in its place."""

    typed: str
    outcome: str
    here: str


ROWS = [
    Row(*found) for found in re.findall(r"^\| \w+ \| `(.*)` \| ([^|`]+) \| `(.*)` \|$", PAGE, re.MULTILINE)
]


def noise_image(seed: int = 0, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """OpenAI's client of a server of the tiny model."""
    with (
        running(create_app(pipeline())) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def evaluate(code: str, client: openai.OpenAI) -> Any:
    """The value of a cell, with a model of its own."""
    image = noise_image()
    mask = Image.new("L", image.size, 255)
    names = {
        "Pipeline": Pipeline,
        "pipe": tiny_pipeline(),
        "image": image,
        "mask": mask,
        "client": client,
        "messages": ask(QUESTION, image)["messages"],
        "np": np,
        "torch": torch,
        "print": lambda _: None,
    }
    return eval(code, names)


def plain(value: Any) -> Any:
    """Images as bytes, and all that stands for the same as the same."""
    if isinstance(value, Pipeline):
        return str(value.device), str(value.dtype)
    if isinstance(value, Image.Image):
        return value.tobytes()
    if hasattr(value, "images"):
        return plain(value.images)
    if isinstance(value, openai.types.ImagesResponse):
        return [plain(Image.open(io.BytesIO(base64.b64decode(one.b64_json)))) for one in value.data]
    if isinstance(value, openai.types.chat.ChatCompletion):
        return [choice.message.content for choice in value.choices]
    if isinstance(value, np.ndarray | torch.Tensor):
        return np.round(np.asarray(value) * 255).astype(np.uint8).tolist()
    return [plain(one) for one in value] if isinstance(value, list) else value


def called(code: str) -> tuple[set[str], set[str]]:
    """The names of keywords and attributes in a line of code."""
    nodes = list(ast.walk(ast.parse(code)))
    keywords = {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    return keywords, {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_table_is_read_whole() -> None:
    assert len(ROWS) == len(re.findall(r"^\| (?:diffusers|transformers|OpenAI) \|", PAGE, re.MULTILINE)) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.typed)
def test_a_row_of_the_table_holds(
    row: Row, client: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = evaluate(row.here, client)
    if row.outcome == "hint":
        with pytest.raises((TypeError, AttributeError, ValueError)) as caught:
            evaluate(row.typed, client)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 200
        (typed, _), (keywords, attributes) = called(row.typed), called(row.here)
        wanted = (keywords - typed) or ({"leave it out"} if typed - keywords else set()) | attributes
        assert any(name in message for name in wanted), message
        return
    typed = evaluate(row.typed, client)
    if row.outcome == "works":
        assert typed is None or plain(typed) == plain(here)
    else:
        assert row.outcome.startswith("works, from ")
        assert [image.size for image in typed.images] == [image.size for image in here]
        assert plain(typed) != plain(here)
        assert plain(tiny_pipeline().generate(["a red dog"] * len(here), seed=typed.seeds)) == plain(typed)


def test_the_offload_of_a_loaded_model_is_that_of_a_model_loaded_so() -> None:
    pipe = tiny_pipeline()
    before = pipe.generate("a red dog")
    pipe.enable_model_cpu_offload("cpu")
    assert pipe.text_codec.offload_device == pipe.image_codec.offload_device == torch.device("cpu")
    assert plain(pipe.generate("a red dog")) == plain(before)
    assert "encoders on the CPU" in repr(pipe)


# --- names of other libraries ---


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_is_silent_about_another_librarys_argument(verb: str) -> None:
    method, pipe = getattr(Pipeline, verb), tiny_pipeline()
    taken = inspect.signature(method).parameters
    for name in habits.ARGUMENTS.keys() - taken.keys():
        with pytest.raises(TypeError, match=f"unknown argument '{name}': ") as caught:
            method(pipe, **{name: 1})
        assert "\n" not in str(caught.value)


def test_hints_name_what_exists() -> None:
    options = {name for verb in VERBS for name in inspect.signature(getattr(Pipeline, verb)).parameters}
    options |= set(inspect.signature(Pipeline.from_pretrained).parameters)
    for name, hint in (habits.ARGUMENTS | habits.ATTRIBUTES).items():
        for method, arguments in re.findall(r"\b([a-z_]+)\(([^()]*)\)", hint):
            assert method == "pipeline" or hasattr(Pipeline, method), name
            assert all(given in options for given in re.findall(r"(\w+)=", arguments)), name
        renamed = re.match(r"it is (\w+)\b(?![.(])", hint)
        if renamed and name in habits.ARGUMENTS:
            assert renamed[1] in options | {"prompt_length"}, name
        if renamed and name in habits.ATTRIBUTES:
            assert renamed[1] in options or hasattr(tiny_pipeline(), renamed[1]), name


@pytest.mark.parametrize("name", sorted(habits.ATTRIBUTES))
def test_an_attribute_of_another_library_is_answered_with_its_name_here(name: str) -> None:
    assert not hasattr(Pipeline, name)
    with pytest.raises(AttributeError, match=f"Pipeline has no '{name}': ") as caught:
        getattr(tiny_pipeline(), name)
    assert habits.ATTRIBUTES[name] in str(caught.value)


def test_a_mistyped_method_is_answered_with_its_near_misses() -> None:
    pipe = tiny_pipeline()
    with pytest.raises(AttributeError, match=r"Pipeline has no 'captoin'; did you mean caption\?"):
        pipe.captoin  # noqa: B018
    assert not hasattr(pipe, "_repr_html_")


# --- wrong calls ---

IMAGE = noise_image()
FAULTS = {
    "generate a number": (lambda p: p.generate(5), "prompts must be a text or a list of texts, got 5"),
    "generate nothing": (lambda p: p.generate(None), "prompts must be a text or a list of texts, got None"),
    "generate a mixture": (lambda p: p.generate(["a dog", b"x"]), "prompts must be .* got bytes"),
    "generate an image": (lambda p: p.generate(IMAGE), r"got Image; caption\(images\) and answer"),
    "generate without a prompt": (lambda p: p.generate(), r"^generate\(prompts\) needs prompts$"),
    "generate by position": (lambda p: p.generate("a dog", 20), r"give options by name, as in batch_size=\.\.\."),
    "generate(prompt=)": (lambda p: p.generate(prompt="a dog"), "unknown argument 'prompt': it is prompts"),
    "a near miss of an option": (lambda p: p.generate("a dog", best_off=2), r"'best_off'; did you mean best_of\?"),
    "caption an object": (lambda p: p.caption(object()), "images must be a path, .*, or a list of these; got object"),
    "caption a mixture": (lambda p: p.caption([IMAGE, 5]), "the image must be a path, .*; got int"),
    "caption an address": (lambda p: p.caption("https://a.b/c.png"), "'https://a.b/c.png' is an address"),
    "answer without a question": (lambda p: p.answer(IMAGE), r"^answer\(images, questions\) needs questions$"),
    "answer a number": (lambda p: p.answer(IMAGE, 5), "questions must be a text or a list of texts, got 5"),
    "answer(image=, question=)": (lambda p: p.answer(image=IMAGE, question="?"), "'image': it is images"),
    "an argument twice": (lambda p: p.answer(IMAGE, "a", images=IMAGE), "answer: images is given twice"),
    "infill without a text": (lambda p: p.infill(IMAGE), r"^infill\(images, texts\) needs texts$"),
    "inpaint without a mask": (lambda p: p.inpaint(IMAGE, prompts="a dog"), r"inpaint\(.*\) needs masks$"),
    "choose without candidates": (lambda p: p.choose(IMAGE), r"^choose\(images, candidates\) needs candidates$"),
    "a seed that is none": (lambda p: p.generate("a dog", seed="5"), "seed must be a whole number, .*; got str"),
    "a generator that is none": (lambda p: p("a dog", generator=5), "generator must be a torch.Generator"),
    "two numbers of steps": (lambda p: p("a dog", num_inference_steps=1, num_steps=2), "give one of them"),
    "no image a prompt": (lambda p: p("a dog", num_images_per_prompt=0), "num_images_per_prompt must be at least 1"),
    "another output_type": (lambda p: p("a dog", output_type="jax"), "output_type must be pil, np or pt, got 'jax'"),
    "a map of devices": (lambda p: p.from_pretrained(device_map={"vae": 0}), "device '.*' cannot be used here"),
    "generate a dictionary": (lambda p: p.generate({"prompt": "a dog"}), "prompts must be .* got dict"),
    "generate bytes": (lambda p: p.generate(b"a dog"), "prompts must be .* got bytes"),
    "caption a file that is open": (lambda p: p.caption(io.BytesIO(b"x")), "images must be a path, .*; got BytesIO"),
    "inpaint with None for a mask": (lambda p: p.inpaint(IMAGE, None, "a dog"), "inpaint needs a mask: white is"),
    "a number as a text": (lambda p: p.generate("a dog", best_of="2"), "best_of must be a whole number, got '2'"),
    "a strength as a text": (lambda p: p.vary(IMAGE, "a dog", strength="1"), "strength must be a number, got '1'"),
    "a switch as a text": (lambda p: p.from_pretrained(int8="yes"), "int8 must be True or False, got 'yes'"),
    "a model that is None": (lambda p: p.from_pretrained(None), "name_or_path must be a name or a path, got None"),
    "two names of one argument": (lambda p: p.from_pretrained(dtype="half", torch_dtype="half"), "give one of them"),
    "a callback that is none": (lambda p: p.generate("a dog", on_step=5), "on_step must be a function .* got 5"),
    "a truth value for a seed": (lambda p: p.generate("a dog", seed=True), "seed must be a whole number, .*; got bool"),
    "seeds of a score": (lambda p: p.score(IMAGE, "a dog", seed=[0]), "seed must be a whole number or None, got list"),
    "two seeds for one sample": (lambda p: p.generate("a dog", seed=[1, 2]), "2 seeds do not match 1 sample$"),
    "a device that there is not": (lambda p: p.to("gpu"), "'gpu' cannot .*: give one device, such as cpu, cuda"),
    "a text far too long": (lambda p: p.caption(IMAGE, length=10**6), "length must be at most 4096, got 1000000"),
    "a set of candidates": (lambda p: p.choose(IMAGE, {"a", "b"}), "^candidates must be .* got set$"),
    "an adapter that is a number": (lambda p: p.from_pretrained(adapter=5), "adapter must be a path, got 5"),
    "a device for one call": (lambda p: p.generate("a dog", device="cuda"), "'device': leave it out: from_pretrained"),
    "a pipeline without a name": (lambda p: type(p)(), r"^a pipeline is loaded by .*from_pretrained\('mini'\)$"),
    "a hub's name for a folder": (lambda p: p.save_pretrained("x", variant="fp16"), "dtype='float16'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_call_says_what_was_wanted(fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call(tiny_pipeline())
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    pipe = tiny_pipeline()
    expected = plain(pipe.generate(["a red dog"] * 2, num_steps=2, guidance_scale=2.0, seed=[3, 4]))
    for seed in (np.array([3, 4]), torch.tensor([3, 4]), np.int64(3), torch.tensor(3), range(3, 5)):
        steps, scale = np.int64(2), np.float32(2)
        made = pipe.generate(["a red dog"] * 2, num_steps=steps, guidance_scale=scale, seed=seed)  # pyright: ignore
        assert plain(made) == expected
        assert made.seeds == [3, 4]


def test_none_is_the_default_of_every_option() -> None:
    pipe, image = tiny_pipeline(), noise_image()
    assert plain(pipe.generate("a dog", best_of=None)) == plain(pipe.generate("a dog"))  # pyright: ignore
    assert plain(pipe.vary(image, "a dog", strength=None)) == plain(pipe.vary(image, "a dog"))  # pyright: ignore


def test_an_empty_negative_prompt_is_none_as_in_diffusers() -> None:
    pipe, prompts = tiny_pipeline(), ["a red dog", "a blue car"]
    plainly = plain(pipe.generate(prompts))
    assert plain(pipe.generate(prompts, negative_prompt="")) == plainly
    mixed = pipe.generate(prompts, negative_prompt=["", "a red dog"])
    assert plain(mixed)[0] == plainly[0]
    assert plain(mixed)[1] != plainly[1]


@pytest.mark.parametrize("dtype", ["half", "fp16", "float16", "torch.float16", torch.float16])
def test_a_dtype_may_have_the_name_that_torch_gives_it(dtype: Any) -> None:
    assert tiny_pipeline().to(dtype=dtype).dtype == tiny_pipeline().to(dtype).dtype == torch.float16


# --- signatures and help ---


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_of_a_verb_stands_in_its_signature_and_its_docstring(verb: str) -> None:
    method = getattr(Pipeline, verb)
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    assert {"seed", "on_step", "height", "width", "batch_size"} <= {p.name for p in parameters}
    doc = inspect.getdoc(method) or ""
    args = doc.partition("\nArgs:\n")[2].partition("\n\n")[0]
    for parameter in parameters:
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert parameter.annotation is not parameter.empty
        assert re.search(rf"^    (?:\w+, )*{parameter.name}(?:, \w+)*: \S", args, re.MULTILINE), (
            parameter.name
        )
        if parameter.default is None:
            assert "None" in str(parameter.annotation) or "Optional" in str(parameter.annotation), parameter


@pytest.mark.parametrize("verb", VERBS)
def test_the_default_in_a_signature_is_what_holds(verb: str) -> None:
    """None stands for the model's own; given outright, every other default changes nothing."""
    pipe, image = tiny_pipeline(), noise_image()
    inputs: dict[str, Any] = {
        "images": image,
        "masks": Image.new("L", image.size, 255),
        "prompts": "a red dog",
        "prompt": "a red dog",
        "questions": QUESTION,
        "texts": "a ___ dog" if verb == "infill" else "a red dog",
        "candidates": ["a red dog", "a blue car"],
    }
    method = getattr(pipe, verb)
    parameters = inspect.signature(method).parameters.values()
    given = {p.name: inputs[p.name] for p in parameters if p.default is p.empty}
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert plain(method(**given)) == plain(method(**given, **defaults))


def test_the_package_gives_the_pipeline_without_loading_torch_before() -> None:
    code = (
        "import sys, ddit; assert 'torch' not in sys.modules; assert 'Pipeline' in ddit.__all__;"
        "from ddit import Pipeline; import ddit.pipeline; assert Pipeline is ddit.pipeline.Pipeline;"
        "assert 'torch' in sys.modules; assert not hasattr(ddit, 'pipe')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_pipeline_and_an_encoded_image_are_shown_in_one_line() -> None:
    pipe = Pipeline.from_pretrained("mini", device="cpu", dtype="float32")
    assert repr(pipe) == "<Pipeline mini: transformer of 14.9 M parameters, 64x64 pixels, float32 on cpu>"
    assert "bfloat16 on cpu>" in repr(pipe.to(torch.bfloat16))
    shown = repr(tiny_pipeline(image_attends_text=False).encode_image(noise_image()))
    assert shown == "<EncodedImage of 32x32 pixels: latents, keys and values, float32 on cpu>"
    assert (
        repr(tiny_pipeline(image_attends_text=True).encode_image(noise_image())).count("latents, float32")
        == 1
    )


# --- seeds ---


def test_without_a_seed_results_repeat_and_none_draws_another(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_pipeline()
    first, again = pipe.generate(["a red dog"] * 2), pipe.generate(["a red dog"] * 2)
    assert plain(first) == plain(again)
    assert first.seeds == again.seeds == [0, 1]
    with caplog.at_level(logging.INFO, logger="ddit"):
        drawn, other = (pipe.generate(["a red dog"] * 2, seed=None) for _ in range(2))
    assert plain(drawn) != plain(other)
    assert drawn.seeds[1] == drawn.seeds[0] + 1
    assert f"seed {drawn.seeds[0]}" in caplog.messages
    assert plain(pipe.generate(["a red dog"] * 2, seed=drawn.seeds)) == plain(drawn)


@pytest.mark.parametrize("verb", ["caption", "answer", "infill", "vary", "inpaint"])
def test_every_verb_that_samples_says_its_seeds(verb: str) -> None:
    pipe, image = tiny_pipeline(), noise_image()
    inputs = {
        "caption": [image],
        "answer": [image, QUESTION],
        "infill": [image, "a ___ dog"],
        "vary": [image, "a red dog"],
        "inpaint": [image, Image.new("L", image.size, 255), "a red dog"],
    }[verb]
    drawn = getattr(pipe, verb)(*inputs, seed=None)
    assert len(drawn.seeds) == len(drawn) == 1
    assert plain(getattr(pipe, verb)(*inputs, seed=drawn.seeds)) == plain(drawn)
    assert getattr(pipe, verb)(*inputs, seed=np.int64(7)).seeds == [7]


def test_a_generator_that_is_used_again_gives_other_images() -> None:
    pipe, generator = tiny_pipeline(), torch.Generator().manual_seed(5)
    first, second = (pipe("a red dog", generator=generator) for _ in range(2))
    assert plain(first) != plain(second)
    assert plain(pipe("a red dog", generator=torch.Generator().manual_seed(5))) == plain(first)


def test_a_warning_points_at_the_line_that_called(recwarn: pytest.WarningsRecorder) -> None:
    pipe, image = tiny_pipeline(), noise_image()
    pipe.generate("a zebra")
    pipe.answer(image, "a zebra")
    pipe.score(image, "a zebra")
    pipe.choose(image, ["a zebra"])
    assert [Path(warning.filename).name for warning in recwarn] == [Path(__file__).name] * 4
