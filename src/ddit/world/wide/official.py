"""Questions exactly as VQAv2, GQA, POPE and MME put them, with the suffix that models are asked with."""

import random

from .finders import FINDERS, Found
from .questions import FILE, Asked
from .scenes import WideScene
from .speech import SHORT_ANSWER, YES_OR_NO
from .wordings import fill, pick

BENCHMARKS = ("vqav2", "gqa", "pope", "mme")

_KINDS = {
    "vqav2": ("exists", "count", "color", "what", "place", "ground_color"),
    "gqa": (
        "exists", "exists_color", "count", "color", "color_check", "color_choice", "which_color", "where", "relation",
        "side", "at_side", "size", "bigger", "both", "either", "same_color",
    ),
    "pope": ("exists",),
    "mme": ("exists", "exists_count", "exists_color", "relation"),
}  # fmt: skip
"""The kinds of question that each benchmark asks."""
_OWN = {
    "pope": {"exists": "is there {an_x} in the image?"},
    "mme": {
        "exists": "is there {an_x} in this image?", "exists_count": "are there {n_xs} in this image?",
        "exists_color": "is there {an_x} in the image?", "relation": "is the {x} {rel} the {y}?",
    },
}  # fmt: skip
"""The one sentence that a benchmark has for a kind."""


def make_official_question(scene: WideScene, rng: random.Random, benchmark: str) -> Asked | None:
    """A question in a benchmark's own sentence, capital and mark, with LLaVA's suffix (MME: its own).

    None if a random kind does not fit the scene. Raises ValueError for a benchmark that is none of `BENCHMARKS`.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    kind = rng.choice(_KINDS[benchmark])
    found: Found | None = FINDERS[kind][0](scene, rng)
    if found is None:
        return None
    wording = pick(FILE, kind, "seen", rng, official=True)
    if own := _OWN.get(benchmark, {}).get(kind):
        text = own.format_map(found.slots)
    else:
        text = fill(wording, found.slots, rng)
    text = text[0].upper() + text[1:]
    suffix = f" {YES_OR_NO}" if benchmark == "mme" else f"\n{SHORT_ANSWER}"
    return Asked(text + suffix, found.answer, kind, found.facts, wording)
