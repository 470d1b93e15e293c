"""What the scripts of the public data sets share: their arguments, `ddit fit`, and rows of a table."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ddit.eval.items import Figure
from ddit.fit.held_out import Asked, Clock
from ddit.fit.reading import Answered, answer_questions
from ddit.images import fit_image, read_image
from ddit.pipeline import Pipeline

NO_LIMIT = 10**9
UNTIMED = Clock(1e12)
HEAD = "| set | seed | figure | value | 95 % interval | n | beside it |\n|---|---|---|---|---|---|---|"


class Question(NamedTuple):
    """image: the name of its file below the folder of images."""

    image: str
    question: str
    answer: str


def parse(doc: str | None, **defaults: float | int) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a script, and what is left for `ddit fit`.

    defaults: of hours, size and limit, which all have; `train` and `classifier_minutes` are there where they are named.
    """
    parser = argparse.ArgumentParser(
        description=(doc or "").split("\n\n")[0], epilog="All other options go to ddit fit: --preset m"
    )
    parser.add_argument("copy", type=Path, help="your copy of the set")
    parser.add_argument("out", type=Path, help="folder of the model; a finished one is only evaluated")
    parser.add_argument("--hours", type=float, default=defaults["hours"])
    parser.add_argument("--size", type=int, default=defaults["size"], help="pixels a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit",
        type=int,
        default=defaults.get("limit", NO_LIMIT),
        help="test samples at most, a random choice [default: %(default)s]",
    )
    if "train" in defaults:
        parser.add_argument(
            "--train", type=Path, nargs="+", help="JSON files to train on [default: COPY/train/train.json]"
        )
    if "classifier_minutes" in defaults:
        parser.add_argument(
            "--classifier-minutes",
            type=float,
            default=defaults["classifier_minutes"],
            help="training of the classifier that judges generated images",
        )
    args, rest = parser.parse_known_args()
    if not args.copy.is_dir():
        parser.error(f"'{args.copy}' is no folder: give your copy of the set")
    return args, rest


def write_questions(path: Path, questions: Iterable[Question]) -> str:
    """A list of [question, answer, image], a form that `ddit fit` takes, for images in `images/` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([[one.question, one.answer, one.image] for one in questions]))
    return str(path)


def fit(args: argparse.Namespace, source: str, rest: Sequence[str]) -> Path:
    """Runs `ddit fit`, and says with what; returns the folder of the model."""
    words = ["fit", source, "--out", str(args.out / "fit"), "--hours", f"{args.hours:g}"]
    words += ["--size", str(args.size), "--seed", str(args.seed), *rest]
    print(f"ddit {shlex.join(words)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "ddit", *words], check=True)
    return args.out / "fit" / "model"


def ask(model: Path, questions: Sequence[Question], images: Path) -> Answered:
    """The model's answers to the questions of a test split, in their order."""
    pipeline = Pipeline.from_pretrained(model)
    size = pipeline.settings.image_size
    shown = {
        name: fit_image(read_image(images / name), size, size) for name in {one.image for one in questions}
    }
    asked = [Asked(shown[one.image], one.question, (one.answer,), short=True) for one in questions]
    return answer_questions(pipeline, asked, UNTIMED)


def print_rows(name: str, seed: int, figures: Iterable[Figure]) -> None:
    print(HEAD)
    for figure in figures:
        value, *limits = (f"{value:.4f}" for value in (figure.value, *(figure.interval or ())))
        beside = ", ".join(f"{key} {value:.4f}" for key, value in figure.baselines.items())
        print(
            f"| {name} | {seed} | {figure.name} | {value} | {' to '.join(limits)} | {figure.num:,} | {beside} |"
        )
