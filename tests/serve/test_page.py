"""The page's parts: images, words and steps as they are shown, examples, faults."""

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from pages import PIPELINE, RED, act, fault, run_apart
from PIL import Image, ImageDraw
from tiny_models import tiny_text_codec

from ddit.model.encoders import TextCodec
from ddit.model.small_text import build_tokenizer, tiny_t5
from ddit.serve import page_view as view
from ddit.serve.engine import Engine
from ddit.serve.options import Limits
from ddit.serve.page_examples import ANY, SMALL_WORLD, examples_for, scene_sample, with_blanks
from ddit.serve.page_runs import Runs, painted
from ddit.world import PRESETS, caption_is_right, list_vocabulary, make_scene

CODEC = tiny_text_codec()
MASK, END = CODEC.mask_token_id, CODEC.eos_token_id
DOG, CAR = CODEC.token_ids("dog car")


def frames_of(*steps: tuple[list[int], list[float]]) -> list[view.Words]:
    history = view.TextHistory(CODEC)
    for ids, confidence in steps:
        history.add(ids, [True] * len(ids), confidence)
    return history.frames


def world_codec(extra: Sequence[str] = ()) -> TextCodec:
    tokenizer = build_tokenizer([*list_vocabulary(), *extra])
    return TextCodec(tokenizer, tiny_t5(len(tokenizer), d_model=8, num_layers=1, num_heads=1, d_ff=8))


# --- words ---


def test_every_word_has_the_step_that_filled_it_and_its_confidence() -> None:
    frames = frames_of(
        ([MASK, MASK, END], [0.0, 0.0, 0.9]),
        ([MASK, CAR, END], [0.0, 0.8, 0.9]),
        ([DOG, CAR, END], [0.7, 0.8, 0.9]),
    )
    assert [[word.kind for word in words] for words in frames] == [
        ["masked", "masked", "masked"],
        ["masked", "masked", "end"],
        ["masked", "filled", "end"],
        ["filled", "filled", "end"],
    ]
    assert [(word.text, word.confidence, word.step) for word in frames[-1]] == [
        ("dog", 0.7, 3),
        ("car", 0.8, 2),
        ("", 0.9, 1),
    ]


def test_a_step_that_filled_nothing_is_no_frame() -> None:
    one = ([DOG, MASK], [0.7, 0.0])
    assert len(frames_of(one, one, ([DOG, CAR], [0.7, 0.6]))) == 3


def test_what_is_given_is_neither_masked_nor_numbered_and_its_padding_is_not_shown() -> None:
    history = view.TextHistory(CODEC)
    history.add([DOG, CAR, END], [False, True, False], [1.0, 0.5, 1.0])
    assert [(word.kind, word.step) for word in history.frames[-1]] == [
        ("given", 0),
        ("filled", 1),
        ("given", 0),
    ]
    assert re.findall(r'class="text">([^<]*)<', view.words_line(history.frames[-1])) == ["dog", "car"]


def test_a_word_shows_its_confidence_as_a_number_besides_its_shade() -> None:
    line = view.words_line(frames_of(([DOG], [0.789]))[-1])
    assert "--p:0.789" in line
    assert "<small>78</small>" in line
    assert 'title="confidence 78 %, filled in step 1"' in line


def test_only_certainty_is_a_hundred_percent() -> None:
    assert [view.percent(value) for value in (0.0, 0.29, 0.9999, 1.0)] == ["0", "29", "99", "100"]


def test_a_finished_text_has_one_end() -> None:
    words = frames_of(([DOG, END, END], [0.7, 0.9, 1.0]))[-1]
    assert view.words_line(words).count('class="text">end<') == 2
    assert view.words_line(words, finished=True).count('class="text">end<') == 1


def test_the_legend_names_both_ends_of_its_scale_and_end_only_where_it_is_shown() -> None:
    dog, end = frames_of(([DOG], [0.7]))[-1], frames_of(([DOG, END], [0.7, 0.9]))[-1]
    for words in (dog, end):
        assert re.search(r"0 % <span class=\"scale\".*</span> 100 %", view.words_line(words))
    assert "end</b>" not in view.words_line(dog)
    assert "<b>end</b> marks the end of the text" in view.words_line(end)


