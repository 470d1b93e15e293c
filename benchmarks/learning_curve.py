"""A chain's learning curve on the small world: `python benchmarks/learning_curve.py`.

    python benchmarks/learning_curve.py "image=runs/mini-image" "stage 1=runs/mini-stage1" ... --scores runs/curve

Held-out losses of the runs' logs over the pairs seen, one run after the other; and the benchmarks' figures at the end
of each, from `ddit eval geneval gqa caption --model RUN/export --out SCORES/NAME`. Writes a plot to --out and prints a
table. Needs matplotlib (`ddit[plot]`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from ddit.train.log import LOG_FILE, read_log

LOSSES = {
    "velocity_true": "velocity loss at t = 0.85",
    "question_nll": "answers, NLL a token, one step",
}
SCORES = {
    ("geneval", "overall"): "GenEval, mean of six",
    ("geneval", "two_object"): "GenEval, two objects",
    ("gqa", "accuracy"): "GQA, accuracy",
    ("caption", "every attribute"): "captions, all right",
}


class Stage(NamedTuple):
    """A run of the chain.

    Attributes:
        start, end: thousands of pairs that the chain had seen.
        hours: of this run.
        log: of held-out figures, by step.
        scores: the benchmarks' figures at the end.
    """

    name: str
    start: float
    end: float
    hours: float
    log: list[dict[str, Any]]
    scores: dict[tuple[str, str], float]


def read_stages(named: list[str], folder: Path | None, before: float) -> list[Stage]:
    """The runs `NAME=FOLDER` in their order; `before`: thousands of pairs seen before the first."""
    stages: list[Stage] = []
    for item in named:
        name, _, run = item.partition("=")
        events = list(read_log(Path(run) / LOG_FILE))
        batch = json.loads((Path(run) / "config.json").read_text())["global_batch_size"]
        start = stages[-1].end if stages else before
        log = [
            {**event, "pairs": start + event["step"] * batch / 1000}
            for event in events
            if "velocity_true" in event
        ]
        last = max(event["step"] for event in events)
        hours = max(event["seconds"] for event in events) / 3600
        stages.append(Stage(name, start, start + last * batch / 1000, hours, log, read_scores(name, folder)))
    return stages


def read_scores(name: str, folder: Path | None) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    if folder is None:
        return found
    for task in dict.fromkeys(task for task, _ in SCORES):
        path = folder / name.replace(" ", "") / task / "summary.json"
        if path.is_file():
            figures = json.loads(path.read_text())["figures"]
            found |= {(task, figure["name"]): figure["value"] for figure in figures}
    return {key: found[key] for key in SCORES if key in found}


def plot(stages: list[Stage], out: Path) -> None:
    """Losses and scores over thousands of pairs; a line where a stage ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    for index, (name, title) in enumerate(LOSSES.items()):
        axis = losses if index == 0 else losses.twinx()
        points = [(e["pairs"], e[name]) for stage in stages for e in stage.log if name in e]
        axis.plot(*zip(*points, strict=True), f"C{index}.-")
        axis.set_ylabel(title, color=f"C{index}")
    for index, (key, title) in enumerate(SCORES.items()):
        points = [(stage.end, stage.scores[key]) for stage in stages if key in stage.scores]
        if points:
            scores.plot(*zip(*points, strict=True), f"C{index}o-", label=title)
    scores.set(ylim=(0, 1.02))
    scores.legend(frameon=False, fontsize="small", loc="lower right")
    for axis in (losses, scores):
        axis.set_xlabel("thousands of pairs")
        for stage in stages:
            axis.axvline(stage.end, color="0.8", linewidth=0.8, zorder=0)
            axis.annotate(
                stage.name, (stage.end, 1), xycoords=("data", "axes fraction"), rotation=90,
                ha="right", va="top", fontsize="x-small", color="0.5",
            )  # fmt: skip
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--scores", type=Path, help="the benchmarks' figures, a folder a run, named as it is")
    parser.add_argument(
        "--before", type=float, nargs=2, default=(0, 0), metavar=("PAIRS", "HOURS"),
        help="thousands of pairs, and hours, before the first run",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs/images/learning_curve.png"))
    args = parser.parse_args()
    stages = read_stages(args.runs, args.scores, args.before[0])
    plot(stages, args.out)
    titles = list(SCORES.values())
    print(
        f"| after | thousands of pairs | hours | {' | '.join(titles)} |\n|---|---|---|{'---|' * len(titles)}"
    )
    hours = args.before[1]
    for stage in stages:
        hours += stage.hours
        values = [f"{stage.scores[key]:.3f}" if key in stage.scores else "" for key in SCORES]
        print(f"| {stage.name} | {stage.end:.0f} | {hours:.1f} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
