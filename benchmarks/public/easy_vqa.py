"""easy-VQA by `ddit fit`: `python -m benchmarks.public.easy_vqa COPY OUT`.

COPY is the folder `easy_vqa/data` of PyPI's `easy-vqa` 1.0 (MIT), with `train/` and `test/`. Trains on the author's
training part, answers all questions of his test part, and prints the accuracy, also by the questions' first words.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.public.common import Question, ask, fit, parse, print_rows


def read_questions(part: Path) -> list[Question]:
    """The questions of `train` or `test`: a list of question, answer and the image's number."""
    entries = json.loads((part / "questions.json").read_text())
    return [Question(f"{image}.png", question, text) for question, text, image in entries]


def main() -> None:
    args, rest = parse(__doc__, hours=0.75, size=64)
    model = fit(args, str(args.copy / "train" / "questions.json"), rest)
    asked = read_questions(args.copy / "test")
    chosen = random.Random(0).sample(asked, min(args.limit, len(asked)))
    found = ask(model, chosen, args.copy / "test" / "images")
    print_rows("easy-VQA", args.seed, found.section.figures)


if __name__ == "__main__":
    main()