def test_the_grid_fills_a_cell_in_the_step_that_filled_it() -> None:
    html = view.text_steps(frames_of(([MASK, CAR], [0.0, 0.8]), ([DOG, CAR], [0.7, 0.8])))
    rows = re.findall(r"<tr>(.*?)</tr>", html)[1:]  # after the positions
    classes = [re.findall(r'<td class="(\w+)', row) for row in rows]
    assert classes == [["masked", "masked"], ["masked", "new"], ["new", "old"]]


def test_the_grid_leaves_out_a_later_block_that_has_only_the_end() -> None:
    first = frames_of(([DOG, END], [0.7, 0.9]))
    end, masked = view.Word("", "end", 1.0, 2), view.Word("", "masked")
    frames = [*first, (*first[-1], masked, masked), (*first[-1], end, end)]
    assert view.text_steps(frames) == view.text_steps(first)
    car = view.Word("car", "filled", 0.9, 2)
    assert view.text_steps([*frames[:-1], (*first[-1], car, end)]).count("<tr>") == 5


def test_texts_are_escaped() -> None:
    shown = (
        view.note("<script>")
        + view.answer("<b>")
        + view.placeholder("<i>")
        + view.truth("<u>", [("<s>", "<p>")])
    )
    assert not re.search(r"<(script|b|i|u|s)>", shown)
    assert 'alt="&quot;&gt;"' in view.figure(Image.new("RGB", (4, 4)), '">')


# --- images ---


def test_the_strip_has_a_column_for_every_step_and_leaves_those_to_come_empty() -> None:
    gray = Image.new("RGB", (8, 8))
    steps = [view.ImageStep(gray, 1.0, 0.8, noisy=gray), view.ImageStep(gray, 0.8, 0.5)]
    html = view.image_steps(steps, 4)
    assert html.count("<img") == 3
    assert html.count('class="empty"') == 5
    assert re.findall(r"t = (\d\.\d\d)</small>", html) == ["1.00", "0.80", "0.80"]


def test_a_small_image_on_the_way_is_shown_without_loss() -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = view.data_uri(noise, final=False).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == noise.tobytes()


def test_a_large_image_is_smooth_and_on_the_way_a_jpeg() -> None:
    large = Image.new("RGB", (512, 512))
    assert (view.image_class(large.size), view.image_class((64, 64))) == ("smooth", "crisp")
    assert view.data_uri(large, final=False).startswith("data:image/jpeg")
    assert view.data_uri(large).startswith("data:image/png")


def layer(*box: int) -> str:
    """What the page's brush sends: paint in a box, on transparency."""
    image = Image.new("RGBA", (64, 64))
    if box:
        ImageDraw.Draw(image).rectangle(box, fill="#d6006e")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_paint_becomes_the_white_of_the_mask() -> None:
    mask = painted(layer(32, 0, 63, 63), 64)
    assert mask.getbbox() == (32, 0, 64, 64)
    assert mask.mode == "L"
    assert set(mask.tobytes()) == {0, 255}


@pytest.mark.parametrize(
    "address", ["", "data:image/png;base64,!", "data:image/png;base64,AAAA", "file:///etc", layer()]
)
def test_without_paint_there_is_no_mask(address: str) -> None:
    with pytest.raises(ValueError, match="nothing is painted yet"):
        painted(address, 64)


# --- examples ---


def test_only_a_model_of_the_small_worlds_words_gets_its_examples() -> None:
    assert examples_for(CODEC) is ANY
    assert examples_for(world_codec()) is SMALL_WORLD
    assert examples_for(world_codec(extra=[f"word{i}" for i in range(1500)])) is ANY


@pytest.mark.parametrize("number", range(8))
def test_a_scene_comes_with_what_is_true_of_it(number: int) -> None:
    sample = scene_sample(number)
    scene = make_scene(PRESETS["fixed"], "test", number)
    assert caption_is_right(scene, sample.caption, complete=True)
    assert sample.image.size == (64, 64)
    assert sample.questions
    assert "___" in sample.blank
    assert not any(caption_is_right(scene, text) for text in sample.changes)


def test_colours_are_the_blanks_or_else_the_things() -> None:
    assert with_blanks("a red dog left of two cars") == "a ___ dog left of two cars"
    assert with_blanks("a photo of three sheep") == "a photo of three ___"
    assert with_blanks("two dogs and an apple") == "two ___ and an ___"


# --- actions ---


