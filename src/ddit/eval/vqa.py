"""Open questions: VQAv2, VizWiz and GQA, read from their official files and scored by their official rules.

Rules and formats: VQA (Goyal et al. 2017; github.com/GT-Vision-Lab/VQA), VizWiz (Gurari et al. 2018; vizwiz.org), GQA
(Hudson and Manning 2019; cs.stanford.edu/people/dorarad/gqa). Where an official script and the prose that describes it
differ, the script is followed, and the docstring says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddit.eval.image_index import ImageIndex
from ddit.eval.intervals import f1_interval
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
    require_text,
    to_text,
)
from ddit.files import read_json

NUM_ANSWERS = 10
UNANSWERABLE = "unanswerable"

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

_CONTRACTIONS = (
    "ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't", "don't", "hadn't",
    "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd", "how'll", "how's", "isn't", "it'd",
    "it'd've", "it'll", "ma'am", "mightn't", "mightn't've", "might've", "mustn't", "must've", "needn't",
    "not've", "o'clock", "oughtn't", "'ow's'at", "shan't", "she'd've", "should've", "shouldn't", "shouldn't've",
    "somebody'd've", "somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's",
    "something'd", "something'd've", "something'll", "that's", "there'd", "there'd've", "there're", "there's",
    "they'd", "they'd've", "they'll", "they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't",
    "what'll", "what're", "what's", "what've", "when's", "where'd", "where's", "where've", "who'd", "who'd've",
    "who'll", "who's", "who've", "why'll", "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've",
    "y'all", "y'all'll", "y'all'd've", "you'd", "you'd've", "you'll", "you're", "you've",
)  # fmt: skip


def _without_one_apostrophe() -> dict[str, str]:
    """Each spelling that lacks one apostrophe -> the full one. The official table has "somebody'd" the other way."""
    table = {"somebody'd": "somebodyd"}
    for full in _CONTRACTIONS:
        for place, letter in enumerate(full):
            if letter == "'":
                table[full[:place] + full[place + 1 :]] = full
    return table


_FULL_SPELLING = _without_one_apostrophe()


def normalize_punctuation(text: str) -> str:
    """Removes punctuation as the official VQA script does.

    Each mark is removed if it stands beside a space anywhere in the text, or if the text has a comma between digits;
    else a space takes its place. A period goes unless a digit follows it. Apostrophes and colons stay.
    """
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        joins = has_number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if joins else " ")
    return _PERIOD.sub("", cleaned)


def normalize_answer(text: str) -> str:
    """An answer in the form that the official VQA script compares: lower case, no punctuation, articles or line ends,
    number words to ten as digits, contractions with their apostrophe.
    """
    flat = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_DIGITS.get(word, word) for word in normalize_punctuation(flat).lower().split()]
    return " ".join(_FULL_SPELLING.get(word, word) for word in words if word not in _ARTICLES)


def ten_answer_score(answer: str, answers: Sequence[str]) -> float:
    """min(n / 3, 1), n of the other people having given this answer, averaged over leaving each person out.

    With ten people: 0, 0.3, 0.6, 0.9 and 1 for 0, 1, 2, 3 and at least 4 who agree. With fewer than ten, for whom the
    formula is not made (the only person's answer would score 0), 1 for an answer that one of them gave, else 0.
    """
    if not answers:
        raise ValueError("there is no answer to compare with")
    if len(answers) < NUM_ANSWERS:
        return float(answer in answers)
    agree = sum(given == answer for given in answers)
    return mean(min((agree - (given == answer)) / 3, 1.0) for given in answers)


def vqav2_score(text: str, answers: Sequence[str]) -> float:
    """VQAv2's accuracy of one answer.

    Both sides are normalised. The official script (of 2021) does that only where people disagree, and else compares the
    bare texts. That comes to the same: answers are usually normalised before they are submitted, and published
    annotations are in lower case, with digits.
    """
    return ten_answer_score(normalize_answer(text), [normalize_answer(answer) for answer in answers])


def read_vqav2(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of `*questions*.json` and `*annotations*.json` (v2_OpenEnded_mscoco_val2014_questions.json, ...).

    Images are named COCO_<data_subtype>_<image id in twelve digits>, or by those digits or the id alone.
    """
    path = find_file(folder, "*[Qq]uestions*.json")
    annotations_path = find_file(folder, "*[Aa]nnotations*.json")
    asked = read_json(path)
    annotations = require_list(read_json(annotations_path), "annotations", annotations_path)
    annotated = {require_id(entry, "question_id", annotations_path): entry for entry in annotations}
    index = ImageIndex(find_image_folder(folder, images))
    subtype = asked.get("data_subtype") or ""
    items: dict[str, Item] = {}
    repeated, unanswered = [], []
    for entry in require_list(asked, "questions", path):
        number, name = require_id(entry, "question_id", path), require_id(entry, "image_id", path)
        annotation = annotated.pop(number, {})
        answers = people_answers(annotation)
        if number in items:
            repeated.append(number)
        elif not answers:
            unanswered.append(number)
        else:
            digits = name.zfill(12) if name.isdecimal() else name
            in_split = (f"COCO_{subtype}_{digits}", f"{subtype}/{digits}") if subtype else ()
            image = index.find(*in_split, digits, name)
            truth = {
                "answer": to_text(annotation.get("multiple_choice_answer")) or most_common(answers),
                "answers": answers,
                "kind": annotation.get("answer_type") or "other",
                "question_type": annotation.get("question_type") or "",
            }
            items[number] = Item(number, image, require_text(entry, "question", path), truth)
    if unanswered and not items:
        raise ValueError(f"'{annotations_path}' has no answers to question {unanswered[0]}")
    index.check()
    without = f"without an answer in {annotations_path.name} left out"
    beyond = f"of {annotations_path.name} not asked: {path.name} lacks"
    return TaskItems(
        list(items.values()),
        (
            *count_note(unanswered, f"question {without}", f"questions {without}"),
            *count_note(
                repeated, "question left out: its id came before", "questions left out: their ids came before"
            ),
            *count_note(list(annotated), f"annotation {beyond} it", f"annotations {beyond} them"),
        ),
    )


def score_vqav2(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """Accuracy in all, by kind of answer (yes/no, number, other) and by kind of question."""
    result = score_items(
        items, texts, lambda item, text: vqav2_score(text, item.truth["answers"]), "question_type"
    )
    return result._replace(notes=_note_exact_match(items))


def people_answers(entry: Mapping[str, Any]) -> list[str]:
    """The answers of an annotation: a list of texts, or of objects with the key `answer`, or a single answer."""
    keys = ("answers", "answer", "multiple_choice_answer")
    found = next((entry[key] for key in keys if entry.get(key) not in (None, [], "")), [])
    listed = found if isinstance(found, list) else [found]
    texts = (to_text(each.get("answer") if isinstance(each, dict) else each) for each in listed)
    return [text for text in texts if text is not None]


def _note_exact_match(items: Sequence[Item]) -> tuple[str, ...]:
    """By what rule questions with fewer than ten answers are scored, if there are any."""
    few = sum(len(item.truth["answers"]) < NUM_ANSWERS for item in items)
    if not few:
        return ()
    return (
        f"{few:,} of {len(items):,} questions have fewer than ten answers and are scored by exact match (1 for an "
        "answer that one of the people gave, else 0): the official rule of ten would give right answers less than 1",
    )


def read_vizwiz(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of VizWiz' `val.json` or `annotations.json`: a list with image, question, answers, answerable."""
    path = find_file(folder, "*annotations*.json", "val*.json", "*.json")
    index = ImageIndex(find_image_folder(folder, images))
    items, unanswered = [], []
    for number, entry in enumerate(read_json(path, list)):
        name, answers = require_id(entry, "image", path), people_answers(entry)
        if not answers:
            unanswered.append(name)
            continue
        truth = {
            "answer": most_common(answers),
            "answers": answers,
            "kind": entry.get("answer_type") or "other",
            "answerable": int(require_id(entry, "answerable", path) not in ("0", "no")),
        }
        items.append(Item(str(number), index.find(name), require_text(entry, "question", path), truth))
    if unanswered and not items:
        raise ValueError(f"'{path}' has no answers: the test split cannot be scored here")
    index.check()
    return TaskItems(
        items,
        count_note(unanswered, "question without an answer left out", "questions without an answer left out"),
    )


def vizwiz_score(text: str, answers: Sequence[str]) -> float:
    """VizWiz' accuracy of one answer; the official script does not normalise people's answers."""
    return ten_answer_score(normalize_answer(text), answers)


def score_vizwiz(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """Accuracy in all and by kind of answer; then how well "unanswerable" is recognised.

    The official figures on that take a confidence. Here it is 1 where the answer is "unanswerable" and 0 elsewhere, so
    that F1 is the official one and average precision that of a two-valued score.
    """
    result = score_items(items, texts, lambda item, text: vizwiz_score(text, item.truth["answers"]))
    actual = [not item.truth["answerable"] for item in items]
    predicted = [
        not is_actual if item.fault else normalize_answer(text) == UNANSWERABLE
        for item, is_actual, text in zip(items, actual, texts, strict=True)
    ]
    both = sum(a and b for a, b in zip(predicted, actual, strict=True))
    precision, recall = both / max(sum(predicted), 1), both / max(sum(actual), 1)
    f1 = 2 * both / max(sum(predicted) + sum(actual), 1)
    average_precision = recall * precision + (1 - recall) * mean(actual)
    unanswerable = [
        Figure(
            "unanswerable: F1",
            f1,
            len(items),
            is_share=False,
            limits=f1_interval(both, sum(predicted), sum(actual)),
        ),
        Figure("unanswerable: precision", precision, sum(predicted)),
        Figure("unanswerable: recall", recall, sum(actual)),
        Figure("unanswerable: average precision", average_precision, len(items), is_share=False),
    ]
    return TaskScore(result.scores, [*result.figures, *unanswerable], _note_exact_match(items))


def normalize_gqa(text: str) -> str:
    """GQA's answers are lower case without a full stop; two spellings are equal if they are after that."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def read_gqa(folder: Path, images: Path | None = None) -> TaskItems:
    """Items of `*questions*.json` (testdev_balanced_questions.json): id -> question, imageId, answer, types.

    Images are named by their id. The kind is `types.structural`: verify, query, choose, logical, compare. Questions
    with `isBalanced` false are left out: the official script counts them for consistency alone.
    """
    path = find_file(folder, "*[Qq]uestions*.json")
    index = ImageIndex(find_image_folder(folder, images))
    items, unbalanced, unanswered = [], [], []
    for number, entry in read_json(path).items():
        answer = to_text(require(entry, "answer", path))
        if entry.get("isBalanced") is False:
            unbalanced.append(number)
        elif answer is None:
            unanswered.append(number)
        else:
            types = entry["types"] if isinstance(entry.get("types"), dict) else {}
            named = {key: types[key] for key in ("structural", "semantic", "detailed") if key in types}
            truth = {"answer": answer, "kind": types.get("structural") or "other", **named}
            image = index.find(require_id(entry, "imageId", path))
            items.append(Item(number, image, require_text(entry, "question", path), truth))
    index.check()
    rule = "left out, as in the official script's accuracy"
    return TaskItems(
        items,
        (
            *count_note(unbalanced, f"unbalanced question {rule}", f"unbalanced questions {rule}"),
            *count_note(
                unanswered, "question without an answer left out", "questions without an answer left out"
            ),
        ),
    )


def score_gqa(items: Sequence[Item], texts: Sequence[str]) -> TaskScore:
    """Exact matches in all, by structural, semantic and detailed type; binary (yes/no and choices) and open."""

    def score(item: Item, text: str) -> float:
        return float(normalize_gqa(text) == normalize_gqa(item.truth["answer"]))

    result = score_items(items, texts, score, "semantic", "detailed")
    halves = []
    for name, is_open in (("binary", False), ("open", True)):
        chosen = [
            value
            for item, value in zip(items, result.scores, strict=True)
            if (item.truth["kind"] == "query") == is_open
        ]
        if chosen:
            halves.append(Figure(name, mean(chosen), len(chosen)))
    return TaskScore(result.scores, [result.figures[0], *halves, *result.figures[1:]])


# --- shared by the tasks ---


def most_common(answers: Sequence[str]) -> str:
    """The most frequent answer, of several the first; `ValueError` for none."""
    if not answers:
        raise ValueError("a question has no answer")
    return Counter(answers).most_common(1)[0][0]


def score_items(
    items: Sequence[Item], texts: Sequence[str], score: Callable[[Item, str], float], *further: str
) -> TaskScore:
    """The mean score, and that of each `kind` and of each value of the `further` keys of the truth.

    An item with a fault scores 0. Each figure has the baselines that need no model, over its own items.
    """
    scores = [0.0 if item.fault else score(item, text) for item, text in zip(items, texts, strict=True)]
    figures = [_share("accuracy", list(zip(items, scores, strict=True)), score)]
    for key in ("kind", *further):
        groups: dict[str, list[tuple[Item, float]]] = {}
        for item, value in zip(items, scores, strict=True):
            name = item.truth.get(key)
            if name:
                groups.setdefault(str(name), []).append((item, value))
        prefix = "" if key == "kind" else f"{key.replace('_', ' ')}: "
        figures += [_share(f"{prefix}{name}", groups[name], score) for name in sorted(groups)]
    return TaskScore(scores, figures)


def _share(name: str, group: list[tuple[Item, float]], score: Callable[[Item, str], float]) -> Figure:
    if not group:
        return Figure(name, 0.0, 0)
    items = [item for item, _ in group]
    openings: dict[str, list[Item]] = {}
    for item in items:
        openings.setdefault(" ".join((item.question or "").lower().split()[:2]), []).append(item)
    baselines = {
        "majority": mean(_scores_of_most_common(items, score)),
        "first_two_words": mean(
            value for alike in openings.values() for value in _scores_of_most_common(alike, score)
        ),
    }
    return Figure(name, mean(value for _, value in group), len(group), baselines)


def _scores_of_most_common(items: Sequence[Item], score: Callable[[Item, str], float]) -> list[float]:
    """What these items' most common right answer scores on each of them."""
    guess = most_common([item.truth["answer"] for item in items])
    return [score(item, guess) for item in items]


def find_image_folder(folder: Path, images: Path | None) -> Path:
    """Where a task's images are: as given, or images/ in its folder or beside it, or its folder itself."""
    if images is not None:
        return images
    nearby = (folder / "images", folder.parent / "images")
    return next((path for path in nearby if path.is_dir()), folder)
