"""Notices warn, unless someone listens, and a listener hears its own thread alone."""

import threading

import pytest
from tiny_models import tiny_pipeline

from ddit.errors import TextWarning, collect_warnings, is_collecting, warn_user


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
