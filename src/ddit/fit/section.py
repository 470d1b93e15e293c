"""A part of a fit's report: figures under a heading, and what must be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddit.eval.items import Figure


@dataclass(frozen=True)
class Section:
    """Figures of one kind, the headline first.

    Attributes:
        key: in `report.json`.
        lines: how they were made, a sentence each; or why there are none.
    """

    key: str
    title: str
    figures: tuple[Figure, ...] = ()
    lines: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        figures = [figure.to_json() for figure in self.figures]
        return {"title": self.title, "figures": figures, "lines": list(self.lines)}

    def table(self) -> list[str]:
        """The figures in Markdown."""
        if not self.figures:
            return []
        rows = ["| figure | value | 95 % interval | n | beside it |", "|---|---|---|---|---|"]
        for figure in self.figures:
            digits = 3 if figure.value < 10 else 1
            value, *limits = (f"{value:.{digits}f}" for value in (figure.value, *(figure.interval or ())))
            beside = ", ".join(f"{name} {value:.{digits}f}" for name, value in figure.baselines.items())
            cells = (_cell(figure.name), value, " to ".join(limits), f"{figure.num:,}", _cell(beside))
            rows.append(f"| {' | '.join(cells)} |")
        return rows


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
