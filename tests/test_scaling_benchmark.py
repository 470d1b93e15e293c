"""The runs of benchmarks/scaling.py keep to their budgets, and its law is found again in points that follow one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.joint_training import plan
from benchmarks.scaling import SIZES, Law, Point, best_size, fit_law, make_runs, num_params, write
from ddit.recipes.costs import pair_flops

BUDGETS = (1e12, 1e13, 1e14)


def test_runs_differ_in_size_and_steps_alone_and_spend_their_budget(tmp_path: Path) -> None:
    joint = plan(tmp_path, 100)[2]
    runs = list(make_runs(joint, BUDGETS, 3))
    assert len(runs) == len(SIZES) * (len(BUDGETS) + 1)
    assert len({run.out for run, *_ in runs}) == len(runs)
    counts = []
    for run, size, budget, reads in runs:
        spent = run.max_steps * run.global_batch_size * pair_flops(run)
        assert run.max_steps == 10 or spent == pytest.approx(budget if reads else budget / 2, rel=0.35)
        assert (run.model.hidden_size, run.model.depth, run.init, run.seed) == (*size[:2], None, 3)
        assert run.objective.i2t_fraction == (0.5 if reads else 0)
        if reads and budget == BUDGETS[0]:
            counts.append(num_params(run) / 1e6)
    assert counts == [pytest.approx(value, rel=0.2) for value in (2.6, 5.9, 14.6, 42)]
    for size in SIZES:
        joint_run, alone = (run for run, own, budget, _ in runs if (own, budget) == (size, BUDGETS[1]))
        assert alone.max_steps * 2 == pytest.approx(joint_run.max_steps, abs=2)


def test_the_law_is_found_again() -> None:
    true = Law(0.5, 0.8, 0.4, 0.6, 0.5, 0.0, 0.0)
    points = [(n, d, true.loss(n, d)) for n in (2e6, 6e6, 15e6, 40e6) for d in (2e4, 1e5, 6e5)]
    found = fit_law(points)
    assert found[:5] == pytest.approx(true[:5], rel=0.05)
    assert found.error < 1e-3
    assert found.left_out < 1e-2
    sizes = [best_size(found, budget, lambda n: 600 * n) for budget in (1e13, 1e15, 1e17)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_page_has_every_run(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    true = Law(0.5, 0.8, 0.4, 0.6, 0.5, 0.0, 0.0)
    points = []
    for n, size in zip((2e6, 6e6, 15e6, 40e6), SIZES, strict=True):
        for budget in (1e13, 1e14, 1e15):
            pairs = int(budget / (600 * n))
            losses = {"flow loss": true.loss(n, pairs), "answers, bound a token": 2 * true.loss(n, pairs)}
            scores = {"drawn rightly": 0.4, "answered rightly": 0.6}
            points.append(Point(size, int(n), budget, pairs, 0, True, losses | scores))
        points.append(Point(size, int(n), 1e14, 1000, 0, False, {"flow loss": 0.1, "drawn rightly": 0.5}))
    write(points, (1e13, 1e14, 1e15), tmp_path)
    page = (tmp_path / "scaling.md").read_text()
    assert page.count("| 0.400 | 0.600 |") == 12
    assert page.count("| drawn rightly | 0.400 | 0.500 | -0.100 |") == 4
    assert (tmp_path / "images" / "scaling.png").stat().st_size > 1000
