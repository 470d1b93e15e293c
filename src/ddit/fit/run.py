"""A fit from its call to its model: reads the data, plans, runs the stages within the time, goes on where it was."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from ddit.config.runs import DualRun, RunConfig
from ddit.files import link_file, read_json, write_atomically, write_folder_atomically
from ddit.fit.plan import Findings, FitOptions, FitPlan, Outcome, Request
from ddit.fit.planning import PASSES, duals, make_plan, share_time, stage_name
from ddit.fit.sources import divide, find_sources, read_sources
from ddit.recipes.small import expected_rate
from ddit.schema import override, parse, takes, to_data
from ddit.train.familiarity import add_familiarity
from ddit.train.log import LOG_FILE, read_log
from ddit.train.stages import FINISHED, run_stage
from ddit.train.watch import BEST_FILE, BEST_FOLDER

REQUEST_FILE, PROGRESS_FILE = "fit.json", "progress.json"
LEAST_SECONDS = 1.0
"""Of a transformer's run, however little time is left."""
Say = Callable[[str], None]


@takes(FitOptions)
def fit(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    say: Say | None = None,
    **options: Any,
) -> Path:
    """Trains a model on images and texts of your own; returns its folder, `out/model`, which `Pipeline` loads.

    The same call on the same `out` goes on where it was stopped, and is done at once when it was finished.

    Args:
        sources: paths as `ddit data check` takes them: a folder of images in class folders or with text files beside
            them, a JSON, tar or parquet file, ...
        out: folder of the model, its card and the runs.
        base: a model to tune, `mini`, a folder or a hub id; None: from nothing.
        say: is told what was found and what is done, line by line; default: stderr.

    Raises:
        ValueError: in one line, for data or options that do not fit, or an `out` that holds another fit.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    names = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    request = Request(
        tuple(os.fspath(name) for name in names), os.fspath(out), base, override(FitOptions(), plain)
    )
    return run_fit(request, say)


def run_fit(request: Request, say: Say) -> Path:
    """`fit` of a request."""
    if not request.sources:
        raise ValueError("there is no source to train on")
    _use_threads()
    state = _State(Path(request.out))
    plan, findings = state.read(request)
    if plan is None or findings is None:
        plan, findings = _plan(request, state, say)
    if state.outcome is not None:
        say(f"finished before: {plan.model_folder} (another --out, or a new folder, starts anew)")
        return plan.model_folder
    for line in describe(plan, findings, datetime.now() + timedelta(seconds=_left(plan, state))):
        say(line)
    for number, run in enumerate(plan.runs):
        _run_stage(plan, number, run, state, say)
    outcome = _choose(plan, state)
    _link_model(plan, outcome)
    _report(plan, findings, outcome, say, set_guidance=True)
    state.save(outcome=to_data(outcome))
    say(f"done: {plan.model_folder}")
    return plan.model_folder


def _use_threads() -> None:
    """As many as are quickest now, unless OMP_NUM_THREADS says otherwise: on a busy machine threads that wait for each
    other cost more than they bring."""
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    choices = sorted({most, -(-most // 2), 1})
    torch.set_num_threads(min(choices, key=_time_of_threads))


def _time_of_threads(count: int) -> float:
    """Seconds of a little work like training's, on so many threads."""
    torch.set_num_threads(count)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    rows = torch.ones(16, 80, 256)
    layer(rows)  # threads start
    start = time.perf_counter()
    layer(rows)
    layer(rows)
    return time.perf_counter() - start


# --- state ---


