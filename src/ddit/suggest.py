"""What a mistyped name may have been meant to be, said at the end of the message about it."""

from collections.abc import Iterable
from difflib import SequenceMatcher

LEAST_RATIO, MARGIN = 0.6, 0.15


def near_misses(word: str, known: Iterable[str]) -> str:
    """ "; did you mean entropy?", or nothing if none of the known names is near; case does not count."""
    near = nearest(word, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """At most so many of the known names, those like the word and not much less so than the likest, which is first."""
    ratios = {name: SequenceMatcher(None, name.lower(), word.lower()).ratio() for name in known}
    least = max([LEAST_RATIO, *(ratio - MARGIN for ratio in ratios.values())])
    near = sorted((name for name, ratio in ratios.items() if ratio >= least), key=lambda name: -ratios[name])
    return near[:most]
