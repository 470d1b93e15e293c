"""The demo: a page that needs no other file, and prompts that the small world knows."""

import base64
import re
from io import BytesIO

import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.world import is_held_out, list_vocabulary, parse_caption
from tools.demo_page import TASKS, Card, Task, main, make_page, run_tasks

TINY_TASKS = (
    Task("colour", "a photo of a red dog", "what color is the dog"),
    Task("one", "a cat", "is there a cat"),
)


def embedded(page: str) -> list[Image.Image]:
    return [
        Image.open(BytesIO(base64.b64decode(png)))
        for png in re.findall(r"data:image/png;base64,([^\"]+)", page)
    ]


def test_every_task_is_generated_captioned_and_asked_about() -> None:
    pipeline = tiny_pipeline()
    cards = run_tasks(pipeline, TINY_TASKS, seed=3)
    images = pipeline.generate([task.prompt for task in TINY_TASKS], seed=3)
    assert [card.image.tobytes() for card in cards] == [image.tobytes() for image in images]
    assert [card.caption for card in cards] == pipeline.caption(images, seed=3)
    assert cards[1].answer == pipeline.answer(images, [task.question for task in TINY_TASKS], seed=3)[1]


def test_the_page_holds_its_images_and_no_other_address() -> None:
    image = Image.new("RGB", (8, 8), "red")
    page = make_page([Card(TASKS[0], image, "an elephant", "elephant")] * 2, model="mini", seed=0)
    assert [found.tobytes() for found in embedded(page)] == [image.tobytes()] * 2
    assert set(re.findall(r"(?:src|href)=\"(\w+)", page)) == {"data"}


def test_texts_are_escaped_and_an_empty_one_is_marked() -> None:
    page = make_page([Card(TASKS[0], Image.new("RGB", (8, 8)), "<b>&", "")], model="a<b", seed=0)
    assert "<dd>&lt;b&gt;&amp;</dd>" in page
    assert "a&lt;b" in page
    assert "(empty)" in page


def test_six_prompts_are_in_the_worlds_words_and_none_is_held_out() -> None:
    assert len({task.prompt for task in TASKS}) == len(TASKS) == 6
    known = set(list_vocabulary())
    for task in TASKS:
        for text in (task.prompt, task.question):
            assert set(re.findall(r"[\w:]+|[,.?]", text)) <= known
        description = parse_caption(task.prompt)
        assert description is not None
        names = [group.class_name for group in description.groups]
        assert not is_held_out(names[0], names[-1])
        assert not any(is_held_out(group.class_name, group.color) for group in description.groups)


def test_an_unknown_model_is_one_line(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"^error: unknown model"):
        main([str(tmp_path / "out"), "--model", "no such model"])
