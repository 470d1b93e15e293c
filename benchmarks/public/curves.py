"""Learning curves of fits: `python -m benchmarks.public.curves easy-VQA=OUT/fit CIFAR-10=OUT2/fit --out curves.png`.

Of each fit, what its runs measured on held-out images while they trained: the share of answers that are right, and the
flow loss, over the minutes that the transformer had been trained. A name that is given twice has two seeds. Needs
matplotlib (`ddit[plot]`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddit.train.log import LOG_FILE, read_log

STAGES = ("image", "joint", "final")
FIGURES = {"question_exact": "held-out answers that are right", "flow_loss": "held-out flow loss"}


class Point(NamedTuple):
    """minutes: of training the transformer, in all stages so far."""

    minutes: float
    value: float


def read_fit(folder: Path) -> dict[str, list[Point]]:
    """The points of each figure of a fit; ValueError if it has no run of the transformer."""
    found: dict[str, list[Point]] = {name: [] for name in FIGURES}
    before = 0.0
    for stage in STAGES:
        for log in sorted((folder / "runs").glob(f"*-{stage}/{LOG_FILE}")):
            events = list(read_log(log))
            for event in events:
                for name in FIGURES:
                    if name in event:
                        found[name].append(Point((before + event["seconds"]) / 60, event[name]))
            before += max((event["seconds"] for event in events if "seconds" in event), default=0.0)
    if not before:
        raise ValueError(f"'{folder}' has no log of a transformer's run: give the folder that ddit fit wrote")
    return found


def plot(fits: Sequence[tuple[str, dict[str, list[Point]]]], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name for name, _ in fits))
    for axis, (key, label) in zip(figure.subplots(1, 2), FIGURES.items(), strict=True):
        for name, found in fits:
            if points := found[key]:
                first = name not in axis.get_legend_handles_labels()[1]
                axis.plot(
                    *zip(*points, strict=True), f"C{names.index(name)}.-", label=name if first else None
                )
        axis.set(xlabel="minutes of training", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False)
    figure.savefig(path, dpi=100)


def parse_fits(named: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for item in named:
        name, _, folder = item.partition("=")
        if not folder:
            raise ValueError(f"'{item}' must be NAME=FOLDER")
        yield name, Path(folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("fits", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args(argv)
    try:
        fits = [(name, read_fit(folder)) for name, folder in parse_fits(args.fits)]
    except ValueError as error:
        parser.error(str(error))
    plot(fits, args.out)


if __name__ == "__main__":
    main()
