"""The curves of runs as a PNG: one small panel a figure of `log.jsonl`, the runs over one another.

A figure's 95 % interval, NAME_ci, is a band about it; the flow losses by time are one panel, over t.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddit.train.log import LOG_FILE, read_log

PLOT_FILE = "curves.png"
_TITLES = {
    "total": "loss", "image": "image loss", "text": "text loss", "alignment": "alignment loss",
    "grad_norm": "gradient norm", "lr": "learning rate", "pairs_per_second": "pairs / s",
    "mfu": "model FLOP utilisation", "flow_loss": "held out: flow loss", "flow_t": "held out: last flow loss by t",
    "uptake": "text uptake", "velocity_true": "held out: velocity, own caption",
    "velocity_shuffled": "held out: velocity, other caption",
    "caption_nelbo": "held out: caption NELBO, nats", "caption_nelbo_token": "held out: caption NELBO a token",
    "caption_nll": "held out: caption NLL a token", "caption_exact": "held out: captions exact",
    "question_nelbo": "held out: answer NELBO, nats", "question_nelbo_token": "held out: answer NELBO a token",
    "text_nelbo": "held out: text NELBO, nats", "text_nelbo_token": "held out: text NELBO a token",
    "question_nll": "held out: answer NLL a token", "question_exact": "held out: answers exact",
}  # fmt: skip
"""Titles of the known figures, in the order of the panels; unknown ones follow under their own names."""
_NO_CURVES = {"step", "seconds", "final"}
_BY_TIME, _INTERVAL = "flow_t", "_ci"
_COLUMNS, _WINDOW = 4, 25


def plot_runs(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Draws the curves of run folders to `out`, by default `curves.png` in the first; returns the file.

    Raises:
        ValueError: in one line, on a folder without a log or without figures in it, or if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("curves need matplotlib: pip install 'ddit[plot]'") from None
    logs = {label: read_curves(run) for label, run in zip(_labels(runs), runs, strict=True)}
    names = panel_names(logs.values())
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(4 * min(_COLUMNS, len(names)), 2.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, min(_COLUMNS, len(names)), squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        _draw_panel(axis, name, logs)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    if len(runs) > 1:
        handles = [_line(f"C{i}") for i in range(len(logs))]
        figure.legend(
            handles, list(logs), loc="outside upper center", ncols=4, frameon=False, fontsize="small"
        )
    out = runs[0] / PLOT_FILE if out is None else out
    figure.savefig(out, dpi=110, format=out.suffix.removeprefix(".") or "png")
    return out


def read_curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """The figures of a run by name, each as (step, value) in the order of the steps.

    Raises:
        ValueError: if there is no log, or no figure in it.
    """
    path = run / LOG_FILE
    if not path.is_file():
        raise ValueError(f"'{run}' is not a run: it has no {LOG_FILE}")
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, event in enumerate(read_log(path)):
        step = event.get("step", number)
        for name, value in event.items():
            if name not in _NO_CURVES and isinstance(value, int | float):
                curves.setdefault(name, []).append((float(step), float(value)))
    if not curves:
        raise ValueError(f"'{path}' holds no figures yet")
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items()}


def panel_names(logs: Any) -> list[str]:
    """The panels of all runs, known figures first, in their order; all flow losses by time are one."""
    found = {name for curves in logs for name in curves if not name.endswith(_INTERVAL)}
    found = {_BY_TIME if name.startswith(_BY_TIME) else name for name in found}
    return [name for name in _TITLES if name in found] + sorted(found - set(_TITLES))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value with up to `window - 1` before it."""
    return [
        sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - window + 1) : i + 1])
    ]


def _draw_panel(axis: Any, name: str, logs: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    for index, curves in enumerate(logs.values()):
        curves = by_time(curves) if name == _BY_TIME else curves
        if name not in curves:
            continue
        steps, values = zip(*curves[name], strict=True)
        _draw_band(axis, curves[name], dict(curves.get(name + _INTERVAL, [])), f"C{index}")
        window = min(_WINDOW, len(values) // 8)
        if window > 1 and name != "lr":
            axis.plot(steps, values, color=f"C{index}", alpha=0.25, linewidth=0.8)
            values = smooth(values, window)
        axis.plot(steps, values, color=f"C{index}", linewidth=1.4, marker="." if len(values) < 12 else None)
    axis.set_title(_TITLES.get(name, name), fontsize="medium")
    axis.tick_params(labelsize="small")
    axis.grid(alpha=0.25)
    axis.xaxis.get_major_locator().set_params(integer=name != _BY_TIME)


def by_time(curves: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """The last flow loss of each bin over its time, as the curve `flow_t`, and `flow_t_ci`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, points in sorted(curves.items()):
        if name.startswith(_BY_TIME):
            time = float(name.removeprefix(_BY_TIME).removesuffix(_INTERVAL))
            curve = _BY_TIME + (_INTERVAL if name.endswith(_INTERVAL) else "")
            found.setdefault(curve, []).append((time, points[-1][1]))
    return found


def _draw_band(
    axis: Any, points: list[tuple[float, float]], intervals: dict[float, float], color: str
) -> None:
    bounds = [(x, y - intervals[x], y + intervals[x]) for x, y in points if x in intervals]
    if bounds:
        axis.fill_between(*zip(*bounds, strict=True), color=color, alpha=0.2, linewidth=0)


def _line(color: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color)


def _labels(runs: Sequence[Path]) -> list[str]:
    """A short, unique name of each run."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [f"{i + 1}: {run}" for i, run in enumerate(runs)]