def test_generating_shows_every_step_then_the_image_then_its_caption() -> None:
    shown = act(lambda runs: runs.generate("a photo of the dog", 5, 3, 2.0))
    on_the_way = [re.findall(r"step (\d) of (\d)", html) for html, image in shown if image is None]
    assert on_the_way == [[("1", "3")], [("2", "3")]]
    html, image = shown[-1]
    expected = PIPELINE.generate("a photo of the dog", seed=5, num_steps=3, guidance_scale=2.0)[0]
    assert image.tobytes() == expected.tobytes()
    assert view.data_uri(expected) in html
    assert 'alt="Generated from: a photo of the dog"' in html
    assert 'download="a-photo-of-the-dog-5.png"' in html
    assert f'<p class="answer" role="status">{PIPELINE.caption(expected, seed=5)[0]}</p>' in html


def test_a_text_begins_with_masks_and_ends_whole() -> None:
    shown = act(lambda runs: runs.write("answer", RED, "what color is the dog?", False))
    assert shown[0].count('class="word masked"') == shown[0].count('class="word ')
    assert "masked" not in shown[-1]
    text = PIPELINE.answer(RED, "what color is the dog?")[0]
    assert f'<p class="answer" role="status">{text or "(no words)"}</p>' in shown[-1]


def test_what_is_filled_in_stands_between_what_was_given() -> None:
    shown = act(lambda runs: runs.write("infill", RED, "a ___ dog", False))
    assert re.findall(r'word (given|masked)"', shown[0]) == ["given", "masked", "given"]
    assert re.findall(r'class="word (\w+)"', shown[-1]) == ["given", "filled", "given"]
    assert PIPELINE.infill(RED, "a ___ dog")[0] in shown[-1]


def test_an_edited_image_is_that_of_the_pipeline() -> None:
    shown = act(lambda runs: runs.inpaint(RED, layer(0, 0, 31, 63), "a photo of the dog", 1, 3, 2.0))
    mask = painted(layer(0, 0, 31, 63), 32)
    expected = PIPELINE.inpaint(
        [RED], [mask], ["a photo of the dog"], seed=1, num_steps=3, guidance_scale=2.0
    )[0]
    assert shown[-1][1].tobytes() == expected.tobytes()
    shown = act(lambda runs: runs.vary(RED, "a photo of the dog", 0.5, 1, 3, 2.0))
    expected = PIPELINE.vary(
        [RED], ["a photo of the dog"], strength=0.5, seed=1, num_steps=3, guidance_scale=2.0
    )[0]
    assert shown[-1][1].tobytes() == expected.tobytes()


def test_the_explanation_keeps_every_step_of_both_in_sight() -> None:
    html = act(lambda runs: runs.explain("a photo of the dog", 0, False))[-1]
    assert html.count("<img") == 2 * PIPELINE.settings.image_sampling.num_steps
    assert 'class="empty"' not in html
    last = re.findall(r"<tr>(.*?)</tr>", html)[-1]
    assert "masked" not in last


def test_empty_fields_are_the_models_own_settings() -> None:
    image = act(lambda runs: runs.generate("a photo of the dog", None, None, None))[-1][1]
    assert image.tobytes() == PIPELINE.generate("a photo of the dog", seed=0)[0].tobytes()


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda runs: runs.generate(" ", 0, 3, 2.0), "The prompt is empty."),
        (lambda runs: runs.generate("a dog", -1, 3, 2.0), "Seed must be 0 to 9007199254740991, got -1."),
        (lambda runs: runs.write("caption", None, "", False), "There is no image yet: upload or paste one."),
        (lambda runs: runs.write("answer", RED, "", False), "The question is empty."),
        (
            lambda runs: runs.write("infill", RED, "a dog", False),
            "The text has no blank (two or more underscores): &#x27;a dog&#x27;.",
        ),
        (lambda runs: runs.inpaint(RED, layer(), "a dog", 0, 3, 2.0), "Nothing is painted yet: paint over"),
        (lambda runs: runs.explain("", 0, False), "The prompt is empty."),
    ],
)
def test_a_users_mistake_is_answered_in_a_sentence(action: Any, sentence: str) -> None:
    shown = act(action)
    html = shown[-1] if isinstance(shown[-1], str) else shown[-1][0]
    assert (fault(html) or "").startswith(sentence)


