"""Classes for images that have captions alone: a few words of which a caption holds just one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

MAX_LABELS = 30
MIN_COVERED = 0.3
_READ = 5000
_CANDIDATES, _STARTS = 100, 20
_LEAST, _MOST = 0.01, 0.6
"""Share of the captions that hold a label."""
_OVERLAP = 0.15
"""Share of a label's captions, at most, that hold a certain other one, too."""


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def find_labels(captions: Sequence[str], *, least_images: int = 20) -> list[str]:
    """Words of which a caption tells much by holding just one of them: at least three in ten do.

    Of the sets that grow from a frequent word, word by word as long as that helps, the one whose labels tell most:
    their entropy times the share of captions with a single one. [] if there is none: captions all alike, or each of its
    own.
    """
    sets = [set(words_of(caption)) for caption in captions[:_READ]]
    counts = Counter(word for words in sets for word in words)
    least = max(least_images, _LEAST * len(sets))
    common = [
        word
        for word, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        if least <= count <= _MOST * len(sets) and not word.isdigit()
    ][:_CANDIDATES]
    holds = np.array([[word in words for word in common] for words in sets], np.int32)  # (captions, words)
    best, best_value = [], 0.0
    for start in range(min(_STARTS, len(common))):
        chosen, value = _grow(holds, start)
        if value > best_value:
            best, best_value = chosen, value
    return sorted(common[word] for word in best)


def _grow(holds: np.ndarray, start: int) -> tuple[list[int], float]:
    """The words from `start` on that each add to what a single label tells; 0 if too few captions have one."""
    chosen, value = [start], 0.0
    labels, number = (
        holds[:, start].copy(),
        holds[:, start].astype(np.int16),
    )  # how many, and the last one's number
    for word in range(holds.shape[1]):
        own = holds[:, word]
        both = own @ holds[:, chosen] / np.minimum(own.sum(), holds[:, chosen].sum(0))
        if word == start or len(chosen) == MAX_LABELS or both.max() > _OVERLAP:
            continue
        more = labels + own
        numbers = np.where(own > 0, len(chosen) + 1, number)
        shares = np.bincount(numbers[more == 1], minlength=2)[1:] / len(holds)
        covered = shares.sum()
        shares = shares[shares > 0] / max(covered, 1e-9)
        told = float(-(shares * np.log(shares)).sum() * covered)
        if told > value:
            chosen.append(word)
            labels, number, value = more, numbers, told
    is_enough = (labels == 1).mean() >= MIN_COVERED and len(chosen) > 1
    return chosen, value if is_enough else 0.0


def label_in(caption: str, labels: Sequence[str]) -> str | None:
    """The only label that the caption holds, or None: it holds none, or several.

    A label of several words counts where they follow each other, and one within it does not count there ("truck" in "a
    fire truck").
    """
    text, found = _spaced(caption), []
    for label in sorted(labels, key=lambda label: -len(_spaced(label))):
        if _spaced(label) in text:
            found.append(label)
            text = text.replace(_spaced(label), "  ")
    return found[0] if len(found) == 1 else None


def _spaced(text: str) -> str:
    """Words and signs, each between spaces."""
    parts = re.findall(r"\w+|[^\w\s]", text.lower())
    return f" {' '.join(parts)} "
