"""Checks of numbers in a configuration, for `__post_init__`; None passes, since it means "not set"."""

from typing import Any


def above_zero(config: Any, *names: str) -> None:
    """ValueError if one of the fields is 0 or less."""
    _check(config, names, lambda value: value > 0, "above 0")


def at_least(config: Any, least: int, *names: str) -> None:
    """ValueError if one of the fields is less than `least`."""
    _check(config, names, lambda value: value >= least, f"at least {least}")


def fraction(config: Any, *names: str, below_one: bool = False) -> None:
    """ValueError if one of the fields is outside [0, 1], or [0, 1) with `below_one`."""
    where = "at least 0 and below 1" if below_one else "between 0 and 1"
    _check(config, names, lambda value: 0 <= value <= 1 and not (below_one and value == 1), where)


def _check(config: Any, names: tuple[str, ...], holds: Any, rule: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} must be {rule}, got {value}")
