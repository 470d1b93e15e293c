"""NLVR by `ddit fit`, is a sentence true of an image: `python -m benchmarks.public.nlvr COPY OUT`.

COPY is the folder `nlvr` of github.com/lil-lab/nlvr (CC-BY-4.0): `train/`, `dev/`, `test/` and `hidden/`, each with its
JSON and its images. A sentence is asked as a question, the answer is "true" or "false". Trains on the files of --train.
Of every other split it prints accuracy ("precision") and consistency by the official rule, and it writes OUT/SPLIT.csv,
which the official `metrics_images.py` reads.

The images, three boxes of 100 pixels in a row of 400, are not square, and a fit cuts squares: the boxes are put into
two rows, once, as files in OUT/images.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.public.common import Question, ask, fit, parse, print_rows, write_questions
from ddit.eval.intervals import wilson
from ddit.eval.items import Figure
from ddit.fit.reading import answer_score

NUM_ORDERS = 6
"""Images of an example: its boxes in every order."""
SPLITS = ("dev", "test", "hidden")
BOX, GAP = 100, 50
GREY = (211, 211, 211)
HELD_OUT = 0.1


class Example(NamedTuple):
    """A sentence and its label ("true", "false"). identifier: `n-m`; examples of one sentence have one n."""

    split: str
    identifier: str
    sentence: str
    label: str

    @property
    def images(self) -> list[str]:
        return [f"{self.split}-{self.identifier}-{order}.png" for order in range(NUM_ORDERS)]


class Scores(NamedTuple):
    """precision: the share of images that are right. consistency: of sentences with which all are."""

    precision: float
    num_images: int
    consistency: float
    num_sentences: int


def read_examples(path: Path) -> list[Example]:
    """The examples of one JSON file, one a line; the file is named after its split."""
    lines = path.read_text().splitlines()
    found: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    return [Example(path.stem, one["identifier"], one["sentence"], one["label"].lower()) for one in found]


def score(predictions: Mapping[str, str], examples: Sequence[Example]) -> Scores:
    """As the official `metrics_images.py`.

    Args:
        predictions: true or false, in any case, by the image's name.

    Raises:
        ValueError: a prediction is missing.
    """
    missing = [name for example in examples for name in example.images if name not in predictions]
    if missing:
        raise ValueError(f"{len(missing)} predictions are missing, the first that of {missing[0]}")
    consistent: dict[str, bool] = {}
    num_right = 0
    for example in examples:
        right = [predictions[name].lower() == example.label for name in example.images]
        num_right += sum(right)
        sentence = example.identifier.split("-")[0]
        consistent[sentence] = consistent.get(sentence, True) and all(right)
    total = NUM_ORDERS * len(examples)
    return Scores(num_right / total, total, sum(consistent.values()) / len(consistent), len(consistent))


def questions_of(examples: Iterable[Example]) -> list[Question]:
    """Each sentence with each of its images."""
    return [Question(name, one.sentence, one.label) for one in examples for name in one.images]


def hold_out(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Those to train on, and those by which the weights are chosen: all examples of `HELD_OUT` of the sentences.

    Of images alone an order of the same boxes with the same sentence would be left in training.
    """
    parts: tuple[list[Example], list[Example]] = [], []
    for one in examples:
        place = zlib.crc32(f"{one.split}-{one.identifier.split('-')[0]}".encode()) / 2**32
        parts[place < HELD_OUT].append(one)
    return parts


def fold_boxes(image: Image.Image) -> Image.Image:
    """The three boxes in two rows: a square of 200 pixels, of which a quarter is grey."""
    folded = Image.new("RGB", (2 * BOX, 2 * BOX), GREY)
    for number in range(3):
        left = number * (BOX + GAP)
        row, column = divmod(number, 2)
        folded.paste(image.convert("RGB").crop((left, 0, left + BOX, BOX)), (column * BOX, row * BOX))
    return folded


def write_images(copy: Path, folder: Path, examples: Sequence[Example]) -> None:
    """The images of these examples, folded; those that are there are kept.

    Raises:
        ValueError: an image is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for split in {example.split for example in examples}:
        found |= {path.name: path for path in (copy / split / "images").rglob("*.png")}
    for name in (name for example in examples for name in example.images):
        if name not in found:
            raise ValueError(f"'{copy}' has no image {name}")
        if not (folder / name).exists():
            fold_boxes(Image.open(found[name])).save(folder / name)


def evaluate(model: Path, out: Path, examples: Sequence[Example]) -> list[Figure]:
    """Figures of a split; what the model says is in OUT/SPLIT.csv."""
    split = examples[0].split
    asked = questions_of(examples)
    answers = ask(model, asked, out / "images").answers
    said = {
        one.image: "true" if answer_score(text, ["true"]) else "false"
        for one, text in zip(asked, answers, strict=True)
    }
    (out / f"{split}.csv").write_text("".join(f"{name},{text}\n" for name, text in said.items()))
    scores = score(said, examples)
    share = sum(one.label == "true" for one in examples) / len(examples)
    limits = wilson(scores.precision, len(examples))  # images of one example are not independent
    majority = {"majority": max(share, 1 - share)}
    return [
        Figure(
            f"{split}: accuracy", scores.precision, scores.num_images, majority, is_share=False, limits=limits
        ),
        Figure(f"{split}: consistency", scores.consistency, scores.num_sentences),
    ]


def main() -> None:
    args, rest = parse(__doc__, hours=3.0, size=64, train=0)
    paths = args.train or [args.copy / "train" / "train.json"]
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"'{path}' does not exist: name the JSON files to train on as --train")
    trained = [example for path in paths for example in read_examples(path)]
    judged = [
        read_examples(args.copy / split / f"{split}.json")[: args.limit]
        for split in SPLITS
        if (args.copy / split / f"{split}.json").is_file() and split not in {path.stem for path in paths}
    ]
    write_images(args.copy, args.out / "images", [*trained, *(one for split in judged for one in split)])
    files = [
        write_questions(args.out / name, questions_of(part))
        for name, part in zip(("questions.json", "held_out.json"), hold_out(trained), strict=True)
    ]
    model = fit(args, files[0], ["--held-out", files[1], *rest])
    print_rows("NLVR", args.seed, [figure for split in judged for figure in evaluate(model, args.out, split)])


if __name__ == "__main__":
    main()
