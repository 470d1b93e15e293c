"""Near misses, and warnings about texts: issued, unless someone collects them in the thread at hand."""

import threading

import pytest
from tiny_models import tiny_pipeline

from ddit.errors import InputWarning, collect_warnings, is_collecting, near_misses, nearest, warn_user
from ddit.settings import ORDERS
from ddit.world import list_vocabulary


def test_the_likest_names_come_first():
    assert nearest("mini-stage", ["sd3-stage1", "mini-stage1", "mini-vae"])[0] == "mini-stage1"
    assert near_misses("entropi", ORDERS) == "; did you mean entropy?"


def test_nothing_is_said_where_no_name_is_near():
    assert nearest("xylophone", ORDERS) == []
    assert near_misses("xylophone", ORDERS) == ""
    assert near_misses("a", []) == ""


@pytest.mark.parametrize(
    "word", ["corgi", "fork", "phone", "bread", "potato", "flower", "behind", "hat", "goat"]
)
def test_another_word_gets_no_hint(word: str):
    assert nearest(word, list_vocabulary()) == []


@pytest.mark.parametrize(
    ("slip", "name"),
    [
        ("dgo", "dog"),
        ("elefant", "elephant"),
        ("umbrela", "umbrella"),
        ("photograph", "photo"),
        ("brid", "bird"),
    ],
)
def test_a_slip_gets_the_word(slip: str, name: str):
    assert nearest(slip, list_vocabulary())[0] == name


def test_case_does_not_count():
    assert nearest("EPTROPY", ORDERS) == ["entropy"]
    assert nearest("aple.PNG", ["Apple.png", "pear.jpg"]) == ["Apple.png"]


def test_no_more_than_asked_for():
    assert len(nearest("mini-x", [f"mini-{i}" for i in range(9)], most=2)) == 2


def test_a_warning_that_nobody_collects_is_issued() -> None:
    with pytest.warns(UserWarning, match="too long"):
        warn_user("too long", about="a text")


def test_warnings_are_collected_within_the_context_and_not_issued() -> None:
    with collect_warnings() as found:
        warn_user("too long", about="a text")
    assert found == [InputWarning("a text", "too long")]
    assert not is_collecting()


def test_warnings_of_another_thread_are_not_collected() -> None:
    found: list[bool] = []
    with collect_warnings():
        thread = threading.Thread(target=lambda: found.append(is_collecting()))
        thread.start()
        thread.join()
    assert found == [False]


def test_the_pipeline_warns_of_each_text_apart() -> None:
    pipeline = tiny_pipeline()
    with collect_warnings() as found:
        pipeline.generate(["a zebra", "a dog", "a hat"], num_steps=1)
    assert [warning.about for warning in found] == ["a zebra", "a hat"]
    assert "'zebra'" in found[0].message
    assert "'hat'" in found[1].message