def test_a_file_that_is_no_image_is_reported_without_the_servers_path(tmp_path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    html = act(lambda runs: runs.write("caption", str(tmp_path / "notes.png"), "", False))[-1]
    assert (fault(html) or "").startswith("The file is not an image of a known format")
    assert str(tmp_path) not in html


def test_of_an_animated_file_the_first_frame_is_used_and_said(tmp_path) -> None:
    blue = Image.new("RGB", (32, 32), "blue")
    RED.save(tmp_path / "two.gif", save_all=True, append_images=[blue])
    RED.save(tmp_path / "one.gif")
    runs = Runs(Engine(PIPELINE))
    assert "its first frame is used" in runs.frame_note(str(tmp_path / "two.gif"))
    assert runs.fitted(str(tmp_path / "two.gif")).getpixel((0, 0)) == (255, 0, 0)
    (tmp_path / "none.gif").write_text("no image")
    for still in (str(tmp_path / "one.gif"), str(tmp_path / "none.gif"), None):
        assert runs.frame_note(still) == ""


def test_words_that_the_model_does_not_know_are_shown_beside_the_image() -> None:
    html, image = act(lambda runs: runs.generate("a photo of the dragon", 0, 3, 2.0))[-1]
    assert image is not None
    assert re.search(r'role="status">The model does not know the word &#x27;dragon&#x27;', html)


def test_a_full_queue_is_shown_as_busy() -> None:
    shown = act(
        lambda runs: runs.write("caption", RED, "", False), Limits(max_queue=1, max_batch_size=1), waiting=1
    )
    assert re.match(r"The model is busy: try again in \d+ s\.", fault(shown[-1]) or "")


def test_a_fault_of_the_server_shows_no_detail(monkeypatch, caplog) -> None:
    def corrupt(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(type(PIPELINE), "caption", corrupt)
    html = act(lambda runs: runs.write("caption", RED, "", False))[-1]
    assert fault(html) == "Something went wrong on the server; see its log."
    assert "secret" not in html
    assert "secret" in caplog.text


# --- the page ---

BUILD = """
import inspect, json, socket
from email.message import Message

asked = []
socket.getaddrinfo = lambda *given, **_: asked.append(str(given)) or []
socket.socket.connect = lambda self, address: asked.append(str(address))

from fastapi import FastAPI
from tiny_models import tiny_pipeline

from ddit.serve import page_parts
from ddit.serve.api import create_app
from ddit.serve.engine import Engine
from ddit.serve.page import build_page, mount_page

engine = Engine(tiny_pipeline())
page = build_page(engine)
buttons = [
    block.value for block in page.blocks.values() if type(block).__name__ == "Button" and block.visible is True
]
events = [(event.queue, inspect.isasyncgenfunction(event.fn)) for event in page.fns.values() if event.fn]
paths = [route.path for route in mount_page(FastAPI(), engine, path="/page").routes]
api = create_app(engine)
at_root = [type(route).__name__ for route in mount_page(api, engine).routes if route.path in ("/", "")]
metadata = Message()
metadata["Project-URL"] = "Documentation, https://documents.example"
metadata["Project-URL"] = "Mirror, https://mirror.example"
page_parts.metadata = lambda name: metadata
links = page_parts.project_links()
print(json.dumps({
    "asked": asked, "buttons": buttons, "events": events, "paths": paths, "at_root": at_root, "links": links,
}))
"""

SHOWN_TO_MANY = """
from threading import Thread

from PIL import Image

from ddit.serve.page_parts import image_file

noise = Image.effect_noise((300, 300), 80)
path = image_file(noise)
writers = [Thread(target=lambda: [image_file(noise) for _ in range(100)]) for _ in range(2)]
for writer in writers:
    writer.start()
while any(writer.is_alive() for writer in writers):
    assert Image.open(path).tobytes() == noise.tobytes()
assert image_file(Image.new("L", (8, 8))) != path
"""


@pytest.mark.slow
def test_the_page_is_built_without_another_host_and_offers_no_scenes_to_a_model_without_them() -> None:
    found = json.loads(run_apart(BUILD).splitlines()[-1])
    assert found["asked"] == []
    assert "/page" in found["paths"]
    assert {"Generate", "Caption", "Ask", "Fill in", "Show the steps"} <= set(found["buttons"])
    assert not any("example" in button for button in found["buttons"])
    assert found["at_root"] == ["Mount"]  # in place of the API's index
    assert found["links"] == [["Documentation", "https://documents.example"]]
    assert {tuple(event) for event in found["events"]} == {(True, True), (False, False)}  # runs are queued


@pytest.mark.slow
def test_an_image_that_is_shown_again_can_be_read_meanwhile() -> None:
    run_apart(SHOWN_TO_MANY)
