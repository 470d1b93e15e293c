"""95 % confidence intervals of shares and of sums of them, samples taken as independent.

Wilson's interval (Wilson 1927) is used instead of the normal approximation since many shares here are close to 1, where
the latter has no width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

Interval = tuple[float, float]
_Z = 1.959964


def wilson(share: float, num: int) -> Interval:
    """The interval of a share of `num` samples; of none, it is all of (0, 1).

    For scores between 0 and 1, such as VQAv2's 0.3, it is wider than need be.
    """
    if not num:
        return 0.0, 1.0
    share = min(max(share, 0.0), 1.0)
    center = share + _Z**2 / (2 * num)
    half = _Z * math.sqrt(share * (1 - share) / num + (_Z / (2 * num)) ** 2)
    scale = 1 + _Z**2 / num
    return max((center - half) / scale, 0.0), min((center + half) / scale, 1.0)


def weighted_sum(weight: float, parts: Iterable[tuple[float, Interval]]) -> Interval:
    """The interval of `weight` times the sum of independent estimates, each with its own interval.

    Zou and Donner 2008: the distances to the limits add up as standard errors do.
    """
    found = list(parts)
    total = sum(value for value, _ in found)
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in found))
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in found))
    return weight * (total - below), weight * (total + above)


def f1_interval(both: int, predicted: int, actual: int) -> Interval:
    """The interval of F1 with `both` true positives among `predicted` and `actual` ones.

    F1 = 2J / (1 + J), J being the share of true positives among all that are predicted or actual.
    """
    either = predicted + actual - both
    low, high = wilson(both / either if either else 0.0, either)
    return 2 * low / (1 + low), 2 * high / (1 + high)
