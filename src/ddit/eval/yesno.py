"""Yes-or-no benchmarks: POPE and MME, read from their official files and scored by their official rules.

POPE: Li et al. 2023 (github.com/AoiDragon/POPE). MME: Fu et al. 2023
(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ddit.data.sources.finding import is_hidden
from ddit.eval.image_index import IMAGE_SUFFIXES, ImageIndex
from ddit.eval.intervals import f1_interval, weighted_sum, wilson
from ddit.eval.items import (
    Figure,
    Item,
    TaskItems,
    TaskScore,
    find_file,
    mean,
    read_json_lines,
    require,
    require_id,
    require_text,
    to_text,
)
from ddit.eval.vqa import find_image_folder
from ddit.files import read_text

POPE_FILES = ("random", "popular", "adversarial")
COARSE = ("existence", "count", "position", "color")
PERCEPTION = (*COARSE, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_YES_OR_NO = re.compile(r"\s*please answer (the question )?(with )?yes or no\.?\s*$", re.IGNORECASE)
_SAYS_YES = re.compile(r"\byes\b", re.IGNORECASE)
_OPPOSITE = {"yes": "no", "no": "yes"}


def pope_answer(text: str) -> str:
    """ "no" if the first sentence has the word no, No or not, else "yes", even if unclear: POPE's rule."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"no", "No", "not"} & set(words) else "yes"


def is_unclear(text: str) -> bool:
    """Whether POPE's rule takes an answer for a yes that does not have this word."""
    return pope_answer(text) == "yes" and not _SAYS_YES.search(text)


