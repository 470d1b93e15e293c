"""A fit from call to model: stopped anywhere it goes on, within its time, and a changed call is refused.

The stages themselves are played here; `test_whole.py` runs them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddit.config.runs import DualRun, RunConfig
from ddit.fit import run as fitting
from ddit.fit.plan import FitOptions, FitPlan, Request
from ddit.fit.planning import REPORT_SHARE, stage_name
from ddit.schema import parse
from ddit.train.stages import FINISHED

STAGES = ["vae", "text", "latents_0", "image", "joint", "final"]
HOURS = 1.0
COSTS = {"joint": 1.0, "final": 0.5}


class Played:
    """Stages that take `seconds` of a clock of their own and leave what the real ones do; one may be cut short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds = 0.0, 100.0
        self.begun: list[str] = []
        self.budgets: dict[str, list[float]] = {}
        self.stop_in: tuple[str, bool] | None = None  # its name, and whether after its work
        self.costs = dict(COSTS)
        self.reported: list[Any] = []
        monkeypatch.setattr(fitting, "run_stage", self.run)
        monkeypatch.setattr(fitting, "_report", lambda *values, **_: self.reported.append(values))
        monkeypatch.setattr(fitting.time, "monotonic", lambda: self.now)

    def run(self, run: RunConfig) -> Path:
        name, out = stage_name(run), Path(run.out)
        self.begun.append(name)
        out.mkdir(parents=True, exist_ok=True)
        seconds = self.seconds
        if isinstance(run, DualRun):
            assert run.max_seconds is not None
            seconds = run.max_seconds
            self.budgets.setdefault(name, []).append(run.max_seconds)
        if self.stop_in == (name, False):
            raise KeyboardInterrupt
        self.now += seconds
        if isinstance(run, DualRun):
            (out / "log.jsonl").write_text(json.dumps({"step": 7, "seconds": seconds}) + "\n")
            for folder in ("export", "export_best") if run.report.keep_best else ("export",):
                (out / folder / "vae").mkdir(parents=True, exist_ok=True)
                (out / folder / "vae" / "of.txt").write_text(f"{name} {folder}")
            if run.report.keep_best:
                (out / "best.json").write_text(
                    json.dumps({"step": 5, "cost": self.costs[name], "figures": {}})
                )
        (out / FINISHED).write_text("{}")
        if self.stop_in == (name, True):
            raise KeyboardInterrupt
        return out


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


def asked(classes: Path, out: Path, **options: Any) -> Request:
    return Request(
        (str(classes),), str(out), options=FitOptions(**{"hours": HOURS, "preset": "xs"} | options)
    )


def run(request: Request) -> list[str]:
    said: list[str] = []
    fitting.run_fit(request, said.append)
    return said


def test_what_is_found_and_planned_is_said_and_the_time_is_kept(
    classes: Path, tmp_path: Path, played: Played
) -> None:
    said = "\n".join(run(asked(classes, tmp_path / "out")))
    assert played.begun == STAGES
    assert "classes      3: blau 16, grün 16, rot 16" in said
    assert "held out     2" in said
    assert "warning: 46 images to train on are few" in said
    assert "plan: model xs, 32 pixels" in said
    plan = parse(FitPlan, json.loads((tmp_path / "out" / "fit.json").read_text())["plan"])
    planned = sum(stage.seconds for stage in plan.stages)
    assert planned == pytest.approx(HOURS * 3600 - plan.report_seconds)
    given = sum(sum(values) for values in played.budgets.values())
    assert 300 + given == pytest.approx(HOURS * 3600 - plan.report_seconds, rel=0.02)
    assert played.budgets["image"][0] / given == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_stopped_in_or_after_a_stage_it_goes_on_from_there(
    classes: Path, tmp_path: Path, played: Played, stage: str, is_after: bool
) -> None:
    request = asked(classes, tmp_path / "out")
    played.stop_in = stage, is_after
    with pytest.raises(KeyboardInterrupt):
        run(request)
    played.stop_in = None
    run(request)
    place = STAGES.index(stage)
    assert played.begun == [*STAGES[: place + 1], *STAGES[place:]]
    assert all(len(set(values)) == 1 for values in played.budgets.values())
    assert (tmp_path / "out" / "model" / "vae" / "of.txt").read_text() == "final export_best"
    assert len(played.reported) == 1


def test_a_finished_fit_says_so(classes: Path, tmp_path: Path, played: Played) -> None:
    request = asked(classes, tmp_path / "out")
    run(request)
    assert run(request)[0].startswith("finished before")
    assert played.begun == STAGES


def test_the_best_average_of_all_is_taken(classes: Path, tmp_path: Path, played: Played) -> None:
    played.costs = {"joint": 0.3, "final": 0.5}
    run(asked(classes, tmp_path / "out"))
    assert (tmp_path / "out" / "model" / "vae" / "of.txt").read_text() == "joint export_best"
    outcome = json.loads((tmp_path / "out" / "progress.json").read_text())["outcome"]
    assert (outcome["chosen"], outcome["chosen_step"], outcome["chosen_cost"]) == ("joint", 5, 0.3)


def test_slow_stages_leave_the_others_less(classes: Path, tmp_path: Path, played: Played) -> None:
    played.seconds = 900.0
    said = run(asked(classes, tmp_path / "out"))
    assert sum("are left, since what came before took longer" in line for line in said) == 3
    given = sum(sum(values) for values in played.budgets.values())
    assert 2700 + given == pytest.approx(HOURS * 3600 * (1 - REPORT_SHARE), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hours": 2.0},
            r"holds a fit with --hours 1\.0, not 2\.0: give the same options .*, or another --out",
        ),
        ({"size": 64}, r"holds a fit with --size unset, not 64"),
        ({"held_out": ("0.2",)}, r"holds a fit with --held-out unset, not 0\.2"),
    ],
)
def test_a_changed_call_is_one_clear_line(
    classes: Path, tmp_path: Path, played: Played, change: dict[str, Any], message: str
) -> None:
    request = asked(classes, tmp_path / "out")
    run(request)
    with pytest.raises(ValueError, match=message) as caught:
        run(asked(classes, tmp_path / "out", **change))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"with SOURCE .*, not other"):
        run(replace(request, sources=("other",)))
    with pytest.raises(ValueError, match="with --from unset, not mini"):
        run(replace(request, base="mini"))


def test_a_folder_of_something_else_is_left_alone(classes: Path, tmp_path: Path, played: Played) -> None:
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(ValueError, match="exists and holds no fit: choose another --out"):
        run(asked(classes, tmp_path))
    with pytest.raises(ValueError, match="exists and holds no fit"):
        run(asked(classes, tmp_path / "letter.txt"))
    assert not played.begun
