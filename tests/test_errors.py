"""Near misses, and warnings about texts: issued, unless someone collects them in the thread at hand."""

import threading

import pytest
from tiny_models import tiny_pipeline

from ddit.errors import TextWarning, collect_warnings, is_collecting, near_misses, nearest, warn_user

ORDERS = ["random", "first-hitting", "confidence", "margin", "threshold", "entropy"]


def test_the_likest_names_come_first():
    assert nearest("mini-stage", ["sd3-stage1", "mini-stage1", "mini-vae"])[0] == "mini-stage1"
    assert near_misses("entropi", ORDERS) == "; did you mean entropy?"


def test_nothing_is_said_where_no_name_is_near():
    assert nearest("xylophone", ORDERS) == []
    assert near_misses("xylophone", ORDERS) == ""
    assert near_misses("a", []) == ""


def test_case_does_not_count():
    assert nearest("EPTROPY", ORDERS) == ["entropy"]
    assert nearest("aple.PNG", ["Apple.png", "pear.jpg"]) == ["Apple.png"]


def test_no_more_than_asked_for():
    assert len(nearest("mini-x", [f"mini-{i}" for i in range(9)], most=2)) == 2


def test_without_a_listener_a_notice_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="too long"):
        warn_user("too long", text="a text")


def test_a_listener_hears_what_is_said_within_its_context_in_place_of_warnings() -> None:
    with collect_warnings() as notices:
        warn_user("too long", text="a text")
    assert notices == [TextWarning("a text", "too long")]
    assert not is_collecting()


def test_another_thread_is_not_heard() -> None:
    found: list[bool] = []
    with collect_warnings():
        thread = threading.Thread(target=lambda: found.append(is_collecting()))
        thread.start()
        thread.join()
    assert found == [False]


def test_the_pipeline_tells_a_listener_of_each_text_apart() -> None:
    pipeline = tiny_pipeline()
    with collect_warnings() as notices:
        pipeline.generate(["a zebra", "a dog", "a hat"], num_steps=1)
    assert [notice.text for notice in notices] == ["a zebra", "a hat"]
    assert "'zebra'" in notices[0].message
    assert "'hat'" in notices[1].message