class _State:
    """What a folder holds of a fit: the request with its plan (`fit.json`), and how far it is (`progress.json`)."""

    def __init__(self, out: Path) -> None:
        self.out = out
        path = out / PROGRESS_FILE
        self._progress: dict[str, Any] = read_json(path) if path.is_file() else {}

    def read(self, request: Request) -> tuple[FitPlan | None, Findings | None]:
        """The plan and findings of this request, if it was made before.

        Raises:
            ValueError: in one line, if the folder holds the fit of another request, or something else.
        """
        path = self.out / REQUEST_FILE
        if not path.is_file():
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise ValueError(f"'{self.out}' exists and holds no fit: choose another --out")
            return None, None
        found = read_json(path)
        before, now = found["request"], to_data(request)
        flat = [{**values, **values["options"], "options": None} for values in (before, now)]
        for key in flat[1]:
            if key != "out" and flat[0].get(key) != flat[1][key]:
                flag = {"base": "--from", "sources": "SOURCE"}.get(key, f"--{key.replace('_', '-')}")
                raise ValueError(
                    f"'{self.out}' holds a fit with {flag} {_shown(flat[0].get(key))}, not {_shown(flat[1][key])}: "
                    "give the same options to go on with it, or another --out"
                )
        if "plan" not in found:  # stopped before it was made
            return None, None
        return parse(FitPlan, found["plan"]), parse(Findings, found["findings"])

    def write(self, request: Request, **parts: FitPlan | Findings) -> None:
        """Writes the request, and what is made of it: `plan` and `findings`."""
        self.out.mkdir(parents=True, exist_ok=True)
        values = {"request": to_data(request), **{name: to_data(part) for name, part in parts.items()}}
        with write_atomically(self.out / REQUEST_FILE) as part:
            part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def save(self, **values: Any) -> None:
        """Adds to the progress: of dictionaries, their entries."""
        for key, value in values.items():
            known = self._progress.get(key)
            self._progress[key] = {**known, **value} if isinstance(known, dict) else value
        with write_atomically(self.out / PROGRESS_FILE) as part:
            part.write_text(json.dumps(self._progress, indent=1) + "\n", encoding="utf-8")

    @property
    def seconds(self) -> dict[str, float]:
        """What each finished stage has taken, and `data`, reading and planning."""
        return self._progress.get("seconds", {})

    @property
    def budgets(self) -> dict[str, float]:
        """The time of each of the transformer's runs that was begun."""
        return self._progress.get("budgets", {})

    @property
    def outcome(self) -> Outcome | None:
        found = self._progress.get("outcome")
        return None if found is None else parse(Outcome, found)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "unset"
    return "unset" if value is None else str(value)


def _plan(request: Request, state: _State, say: Say) -> tuple[FitPlan, Findings]:
    start = time.monotonic()
    trained, judged, num_images, num_held_out = divide(find_sources(request), request)
    findings = read_sources(trained, judged, num_images, num_held_out)
    state.write(request)  # before a base model is written beside it
    plan, findings = make_plan(request, trained, judged, findings)
    state.write(request, plan=plan, findings=findings)
    state.save(seconds={"data": time.monotonic() - start})
    return plan, findings


# --- stages ---


def _left(plan: FitPlan, state: _State) -> float:
    """Seconds of the whole that are not used yet."""
    return max(plan.hours * 3600 - sum(state.seconds.values()), 0.0)


def _run_stage(plan: FitPlan, number: int, run: RunConfig, state: _State, say: Say) -> None:
    name = stage_name(run)
    out = Path(run.out)
    if name in state.seconds and (out / FINISHED).is_file():
        return
    stage = plan.stages[number]
    if isinstance(run, DualRun):
        run = replace(run, max_seconds=_budget(plan, run, state))
        if run.max_seconds is not None and run.max_seconds < stage.seconds / 2:
            say(
                f"warning: of {_duration(stage.seconds)} planned for the next stage {_duration(run.max_seconds)} are "
                "left, since what came before took longer: raise --hours, or free the machine"
            )
    took = f", about {_duration(run.max_seconds)}" if isinstance(run, DualRun) and run.max_seconds else ""
    start = time.monotonic()
    _use_threads()
    say(f"{number + 1} of {len(plan.runs)}: {stage.what}{took}")
    run_stage(run)
    seconds = time.monotonic() - start
    if isinstance(run, DualRun):  # of an earlier start, too
        seconds = max(seconds, _logged_seconds(out))
    state.save(seconds={name: seconds})


def _budget(plan: FitPlan, run: DualRun, state: _State) -> float:
    """Seconds of a run of the transformer: its share of what is left when it begins."""
    name = stage_name(run)
    if name not in state.budgets:
        share = share_time(plan.runs, state.seconds)[name]
        seconds = share * (_left(plan, state) - plan.report_seconds) - _ending(plan, run)
        state.save(budgets={name: max(seconds, LEAST_SECONDS)})
    return state.budgets[name]


