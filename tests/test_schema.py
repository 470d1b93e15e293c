"""Strict dataclasses: what they refuse and how they say it, JSON in and out, and the interfaces made from them."""

import dataclasses
import inspect
import json
import math
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from ddit.schema import list_options, override, parse, strict, takes, to_data


@strict
class Inner:
    rate: Annotated[float, Field(gt=0, le=1, description="share of it")] = 0.5
    mode: Literal["fast", "exact"] = "fast"


@strict
class Cat:
    lives: Annotated[int, Field(ge=1)] = 9
    kind: Literal["cat"] = "cat"


@strict
class Dog:
    name: str
    kind: Literal["dog"] = "dog"


@strict
class Outer:
    count: Annotated[int, Field(ge=0, description="how many")] = 1
    inner: Inner = dataclasses.field(default_factory=Inner)
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()
    note: str | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"count": "1"}, "count must be a whole number, got '1'"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"note": 3}, "note must be a text, got 3"),
        ({"cuont": 3}, "unknown key 'cuont'; did you mean count?"),
    ],
)
def test_a_fault_is_one_line_that_names_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Outer(**values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1.5])
def test_a_number_that_is_none_or_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="rate must be"):
        Inner(rate=value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"rate": 2.0}}, "inner.rate must be at most 1, got 2.0"),
        ({"inner": {"raet": 1.0}}, "unknown key 'inner.raet'; did you mean inner.rate?"),
        ({"inner": {"mode": "fats"}}, "inner.mode must be fast or exact, got 'fats'; did you mean fast?"),
        ({"inner": 3}, "inner must be an object with keys, got 3"),
        ({"pets": [{"kind": "cat", "lives": 0}]}, "pets.0.lives must be at least 1, got 0"),
        ({"pets": [{"kind": "cat"}, {"kind": "dog"}]}, "missing key 'pets.1.name'"),
        ({"pets": [{"kind": "dgo"}]}, "pets.0.kind is 'dgo'; known: cat, dog; did you mean dog?"),
    ],
)
def test_a_fault_within_is_named_by_its_dotted_key(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(Outer, data)


def test_json_comes_back_as_it_was() -> None:
    value = Outer(count=3, inner=Inner(rate=1.0, mode="exact"), pets=(Cat(), Dog(name="Rex")), note="x")
    assert parse(Outer, json.loads(json.dumps(to_data(value)))) == value


def test_options_are_those_of_all_dataclasses_within_and_are_overridden_by_name() -> None:
    assert [option.name for option in list_options(Outer)] == ["count", "rate", "mode", "pets", "note"]
    rate = next(option for option in list_options(Outer) if option.name == "rate")
    assert (rate.help, rate.default, rate.bounds) == ("share of it", 0.5, {"gt": 0, "le": 1})
    base = Outer(inner=Inner(mode="exact"))
    changed = override(base, {"rate": 0.25, "count": None})
    assert changed == Outer(inner=Inner(rate=0.25, mode="exact"))
    assert base == Outer(inner=Inner(mode="exact"))
    with pytest.raises(TypeError, match=r"unknown option 'rat'; did you mean rate\?"):
        override(base, {"rat": 1})


def test_a_function_shows_the_options_that_it_takes() -> None:
    @takes(Inner, elsewhere=["rate"])
    def work(x: int, *, seed: int = 0, **options: Any) -> None:
        """Works.

        Args:
            x: a number.

        Raises:
            ValueError: never.
        """

    parameters = inspect.signature(work).parameters
    assert list(parameters) == ["x", "seed", "rate", "mode"]
    assert (parameters["rate"].default, parameters["rate"].annotation) == (None, float | None)
    assert (parameters["mode"].default, parameters["mode"].annotation) == ("fast", Literal["fast", "exact"])
    assert (work.__doc__ or "").splitlines() == [
        "Works.",
        "",
        "Args:",
        "    x: a number.",
        "    rate: share of it (above 0; at most 1) [default: the model's]",
        "    mode:  (fast, exact) [default: fast]",
        "",
        "Raises:",
        "    ValueError: never.",
    ]
