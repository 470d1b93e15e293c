"""The end of a fit: what the model can do with held-out data, as figures, images and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ddit.config.data import FoldersData
from ddit.data.sources import open_source
from ddit.data.sources.class_names import article_for
from ddit.files import write_atomically
from ddit.fit.card import SAMPLES_FILE, write_card
from ddit.fit.drawing import Drawn, Judge, Judged, judge_images, nothing_drawn
from ddit.fit.guidance import choose_guidance
from ddit.fit.held_out import Clock, class_names, read_asked, read_captioned
from ddit.fit.plan import Findings, FitPlan, Outcome
from ddit.fit.reading import Answered, answer_questions, answer_score, caption_images, rank_classes
from ddit.fit.section import Section
from ddit.inference.image_grid import image_grid
from ddit.pipeline import Pipeline
from ddit.schema import to_data

REPORT_FILE, ANSWERS_FILE, NEAREST_FILE = "report.json", "answers.png", "nearest.png"
MAX_IMAGES, MAX_QUESTIONS = 2000, 4000
"""Held-out ones that are read; the time decides how many are used."""
NUM_SHOWN = 16


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        warnings: what a user must know before the figures, a line each.
        files: what was written.
    """

    sections: tuple[Section, ...]
    warnings: tuple[str, ...]
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """The headlines and warnings, for people."""
        heads = []
        for section in self.sections:
            for figure in section.figures[:1]:
                limits = "" if figure.interval is None else " ({:.3f} to {:.3f})".format(*figure.interval)
                heads.append(f"{section.title}: {figure.name} {figure.value:.3f}{limits}, n = {figure.num:,}")
        return [
            *heads,
            *(f"warning: {line}" for line in self.warnings),
            *(f"see {path}" for path in self.files),
        ]


def write_report(
    out: Path,
    model_folder: Path,
    plan: FitPlan,
    findings: Findings,
    outcome: Outcome,
    *,
    set_guidance: bool = False,
) -> Report:
    """Measures the model in `model_folder` within about `plan.report_seconds`, and writes what was found.

    With `set_guidance` the model's guidance scale is chosen first.

    In the model's folder: `README.md` (the model card) and `samples.png`. In `out`, since they show held-out and
    training images or name files: `report.json`, `answers.png` and `nearest.png`.
    """
    clock = Clock(plan.report_seconds)
    pipeline = Pipeline.from_pretrained(model_folder)
    size = plan.image_size
    asked = read_asked(plan.held_out, size, MAX_QUESTIONS, clock.part(0.07))
    shown = read_captioned(plan.held_out, size, MAX_IMAGES, clock.part(0.08))
    answered = answer_questions(pipeline, asked, clock.part(0.15))
    sections: list[Section | None] = [answered.section]
    if shown:
        texts = class_captions(plan)
        sections.append(caption_images(pipeline, shown, list(texts), clock.part(0.15)))
        sections.append(rank_classes(pipeline, shown, texts, clock.part(0.15)))
    judged = nothing_drawn()
    if len(shown) > 1:
        judge = Judge.make(plan, clock.part(0.4), pipeline.device)
        if set_guidance:
            sections.append(choose_guidance(pipeline, judge, shown, clock.part(0.5), model_folder))
        judged = judge_images(pipeline, judge, shown, clock)
    found = [section for section in (*sections, *judged.sections) if section is not None]
    warnings = (*plan.warnings, *find_warnings(found))
    files = [
        *_save_grids(out, model_folder, judged, answered),
        _save_json(out, plan, findings, outcome, found, warnings),
    ]
    prompts, questions = judged.drawn.prompts, answered.asked
    write_card(
        model_folder,
        plan,
        findings,
        outcome,
        found,
        warnings,
        prompt=prompts[0] if prompts else None,
        question=questions[0].question if questions else None,
        num_parameters=sum(weights.numel() for weights in pipeline.transformer.parameters()),
    )
    return Report(tuple(found), tuple(warnings), (model_folder / "README.md", *files))


