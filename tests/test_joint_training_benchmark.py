"""The arms of benchmarks/joint_training.py differ in what they are named after, and in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.joint_training import ARMS, ROWS, Arm, make_runs, plan
from ddit.config.runs import DualRun

STEPS = 50


def runs_of(arm: Arm, seed: int, root: Path) -> list[DualRun]:
    _, image, joint = plan(root, STEPS)
    return list(make_runs(arm, seed, root, image, joint))


def num_drawn(runs: list[DualRun]) -> float:
    return sum(run.max_steps * run.global_batch_size * (1 - run.objective.i2t_fraction) for run in runs)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_draws_as_many_images_and_lets_its_rate_fall_over_as_many_steps(
    arm: Arm, tmp_path: Path
) -> None:
    runs = runs_of(arm, 1, tmp_path)
    last = runs[-1]
    assert num_drawn(runs) == 2 * STEPS * ROWS
    assert last.max_steps * last.optimizer.decay_fraction == pytest.approx(0.4 * STEPS)
    assert last.objective.alignment_weight == 0
    assert last.objective.i2t_fraction == (0.5 if arm.reads else 0.0)
    assert not arm.reads or last.objective.lambda_text == arm.weight
    assert (last.init is None) == (arm.start == "nothing")


def test_arms_share_what_they_start_from_and_seeds_share_nothing(tmp_path: Path) -> None:
    first = [runs_of(arm, seed, tmp_path)[0] for arm in ARMS[:2] for seed in (0, 1)]
    assert first[0] == first[2] != first[1] == first[3]
    outs = [runs_of(arm, seed, tmp_path)[-1].out for arm in ARMS for seed in (0, 1)]
    assert len(set(outs)) == len(outs)
