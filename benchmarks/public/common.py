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

from ddit.config.data import QuestionsData
from ddit.eval.items import Figure
from ddit.fit.held_out import Asked, Clock, read_asked
from ddit.fit.reading import Answered, answer_questions
from ddit.pipeline import Pipeline

NO_LIMIT = 10**9
UNTIMED = Clock(1e12)
HEAD = "| set | seed | figure | value | 95 % interval | n | beside it |\n|---|---|---|---|---|---|---|"


class Question(NamedTuple):
    """image: the name of its file below the folder of images."""

    image: str
    question: str
    answer: str


def parse(doc: str, **defaults: float | int) -> tuple[argparse.Namespace, list[str]]:
    """The arguments that all scripts have, and what is left for `ddit fit`. defaults: hours, size, limit."""
    parser = argparse.ArgumentParser(
        description=doc.split("\n\n")[0], epilog="All other options go to ddit fit: --preset m"
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
    args, rest = parser.parse_known_args()
    if not args.copy.is_dir():
        parser.error(f"'{args.copy}' is no folder: give your copy of the set")
    return args, rest


def write_questions(folder: Path, name: str, questions: Iterable[Question]) -> tuple[Path, Path]:
    """Two files in VQAv2's form, with one answer a question; images are named by their files."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answered = [], []
    for number, one in enumerate(questions):
        asked.append({"question_id": number, "image": one.image, "question": one.question})
        answered.append({"question_id": number, "answers": [{"answer": one.answer}]})
    paths = folder / f"{name}_questions.json", folder / f"{name}_annotations.json"
    for path, values in zip(paths, ({"questions": asked}, {"annotations": answered}), strict=True):
        path.write_text(json.dumps(values))
    return paths


def fit(args: argparse.Namespace, sources: Sequence[str], options: Sequence[str], rest: Sequence[str]) -> Path:
    """Runs `ddit fit`, and says with what; returns the folder of the model."""
    words = ["fit", *sources, "--out", str(args.out / "fit"), "--hours", f"{args.hours:g}"]
    words += ["--size", str(args.size), "--seed", str(args.seed), *options, *rest]
    print(f"ddit {shlex.join(words)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "ddit", *words], check=True)
    return args.out / "fit" / "model"


def answer(model: Path, files: tuple[Path, Path], images: Path, limit: int) -> Answered:
    """The model's answers to the questions of a test split."""
    pipeline = Pipeline.from_pretrained(model)
    source = QuestionsData(str(files[0]), str(files[1]), images=str(images), image_pattern="{image_id}")
    asked: list[Asked] = read_asked((source,), pipeline.settings.image_size, limit, UNTIMED)
    return answer_questions(pipeline, asked, UNTIMED)


def print_rows(name: str, seed: int, figures: Iterable[Figure]) -> None:
    print(HEAD)
    for figure in figures:
        value, *limits = (f"{value:.4f}" for value in (figure.value, *(figure.interval or ())))
        beside = ", ".join(f"{key} {value:.4f}" for key, value in figure.baselines.items())
        print(f"| {name} | {seed} | {figure.name} | {value} | {' to '.join(limits)} | {figure.num:,} | {beside} |")
