"""Captions: CIDEr on COCO's annotations, and on the small world whether every attribute is right."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddit.eval.image_index import ImageIndex
from ddit.eval.items import (
    Figure,
    Item,
    TaskItems,
    TaskScore,
    count_note,
    find_file,
    mean,
    require,
    require_id,
    require_list,
    to_text,
)
from ddit.eval.vqa import find_image_folder
from ddit.eval.world_tasks import read_world
from ddit.files import read_json
from ddit.world import Scene, caption_is_right

_LONGEST = 4
_SIGMA = 6.0
_REWRITTEN = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}
_CLITIC = r"n't|'(?:s|m|d|re|ve|ll)"
_BEFORE_CLITIC = re.compile(rf"(?<=\w)({_CLITIC})(?!\w)")
_TOKENS = re.compile(
    rf"\d+(?:[.,:]\d+)*(?!\w)|(?:{_CLITIC})(?!\w)|(?:mr|mrs|ms|dr|st)\.|(?:[a-z]\.){{2,}}|\w+(?:[-'./]\w+)*"
    r"|[$%&#@*+=/()\[\]{}]"
)

NGram = tuple[str, ...]

CIDER_NOTE = (
    "CIDEr is 0 here whatever the captions say, by its rule: a word weighs the less the more images have it in their "
    "references, and here all images (or the only one) have the same words; take more images"
)


def tokenize_caption(text: str) -> list[str]:
    """Words in lower case without punctuation.

    Nearly the Penn Treebank tokens of the official COCO scorer, which uses a Java program: "dog's", "isn't" and
    "cannot" are two tokens each, "black-and-white" is one, and a bracket is "-lrb-".
    """
    found: list[str] = _TOKENS.findall(_BEFORE_CLITIC.sub(r" \1", text.lower()))
    return " ".join(_REWRITTEN.get(word, word) for word in found).split()


class _Vector(NamedTuple):
    weights: list[dict[NGram, float]]  # of 1-grams, 2-grams, ..., 4-grams
    norms: list[float]
    length: int


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption (Vedantam et al. 2015), which COCO's scorer calls CIDEr.

    Cosines of the tf-idf vectors of 1- to 4-grams, each count clipped to the reference's, times a Gaussian of the
    difference in length, averaged over n and over the references, times 10. The idf is that of the references of all
    images given, so a caption's score depends on the others' references.

    Raises:
        ValueError: for an image without a reference, or numbers that do not match.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError(f"{len(captions)} captions need references each, got {len(references)} lists")
    counted = [[_count(tokenize_caption(text)) for text in texts] for texts in references]
    documents = Counter(ngram for counts in counted for ngram in set().union(*counts))
    total = math.log(max(len(references), 1))

    def vector(counts: Counter[NGram]) -> _Vector:
        weights: list[dict[NGram, float]] = [{} for _ in range(_LONGEST)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (total - math.log(max(documents[ngram], 1)))
        norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in weights]
        return _Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))

    scores = []
    for text, counts in zip(captions, counted, strict=True):
        own = vector(_count(tokenize_caption(text)))
        scores.append(10 * mean(_similarity(own, vector(reference)) for reference in counts))
    return scores


def _count(words: list[str]) -> Counter[NGram]:
    return Counter(
        tuple(words[start : start + size])
        for size in range(1, _LONGEST + 1)
        for start in range(len(words) - size + 1)
    )


def _similarity(own: _Vector, other: _Vector) -> float:
    """Mean over n of the clipped cosines; the official scorer's length is the number of 2-grams."""
    cosines = []
    for a, b, norm_a, norm_b in zip(own.weights, other.weights, own.norms, other.norms, strict=True):
        shared = sum(min(weight, b[ngram]) * b[ngram] for ngram, weight in a.items() if ngram in b)
        cosines.append(shared / (norm_a * norm_b) if norm_a and norm_b else 0.0)
    return mean(cosines) * math.exp(-((own.length - other.length) ** 2) / (2 * _SIGMA**2))


def is_cider_zero(references: Sequence[Sequence[str]]) -> bool:
    """Whether CIDEr is 0 for any captions: the images' references have all the same words, or there is one image.

    A word that every image's references have weighs log(images / images with it) = 0.
    """
    words = (
        frozenset(word for text in texts for word in _count(tokenize_caption(text))) for texts in references
    )
    return len(set(words)) == 1


def read_captions(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of COCO's `*captions*.json`: images (id, file_name) and annotations (image_id, caption).

    In a folder that `write_eval_data` wrote, each item has its scene.
    """
    world = read_world(folder)
    path = find_file(folder, "*captions*.json")
    data = read_json(path)
    references: dict[str, list[str]] = {}
    for entry in require_list(data, "annotations", path):
        text = to_text(require(entry, "caption", path))
        if text is not None:
            references.setdefault(require_id(entry, "image_id", path), []).append(text)
    index = ImageIndex(find_image_folder(folder, images))
    items: dict[str, Item] = {}
    repeated, uncaptioned = [], []
    for entry in require_list(data, "images", path):
        name, number = require_id(entry, "file_name", path), require_id(entry, "id", path)
        if number in items:
            repeated.append(number)
        elif number not in references:
            uncaptioned.append(number)
        else:
            scene = None if world is None else world.scene(int(number))
            items[number] = Item(number, index.find(name), None, {"references": references[number]}, scene)
    index.check()
    without = "without a caption left out, as in the official script"
    return TaskItems(
        list(items.values()),
        (
            *count_note(uncaptioned, f"image {without}", f"images {without}"),
            *count_note(
                repeated, "image left out: its id came before", "images left out: their ids came before"
            ),
        ),
    )


def score_captions(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """CIDEr and, if the scenes are known, the share of captions right in every attribute, by kind of scene.

    The items' scores are "right in every attribute" if that is known, else their CIDEr.
    """
    texts = ["" if item.fault else text for item, text in zip(items, texts, strict=True)]
    references = [item.truth["references"] for item in items]
    notes = (CIDER_NOTE,) if is_cider_zero(references) else ()
    values = cider(texts, references)
    score = Figure("CIDEr", mean(values), len(items), is_share=False)
    known = [
        (item.scene, text) for item, text in zip(items, texts, strict=True) if isinstance(item.scene, Scene)
    ]
    if not items or len(known) < len(items):
        return TaskScore(values, [score], notes)
    right = [float(caption_is_right(scene, text, complete=True)) for scene, text in known]
    kinds = list(dict.fromkeys(scene.kind for scene, _ in known))
    figures = [Figure("every attribute", mean(right), len(right)), score]
    for kind in sorted(kinds):
        chosen = [value for value, (scene, _) in zip(right, known, strict=True) if scene.kind == kind]
        figures.append(Figure(f"every attribute: {kind}", mean(chosen), len(chosen)))
    return TaskScore(right, figures, notes)
