"""easy-VQA by lmms-eval and by `ddit eval`: `python -m benchmarks.public.lmms_easy_vqa COPY OUT --model MODEL`.

COPY is as for `benchmarks.public.easy_vqa`, whose model this asks. Needs lmms-eval beside ddit (docs/evaluation.md).
Both programs are asked the same questions of the author's test part, a random choice of --limit, in the files and by
the rule of VizWiz. Prints both accuracies and how many answers are the same, word for word.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.public.common import Question
from benchmarks.public.easy_vqa import read_questions

TASKS = Path(__file__).parents[2] / "examples" / "lmms_eval"
NUM_PEOPLE = 10


def write_vizwiz(out: Path, images: Path, questions: list[Question]) -> None:
    """The questions as VizWiz's file, ten people giving the one answer, and a link to the images."""
    (out / "vizwiz").mkdir(parents=True, exist_ok=True)
    (out / "images").unlink(missing_ok=True)
    (out / "images").symlink_to(images.resolve())
    entries = [
        {
            "image": one.image,
            "question": one.question,
            "answers": [{"answer": one.answer, "answer_confidence": "yes"}] * NUM_PEOPLE,
            "answerable": 1,
            "answer_type": "other",
        }
        for one in questions
    ]
    (out / "vizwiz" / "annotations.json").write_text(json.dumps(entries))


def run(out: Path, *words: str) -> None:
    environment = {**os.environ, "HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", *words], check=True, cwd=out, env=environment, stdout=sys.stderr)


def by_ddit(out: Path, model: Path) -> tuple[float, list[str]]:
    """Accuracy and answers of `ddit eval`."""
    run(out, "ddit", "eval", "vizwiz", "--data", ".", "--model", str(model), "--out", "ours")
    lines = (out / "ours" / "vizwiz" / "predictions.jsonl").read_text().splitlines()
    figures = json.loads((out / "ours" / "vizwiz" / "summary.json").read_text())["figures"]
    accuracy = next(one["value"] for one in figures if one["name"] == "accuracy")
    return accuracy, [json.loads(line)["prediction"] for line in lines]


def by_lmms_eval(out: Path, model: Path) -> tuple[float, list[str]]:
    """Accuracy and answers of lmms-eval's newest run."""
    run(
        out, "lmms_eval", "eval", "--model", "ddit", "--model_args", f"pretrained={model},device=cpu", "--tasks",
        "easy_vqa", "--include_path", str(TASKS), "--batch_size", "50", "--output_path", "theirs", "--log_samples",
    )  # fmt: skip
    results = max((out / "theirs").rglob("*_results.json"), key=os.path.getmtime)
    samples = max((out / "theirs").rglob("*_samples_easy_vqa.jsonl"), key=os.path.getmtime)
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    figures = json.loads(results.read_text())["results"]["easy_vqa"]
    return figures["accuracy,none"], [line["filtered_resps"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("copy", type=Path, help="your copy of the set")
    parser.add_argument("out", type=Path, help="folder of the files and results")
    parser.add_argument("--model", type=Path, required=True, help="folder of a model that was fitted to it")
    parser.add_argument("--limit", type=int, default=1000, help="questions [default: %(default)s]")
    args = parser.parse_args()
    asked = read_questions(args.copy / "test")
    chosen = random.Random(0).sample(asked, min(args.limit, len(asked)))
    write_vizwiz(args.out, args.copy / "test" / "images", chosen)
    ours, theirs = (task(args.out, args.model.resolve()) for task in (by_ddit, by_lmms_eval))
    same = sum(a == b for a, b in zip(ours[1], theirs[1], strict=True))
    print("| figure | lmms-eval | `ddit eval` | n |\n|---|---|---|---|")
    print(f"| easy-VQA, test: accuracy | {theirs[0]:.4f} | {ours[0]:.4f} | {len(chosen):,} |")
    print(f"| the same answers | {same:,} | | {len(chosen):,} |")


if __name__ == "__main__":
    main()