def _ending(plan: FitPlan, run: DualRun) -> float:
    """Seconds that the last figures and samples of a run will take."""
    report = run.report
    passes = report.num_held_out * PASSES + report.num_grid * (2 * report.grid_sampling.num_steps + 16)
    return passes / 3 / expected_rate(run, plan.flops) + 1.0


def _logged_seconds(out: Path) -> float:
    events = read_log(out / LOG_FILE)
    return max((float(event.get("seconds", 0.0)) for event in events), default=0.0)


# --- the end ---


def _choose(plan: FitPlan, state: _State) -> Outcome:
    """The average with the least held-out cost, of the runs that have one."""
    best: dict[str, Any] = {}
    runs = duals(plan.runs)
    for run in runs:
        path = Path(run.out) / BEST_FILE
        if path.is_file() and (Path(run.out) / BEST_FOLDER).is_dir():
            found = read_json(path)
            if not best or found["cost"] <= best["cost"]:
                best = {**found, "run": stage_name(run)}
    steps = {stage_name(run): _last_step(Path(run.out)) for run in runs}
    last = stage_name(runs[-1])
    return Outcome(
        seconds=state.seconds,
        steps=steps,
        chosen=best.get("run", last),
        chosen_step=best.get("step", steps[last]),
        chosen_cost=best.get("cost"),
    )


def _last_step(out: Path) -> int:
    return max((int(event.get("step", 0)) for event in read_log(out / LOG_FILE)), default=0)


def _link_model(plan: FitPlan, outcome: Outcome) -> None:
    """The chosen average as the model's folder, of hard links."""
    run = next(run for run in duals(plan.runs) if stage_name(run) == outcome.chosen)
    best = Path(run.out) / BEST_FOLDER
    source = best if outcome.chosen_cost is not None else Path(run.out) / "export"
    with write_folder_atomically(plan.model_folder) as part:
        for path in sorted(source.rglob("*")):
            target = part / path.relative_to(source)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                link_file(path, target)
    add_familiarity(plan.model_folder, run)


def redo_report(out: str | os.PathLike[str], say: Say, *, minutes: float | None = None) -> Path:
    """Measures the model of a finished fit again, and writes its model card and figures; returns the model's folder.

    Args:
        minutes: to take for it; None: as planned.

    Raises:
        ValueError: in one line, if the folder holds no fit, or one that is not finished.
    """
    state = _State(Path(out))
    if state.outcome is None:
        raise ValueError(f"'{out}' holds no finished fit: give the --out of `ddit fit`, which finishes one")
    found = read_json(state.out / REQUEST_FILE)
    plan = replace(parse(FitPlan, found["plan"]), out=os.fspath(out))
    if minutes is not None:
        plan = replace(plan, report_seconds=60 * minutes)
    _use_threads()
    _report(plan, parse(Findings, found["findings"]), state.outcome, say)
    return plan.model_folder


def _report(
    plan: FitPlan, findings: Findings, outcome: Outcome, say: Say, *, set_guidance: bool = False
) -> None:
    from ddit.fit.report import write_report  # which draws figures

    say(f"figures, about {_duration(plan.report_seconds)}")
    report = write_report(
        Path(plan.out), plan.model_folder, plan, findings, outcome, set_guidance=set_guidance
    )
    for line in report.lines():
        say(f"  {line}")


# --- what people are told ---


def describe(plan: FitPlan, findings: Findings, end: datetime) -> list[str]:
    """What was found and what is planned, in lines."""
    lines = []
    for source in (*findings.sources, *findings.held_out):
        lines += [f"{source.name} ({source.role})", *(f"  {line}" for line in source.lines)]
    lines.append(
        f"plan: model {plan.preset}, {plan.image_size} pixels, texts of {findings.text_length} tokens, "
        f"{plan.num_views} views of each image, {_duration(plan.hours * 3600)} on {plan.device}, "
        f"until about {end:%H:%M}"
    )
    for number, stage in enumerate(plan.stages, 1):
        steps = f", about {stage.steps:,} steps" if stage.steps else ""
        lines.append(f"  {number}  {stage.what}: about {_duration(stage.seconds)}{steps}")
    return [*lines, *(f"warning: {warning}" for warning in plan.warnings)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