def class_captions(plan: FitPlan) -> dict[str, str]:
    """A caption of each class of class folders, all by their first template."""
    folders = [cfg for cfg in plan.held_out if isinstance(cfg, FoldersData) and cfg.captions == "folders"]
    return {
        name: cfg.templates[0].format(name=name, article=article_for(name))
        for cfg in folders
        for name in class_names(open_source(cfg))
    }


def find_warnings(sections: Sequence[Section]) -> list[str]:
    """What the figures themselves say against the model, or against the figures."""
    found = []
    for section in sections:
        if not section.figures:
            continue
        head = section.figures[0]
        low = head.interval[0] if head.interval is not None else head.value
        least = {"answers": "by first two words", "captions": "commonest class", "classes": "commonest class"}
        beside = head.baselines.get(least.get(section.key, ""))
        if beside is not None and low <= beside:
            found.append(
                f"{section.title}: {head.name} {head.value:.3f} is not above what always the most frequent one gives "
                f"({beside:.3f}), with n = {head.num:,}."
            )
        if section.key == "copies" and low > 2 * head.baselines["held-out images"]:
            found.append(
                f"{head.value:.0%} of the generated images are nearer to a training image than 95 % of held-out ones "
                "are: the model reproduces images that it was trained on. More images, or less time, would help."
            )
    return found


# --- files ---


def choose_samples(drawn: Drawn, count: int = NUM_SHOWN) -> list[int]:
    """Which images are shown: of each label in turn, no prompt twice before all were there."""
    waiting = list(range(len(drawn.images)))
    times: dict[tuple[str, str | None], int] = {}

    def seen(row: int) -> tuple[int, int, int]:
        prompt, label = drawn.prompts[row], drawn.labels[row]
        return times.get(("prompt", prompt), 0), times.get(("label", label), 0), row

    chosen = []
    while waiting and len(chosen) < count:
        row = min(waiting, key=seen)
        waiting.remove(row)
        chosen.append(row)
        for key in (("prompt", drawn.prompts[row]), ("label", drawn.labels[row])):
            times[key] = times.get(key, 0) + 1
    return chosen


def _save_grids(out: Path, model_folder: Path, judged: Judged, answered: Answered) -> list[Path]:
    drawn = judged.drawn
    grids: dict[Path, tuple[list[Image.Image], list[str], int]] = {}
    rows = choose_samples(drawn)
    if rows:
        grids[model_folder / SAMPLES_FILE] = (
            [drawn.images[row] for row in rows],
            [drawn.prompts[row] for row in rows],
            4,
        )
    if judged.pairs:
        images = [image for pair in judged.pairs for image in pair]
        grids[out / NEAREST_FILE] = (images, ["generated", "nearest of training"] * len(judged.pairs), 4)
    pairs = list(zip(answered.asked, answered.answers, strict=True))[:NUM_SHOWN]
    if pairs:
        texts = [f"{one.question} {answer}{_verdict(one.answers, answer)}" for one, answer in pairs]
        grids[out / ANSWERS_FILE] = ([one.image for one, _ in pairs], texts, 4)
    for path, (images, texts, columns) in grids.items():
        image_grid(images, texts, columns=columns).save(path)
    return list(grids)


def _verdict(answers: Sequence[str], answer: str) -> str:
    return "" if answer_score(answer, answers) else f" (no: {answers[0]})"


def _save_json(
    out: Path,
    plan: FitPlan,
    findings: Findings,
    outcome: Outcome,
    sections: Sequence[Section],
    warnings: Sequence[str],
) -> Path:
    values: dict[str, Any] = {
        "figures": {section.key: section.to_json() for section in sections},
        "warnings": list(warnings),
        "outcome": to_data(outcome),
        "plan": {key: value for key, value in to_data(plan).items() if key not in ("runs", "warnings")},
        "findings": to_data(findings),
    }
    with write_atomically(out / REPORT_FILE) as part:
        part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out / REPORT_FILE
