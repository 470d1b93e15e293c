"""Runs with a budget of time: the schedule follows it, it ends the run, and a resumed run has what is left of it."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ddit.config.runs import DualRun, ObjectiveConfig, OptimizerConfig
from ddit.files import read_json
from ddit.train.checkpoint import find_newest
from ddit.train.heldout import held_out_cost
from ddit.train.log import read_log
from ddit.train.loop import train
from ddit.train.optim import lr_factor

LINEAR = OptimizerConfig(warmup_steps=10, schedule="linear", decay_fraction=0.5)


def test_the_schedule_follows_the_larger_share() -> None:
    assert lr_factor(50, 1000, LINEAR) == 1.0
    assert lr_factor(50, 1000, LINEAR, time_share=0.4) == 1.0
    assert lr_factor(50, 1000, LINEAR, time_share=0.75) == pytest.approx(0.5)
    assert lr_factor(750, 1000, LINEAR, time_share=0.1) == pytest.approx(0.5)
    assert lr_factor(50, 1000, LINEAR, time_share=1.0) == pytest.approx(0.0)


def test_the_warm_up_counts_steps_alone() -> None:
    assert lr_factor(1, 1000, LINEAR, time_share=0.4) == pytest.approx(0.2)
    assert lr_factor(1, 1000, LINEAR, time_share=0.95) == pytest.approx(0.1)


@pytest.fixture
def timed(joint: DualRun) -> DualRun:
    optimizer = replace(joint.optimizer, schedule="linear", decay_fraction=1.0, warmup_steps=0)
    report = replace(joint.report, num_held_out=0, grid_every=10**6, checkpoint_minutes=0.0)
    return replace(joint, max_steps=10**6, max_seconds=2.0, optimizer=optimizer, report=report)


def test_a_run_ends_with_its_time_and_a_rate_of_nearly_0(timed: DualRun) -> None:
    start = time.monotonic()
    train(timed)
    assert time.monotonic() - start < 20
    rates = [event["lr"] for event in read_log(Path(timed.out) / "log.jsonl") if "lr" in event]
    assert all(before >= after for before, after in pairwise(rates))
    assert rates[-1] < 0.5 * timed.optimizer.lr
    assert (Path(timed.out) / "export").is_dir()


def test_a_resumed_run_has_the_rest_of_its_time(timed: DualRun) -> None:
    train(replace(timed, max_seconds=1000.0), stop_at=2)
    checkpoint = find_newest(Path(timed.out))
    assert checkpoint is not None
    used = checkpoint.description["seconds"]
    assert used > 0
    train(replace(timed, max_seconds=used))  # none is left
    ended = find_newest(Path(timed.out))
    assert ended is not None
    assert ended.step <= 3


def test_the_best_average_is_kept(joint: DualRun) -> None:
    report = replace(joint.report, evaluate_every=1, keep_best=True, grid_every=10**6)
    train(replace(joint, report=report))
    best = read_json(Path(joint.out) / "best.json")
    losses = {}
    for event in read_log(Path(joint.out) / "log.jsonl"):
        loss = held_out_cost(event, joint.objective)
        if loss is not None:
            losses[event["step"]] = loss
    assert len(losses) == joint.max_steps
    assert losses[best["step"]] == pytest.approx(min(losses.values()), rel=1e-4)
    assert (Path(joint.out) / "export_best" / "model_index.json").is_file()


def test_the_held_out_cost_is_weighted_as_training_is() -> None:
    objective = ObjectiveConfig(i2t_fraction=0.25, lambda_text=2.0)
    figures = {"flow_loss": 1.0, "question_nelbo_token": 3.0, "caption_nelbo_token": 1.0, "question_nll": 9.0}
    assert held_out_cost(figures, objective) == pytest.approx(0.75 * 1.0 + 0.25 * 2.0 * 2.0)
    assert held_out_cost({"question_nelbo_token": 3.0}, objective) == pytest.approx(1.5)
    assert held_out_cost({"total": 1.0}, objective) is None


def test_answers_cost_their_errors_before_their_confidence() -> None:
    objective = ObjectiveConfig(i2t_fraction=1.0, lambda_text=1.0)
    fewer = {"question_exact": 0.99, "question_nelbo_token": 0.03, "question_nelbo_token_ci": 9.0}
    surer = {"question_exact": 0.98, "question_nelbo_token": 0.01}
    costs = [held_out_cost(figures, objective) for figures in (fewer, surer)]
    assert costs == pytest.approx([0.013, 0.021])
