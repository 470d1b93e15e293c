"""easy-VQA by `ddit fit`: `python benchmarks/public/easy_vqa.py COPY OUT`.

COPY is the folder `easy_vqa/data` of PyPI's `easy-vqa` 1.0 (MIT), with `train/` and `test/`. Trains on the author's
training part, answers all questions of his test part, and prints the accuracy, also by the questions' first words.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.public.common import Question, answer, fit, parse, print_rows, write_questions


def read_questions(part: Path) -> list[Question]:
    """The questions of `train` or `test`: a list of question, answer and the image's number."""
    entries = json.loads((part / "questions.json").read_text())
    return [Question(f"{image}.png", question, text) for question, text, image in entries]


def main() -> None:
    args, rest = parse(__doc__, hours=0.75, size=64)
    files = {
        part: write_questions(args.out / "files", part, read_questions(args.copy / part)) for part in ("train", "test")
    }
    questions, annotations = map(str, files["train"])
    options = ["--annotations", annotations, "--images", str(args.copy / "train" / "images")]
    model = fit(args, [], ["--questions", questions, *options], rest)
    found = answer(model, files["test"], args.copy / "test" / "images", args.limit)
    print_rows("easy-VQA", args.seed, found.section.figures)


if __name__ == "__main__":
    main()
