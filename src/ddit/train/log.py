"""The log of a run: a progress bar on stderr and one JSON object a line in `log.jsonl`, always; TensorBoard where it is
installed; Weights & Biases and trackio where they are configured.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

from ddit.config.runs import ReportConfig
from ddit.files import write_atomically

LOG_FILE, TENSORBOARD_FOLDER = "log.jsonl", "tensorboard"
TRACKERS = ("wandb", "trackio")
"""Libraries that log a run to a project, that of `report.wandb_project` and so on; `wandb_id` is the run's identity."""
_SHOWN = {"total": "loss", "image": "image", "text": "text", "pairs_per_second": "pairs/s", "mfu": "mfu"}


class Sink(Protocol):
    """Another place for the figures than the log file."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """Appends events to `out/log.jsonl` and shows the latest figures beside a progress bar.

    A run that is resumed after `start` steps first drops the lines of later steps, which will be written again.

    Args:
        total: units of the whole run, None if its time is what ends it; `unit` names them.
        report: switches TensorBoard, Weights & Biases and trackio on; None: none of them.
        flops_per_unit, peak_flops: work of one of the units that `pairs_per_second` counts, and what all devices
            together can do a second; with both, events with that rate get the model FLOP utilisation, `mfu`.
        config: shown by Weights & Biases and trackio.

    Raises:
        ValueError: if one of these is configured and not installed.
    """

    def __init__(
        self,
        out: Path,
        total: int | None,
        *,
        unit: str,
        start: int = 0,
        report: ReportConfig | None = None,
        flops_per_unit: float | None = None,
        peak_flops: float | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._seconds_before = drop_later_lines(out / LOG_FILE, start)
        self._share_a_unit = flops_per_unit / peak_flops if flops_per_unit and peak_flops else None
        self._sinks = [] if report is None else _open_sinks(out, report, start, config or {})
        self._file = (out / LOG_FILE).open("a", encoding="utf-8")
        self._bar_name = out.name
        # Where stderr is no terminal, a line an event takes the bar's place.
        self._bar = tqdm(
            total=total,
            initial=start,
            unit=unit,
            mininterval=0.5,
            desc=out.name,
            file=sys.stderr,
            disable=None,
        )
        self._start = time.monotonic()
        self._knows_any = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def advance(self) -> None:
        self._bar.update()

    def event(self, **values: float) -> None:
        """Writes one line; `seconds` is the time that the run has taken, in all of its starts together."""
        rate = values.get("pairs_per_second")
        if self._share_a_unit is not None and rate is not None:
            values["mfu"] = rate * self._share_a_unit
        seconds = round(self._seconds_before + time.monotonic() - self._start, 2)
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps({**rounded, "seconds": seconds}) + "\n")
        self._file.flush()
        figures = {key: value for key, value in values.items() if key != "step"}
        for sink in self._sinks:
            sink.write(figures, int(values.get("step", self._bar.n or 0)))
        known = {_SHOWN[key]: value for key, value in figures.items() if key in _SHOWN}
        if known or not self._knows_any:  # figures in between, such as held-out ones, leave the bar as it is
            shown = {key: f"{v:.1%}" if key == "mfu" else f"{v:.4g}" for key, v in (known or figures).items()}
            first = dict(list(shown.items())[:5])
            self._bar.set_postfix(first, refresh=False)
            if self._bar.disable:
                step, total = values.get("step", "?"), self._bar.total or "?"
                line = ", ".join(f"{key}={value}" for key, value in first.items())
                print(f"{self._bar_name}: {step}/{total} {line}", file=sys.stderr, flush=True)
            self._knows_any |= bool(known)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log file; a last line that a kill left incomplete is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def drop_later_lines(path: Path, step: int) -> float:
    """Rewrites a log atomically without the events of steps after `step`; returns its last `seconds`."""
    if not path.is_file():
        return 0.0
    events = [event for event in read_log(path) if event.get("step", 0) <= step]
    if step == 0:
        events = []
    with write_atomically(path) as part:
        part.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return max((float(event.get("seconds", 0.0)) for event in events), default=0.0)


def _open_sinks(out: Path, report: ReportConfig, start: int, config: Mapping[str, Any]) -> list[Sink]:
    projects = {library: getattr(report, f"{library}_project") for library in TRACKERS}
    sinks: list[Sink] = [
        _ProjectSink(library, out, project, config)
        for library, project in projects.items()
        if project is not None
    ]
    if report.tensorboard:
        try:
            sinks.append(_TensorBoardSink(out / TENSORBOARD_FOLDER, start))
        except ImportError:
            print("no TensorBoard files: pip install 'ddit[train]' for them", file=sys.stderr)
    return sinks


class _TensorBoardSink:
    """Event files; TensorBoard hides what an earlier start wrote for steps after `start`."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _ProjectSink:
    """A run in a project of Weights & Biases or trackio, the same one however often it is started."""

    def __init__(self, library: str, out: Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            tracker = importlib.import_module(library)
        except ImportError:
            raise ValueError(
                f"report.{library}_project is {project!r}: pip install {library}, or leave it out"
            ) from None
        file = out / f"{library}_id"
        if not file.is_file():
            file.write_text(os.urandom(4).hex())
        identity = file.read_text().strip()
        own: dict[str, Any] = {"name": out.name, "dir": str(out), "id": identity}
        if library == "trackio":  # knows runs by their names
            own = {"name": f"{out.name}-{identity}", "embed": False}
        with contextlib.redirect_stdout(sys.stderr):  # both talk
            self._run = tracker.init(project=project, resume="allow", config=dict(config), **own)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()
