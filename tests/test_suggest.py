"""Near misses: the likest names first, none where nothing is like the word."""

from ddit.errors import near_misses, nearest

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
