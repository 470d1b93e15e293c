"""The model card of a fit: `README.md` in the model's folder, with the header that the hub reads."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ddit import __version__
from ddit.fit.plan import Findings, FitPlan, Outcome
from ddit.fit.section import Section
from ddit.hub import card_header

SAMPLES_FILE = "samples.png"


def write_card(
    folder: Path,
    plan: FitPlan,
    findings: Findings,
    outcome: Outcome,
    sections: Sequence[Section],
    warnings: Sequence[str],
    *,
    prompt: str | None,
    question: str | None,
    num_parameters: int,
) -> None:
    """prompt, question: examples for the commands; None where the model does not generate, or was asked nothing."""
    parts = [
        _header(plan, generates=prompt is not None, answers=question is not None),
        f"# {Path(plan.out).resolve().name}",
        _about(plan, num_parameters),
        *([_list("Mind", warnings)] if warnings else []),
        *(
            [f"![Generated images, each above its prompt]({SAMPLES_FILE})"]
            if (folder / SAMPLES_FILE).is_file()
            else []
        ),
        _use(folder, prompt, question),
        _figures(sections, plan),
        _data(findings),
        _training(plan, outcome),
        _list("Limits", _limits(plan)),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def commands(folder: Path, prompt: str | None, question: str | None) -> list[str]:
    """What a user types first: each works on what the one before it has made, or on an image of his own."""
    model = shlex.quote(str(folder))
    lines = []
    if prompt is not None:
        lines.append(f"ddit generate {shlex.quote(prompt)} --model {model} -o image.png")
        lines.append(f"ddit caption image.png --model {model}")
    if question is not None:
        lines.append(f"ddit ask image.png {shlex.quote(question)} --model {model}")
    return [*lines, f"ddit page --model {model}"]


def _header(plan: FitPlan, *, generates: bool, answers: bool) -> str:
    tags = ["ddit", "diffusion", "image-to-text"]
    tags += ["text-to-image"] if generates else []
    tags += ["visual-question-answering"] if answers else []
    is_hub_id = plan.base is not None and "/" in plan.base and not Path(plan.base).exists()
    name, base = Path(plan.out).resolve().name, plan.base if is_hub_id else None
    # the user names the licence that the data allow: ddit push --license
    return f"---\n{card_header(name, license='other', base_model=base, tags=tags).to_yaml()}\n---"


def _about(plan: FitPlan, num_parameters: int) -> str:
    origin = f"tuned from {plan.base}" if plan.base else "trained from nothing"
    return (
        f"A D-DiT of {num_parameters / 1e6:.1f} M parameters ({plan.preset}, images of {plan.image_size} px), {origin} "
        f"by `ddit fit` {__version__}: one diffusion transformer that generates images by flow matching and writes "
        "text about images by masked diffusion."
    )


def _use(folder: Path, prompt: str | None, question: str | None) -> str:
    verb = f"print(pipeline.answer('image.png', {question!r}))"
    if prompt is not None:
        verb = f"pipeline.generate({prompt!r})[0].save('image.png')"
    code = [
        "from ddit.pipeline import Pipeline",
        "",
        f"pipeline = Pipeline.from_pretrained({str(folder)!r})",
        verb,
    ]
    shell = commands(folder, prompt, question)
    return "\n".join(["## Use", "", "```bash", *shell, "```", "", "```python", *code, "```"])


def _figures(sections: Sequence[Section], plan: FitPlan) -> str:
    parts = [
        "## Figures",
        "On what was never trained on. The averaged weights were chosen by the same held-out part, which "
        "makes these figures a little better than on new data.",
    ]
    for section in sections:
        parts.append(f"### {section.title}")
        if section.figures:
            parts.append("\n".join(section.table()))
        if section.lines:
            parts.append(" ".join(section.lines))
    return "\n\n".join(parts)


def _data(findings: Findings) -> str:
    rows = [
        "| source | what | samples | distinct images | held out | cannot be used |",
        "|---|---|---|---|---|---|",
    ]
    for source in (*findings.sources, *findings.held_out):
        read = "" if source.num_read == source.num_samples else f" ({source.num_read:,} read)"
        rows.append(
            f"| {Path(source.name).name} | {source.role} | {source.num_samples:,}{read} | {source.num_images:,} | "
            f"{source.num_held_out:,} | {source.num_corrupt:,} |"
        )
    total = (
        f"{findings.num_images:,} distinct images, of which {findings.num_held_out_images:,} are held out."
    )
    classes = findings.classes
    named = sorted(classes.items(), key=lambda one: (-one[1], one[0]))[:30]
    listed = ", ".join(f"{name} {count:,}" for name, count in named)
    more = "" if len(classes) <= len(named) else ", ..."
    found = [f"{len(classes)} classes: {listed}{more}."] if classes else []
    return "\n\n".join(["## Data", "\n".join(rows), total, *found])


def _training(plan: FitPlan, outcome: Outcome) -> str:
    hours = sum(outcome.seconds.values()) / 3600
    rows = ["| stage | steps | minutes |", "|---|---|---|"]
    for name, seconds in outcome.seconds.items():
        steps = f"{outcome.steps[name]:,}" if name in outcome.steps else ""
        rows.append(f"| {name} | {steps} | {seconds / 60:.1f} |")
    cost = "" if outcome.chosen_cost is None else f", held-out cost {outcome.chosen_cost:.4f}"
    text = (
        f"{hours:.2f} of {plan.hours:g} hours on {plan.device}; seed {plan.seed}; {plan.num_views} "
        f"view{'s' if plan.num_views > 1 else ''} of each image. The weights are the average of {outcome.chosen} after "
        f"{outcome.chosen_step:,} steps{cost}."
    )
    return "\n\n".join(["## Training", text, "\n".join(rows)])


def _limits(plan: FitPlan) -> list[str]:
    return [
        "It knows the images and texts above and nothing else"
        + (f", beside what {plan.base} knew." if plan.base else "."),
        "It answers and captions whatever image it is shown, and does not say when it guesses.",
        f"Images are cut to a square and read at {plan.image_size} px.",
        "It has the biases of its data, and may reproduce images and texts of it: see the figure on copies.",
    ]


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])