def read_pope(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of three files of JSON lines, `*random*.json` and so on: question_id, image, text, label."""
    index = ImageIndex(find_image_folder(folder, images))
    items = []
    for kind in POPE_FILES:
        path = find_file(folder, f"*pope*{kind}*.json*", f"{kind}*.json*")
        for entry in read_json_lines(path):
            label = _parse_label(to_text(require(entry, "label", path)))
            if label is None:
                raise ValueError(f"'{path}': label must be yes or no, got {entry['label']!r}")
            image = index.find(require_id(entry, "image", path))
            name = f"{kind}/{require_id(entry, 'question_id', path)}"
            items.append(
                Item(name, image, require_text(entry, "text", path), {"answer": label, "kind": kind})
            )
    index.check()
    return TaskItems(items)


def _parse_label(text: str | None) -> str | None:
    """yes or no from any of their spellings: "Yes", "no.", "NO"; None for anything else."""
    label = (text or "").strip().rstrip(".").lower()
    return label if label in _OPPOSITE else None


def score_pope(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """F1, accuracy, precision, recall, share of yes and of unclear answers: means of the three files, then of each."""
    labels = [item.truth["answer"] for item in items]
    given = [
        _OPPOSITE[label] if item.fault else text
        for item, label, text in zip(items, labels, texts, strict=True)
    ]
    scores = [float(pope_answer(text) == label) for text, label in zip(given, labels, strict=True)]
    parts: list[list[Figure]] = []
    for kind in POPE_FILES:
        chosen = [i for i, item in enumerate(items) if item.truth["kind"] == kind]
        if chosen:
            tallied = pope_figures([labels[i] for i in chosen], [given[i] for i in chosen])
            parts.append([figure._replace(name=f"{kind}: {figure.name}") for figure in tallied])
    means = []
    for same in zip(*parts, strict=True):
        count, name = sum(figure.num for figure in same), same[0].name.split(": ")[1]
        # the files share their questions about what is there, so the limits are averaged, not combined
        intervals = [figure.interval or (0.0, 1.0) for figure in same]
        limits = (mean(low for low, _ in intervals), mean(high for _, high in intervals))
        value = mean(figure.value for figure in same)
        means.append(Figure(name, value, count, is_share=False, limits=limits))
    return TaskScore(scores, [*means, *(figure for part in parts for figure in part)])


def pope_figures(labels: Sequence[str], texts: Sequence[str]) -> list[Figure]:
    """POPE's figures of one file; "yes" is the positive class. A ratio without a denominator is 0."""
    answers = [pope_answer(text) for text in texts]
    both = sum(a == b == "yes" for a, b in zip(answers, labels, strict=True))
    predicted, actual, count = answers.count("yes"), labels.count("yes"), len(labels)
    right = sum(a == b for a, b in zip(answers, labels, strict=True))
    f1 = 2 * both / (predicted + actual) if predicted + actual else 0.0
    return [
        Figure("F1", f1, count, is_share=False, limits=f1_interval(both, predicted, actual)),
        Figure("accuracy", right / count if count else 0.0, count),
        Figure("precision", both / predicted if predicted else 0.0, predicted),
        Figure("recall", both / actual if actual else 0.0, actual),
        Figure("share of yes", predicted / count if count else 0.0, count),
        Figure("unclear", mean(is_unclear(text) for text in texts), count),
    ]


def mme_answer(text: str) -> str:
    """ "yes", "no" or "other": MME looks for these words in the first four letters."""
    start = text.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def read_mme(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of MME's folders, one a category, each with `<name>.txt` beside its image.

    Or the texts are in `questions_answers_YN/`, the images in `images/`. A text is two lines: question, tab, Yes or
    No. "Please answer yes or no." is left out, since the prompt asks for a short answer in its own words.
    """
    del images  # MME's images are in the categories' folders
    inner = folder / "MME_Benchmark"
    items, missing = [], []
    for category in sorted(path for path in (inner if inner.is_dir() else folder).iterdir() if path.is_dir()):
        texts = sorted([*category.glob("*.txt"), *category.glob("questions_answers_YN/*.txt")])
        for path in (path for path in texts if not is_hidden(path.name)):
            beside = category / "images" if path.parent != category else category
            found = [
                p for p in sorted(beside.glob(f"{glob.escape(path.stem)}.*")) if _is_image_of(p, path.stem)
            ]
            missing += [] if found else [path]
            image = found[0] if found else beside / f"{path.stem}.jpg"
            for number, (question, label) in enumerate(_question_pair(path)):
                truth = {"answer": label, "kind": category.name}
                items.append(Item(f"{category.name}/{path.stem}/{number}", image, question, truth))
    if not items:
        raise ValueError(f"'{folder}' has no folder of MME's, such as existence/ with its .txt files")
    if 2 * len(missing) == len(items):
        raise ValueError(f"no image beside '{missing[0]}'")
    return TaskItems(items)


def _is_image_of(path: Path, stem: str) -> bool:
    return path.stem == stem and path.suffix.lower() in IMAGE_SUFFIXES


def _question_pair(path: Path) -> list[tuple[str, str]]:
    pair = []
    for line in read_text(path).split("\n"):
        asked, _, end = line.rstrip().rpartition("\t")
        question, label = _YES_OR_NO.sub("", asked).strip(), _parse_label(end)
        if question and label:
            pair.append((question, label))
        elif line.strip():
            raise ValueError(f"'{path}': a line must be a question, a tab, and Yes or No, not {line[:80]!r}")
    if len(pair) != 2:
        raise ValueError(f"'{path}' is not two lines of a question, a tab, and Yes or No")
    return pair


def score_mme(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """MME's points: of each category 100 x (accuracy + share of images with both answers right), and their sums."""
    scores = [
        float(not item.fault and mme_answer(text) == item.truth["answer"])
        for item, text in zip(items, texts, strict=True)
    ]
    by_kind: dict[str, dict[Path, list[float]]] = {}
    for item, score in zip(items, scores, strict=True):
        by_kind.setdefault(item.truth["kind"], {}).setdefault(item.image, []).append(score)
    points: dict[str, Figure] = {}
    figures: list[Figure] = []
    for kind, pairs in by_kind.items():
        answers = [score for pair in pairs.values() for score in pair]
        both = [float(min(pair)) for pair in pairs.values()]
        shares = [
            Figure(f"{kind}: accuracy", mean(answers), len(answers)),
            Figure(f"{kind}: accuracy+", mean(both), len(both)),
        ]
        points[kind] = _mme_points(kind, *shares)
        figures += [points[kind], *shares]
    sums = []
    for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION), ("coarse", COARSE)):
        known = [kind for kind in kinds if kind in points]
        # the four coarse categories get their own sum only if there are others, too
        if known and (name != "coarse" or any(k in points for k in PERCEPTION[len(COARSE) :])):
            sums.append(_mme_sum(f"{name}, sum", [points[kind] for kind in known]))
    others = [mme_answer(text) == "other" for item, text in zip(items, texts, strict=True) if not item.fault]
    unclear = Figure("unclear", mean(others), len(others))
    return TaskScore(scores, [*sums, *figures, unclear], _note_categories(points))


def _mme_points(kind: str, accuracy: Figure, accuracy_plus: Figure) -> Figure:
    """100 x (accuracy + accuracy+), which are of the same answers: so the limits add up, too."""
    (low, high), (low_plus, high_plus) = (
        wilson(figure.value, figure.num) for figure in (accuracy, accuracy_plus)
    )
    limits = (100 * (low + low_plus), 100 * (high + high_plus))
    value = 100 * (accuracy.value + accuracy_plus.value)
    return Figure(kind, value, accuracy.num, is_share=False, limits=limits)


def _mme_sum(name: str, points: Sequence[Figure]) -> Figure:
    limits = weighted_sum(1, [(figure.value, figure.interval) for figure in points if figure.interval])
    count = sum(figure.num for figure in points)
    return Figure(name, sum(figure.value for figure in points), count, is_share=False, limits=limits)


def _note_categories(found: Collection[str]) -> tuple[str, ...]:
    """What the sums do not hold: folders that are none of MME's categories, and categories without a folder."""
    unknown = [kind for kind in found if kind not in (*PERCEPTION, *COGNITION)]
    notes = [f"not a category of MME, left out of the sums: {', '.join(unknown)}"] if unknown else []
    for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION)):
        missing = [kind for kind in kinds if kind not in found]
        if set(kinds) & set(found) - set(COARSE) and missing:
            notes.append(f"the sum of {name} lacks {', '.join(missing)}")
    return tuple(notes)
