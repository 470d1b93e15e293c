"""Distillation across wordings: its target, who learns what, and steps that depend on neither ranks nor resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stepping import make_trainer, take_steps
from torch import Tensor

from ddit.config.runs import DistillationConfig, DualRun, LoraConfig
from ddit.devices import Ranks
from ddit.train.checkpoint import find_newest
from ddit.train.distillation import Distillation
from ddit.train.objective import Distilled, distillation_loss
from ddit.train.parallel import local
from ddit.train.trainer import Trainer

MANY = DistillationConfig(num_prompts=256, empty_share=0.25, plain_share=0.25)


def make_distillation(trainer: Trainer, ranks: Ranks, run: DualRun | None = None) -> Distillation:
    distillation = Distillation(run or trainer.cfg, trainer.images, trainer.codec, ranks)
    distillation.teacher.follow(trainer.learner.transformer)
    return distillation


def make_awake(run: DualRun) -> Trainer:
    """A trainer whose model begins with weights under which velocities are not 0."""
    trainer = make_trainer(run)
    torch.manual_seed(0)
    for parameter in trainer.trained.values():
        weights = local(parameter.detach())
        weights.add_(0.1 * torch.randn(weights.shape))
    assert trainer.distillation is not None
    trainer.distillation.teacher.follow(trainer.learner.transformer)
    return trainer


def test_the_loss_is_that_of_the_velocities_alone() -> None:
    target = torch.randn(3, 2, 4, 4)
    distilled = Distilled(torch.zeros_like(target), torch.ones(3), torch.zeros(3, 1, 1), target)
    assert distillation_loss(lambda x, t: target, distilled) == 0
    assert distillation_loss(lambda x, t: target + 2, distilled).item() == pytest.approx(4)


def test_the_student_is_told_in_other_words_what_the_teacher_draws_in_plain_ones(distilled: DualRun) -> None:
    trainer = make_trainer(distilled)
    states: list[list[str]] = []
    distillation = make_distillation(trainer, Ranks(0, 1), replace(distilled, distillation=MANY))
    recorded = distillation.teacher.states

    def record(texts: list[str]) -> Tensor:
        states.append(list(texts))
        return recorded(texts)

    distillation.teacher.states = record  # type: ignore[method-assign]
    distillation.of_step(0)
    drawn, target, learnt, _ = states
    empty = distillation.teacher.style.empty_prompt
    assert all(text.startswith("a photo of ") for text in drawn)
    kinds = Counter()
    for plain, aim, text in zip(drawn, target, learnt, strict=True):
        assert aim == (empty if text == empty else plain)
        kinds["empty" if text == empty else "plain" if text == plain else "other"] += 1
    assert 40 < kinds["empty"] < 90
    assert 100 < kinds["other"] < 160
    assert len(set(learnt)) > 120


def test_every_state_of_sampling_is_learnt_and_the_teacher_agrees_with_itself(distilled: DualRun) -> None:
    trainer = make_awake(distilled)
    distillation = make_distillation(trainer, Ranks(0, 1))
    given = distillation.of_step(0)
    assert distilled.distillation is not None
    count, num_states = distilled.distillation.num_prompts, distilled.distillation.sampling.num_steps
    assert len(given.t) == count * num_states
    assert (
        given.t.view(num_states, count).unique(dim=1).flatten().tolist()
        == sorted(set(given.t.tolist()))[::-1]
    )
    assert given.t[0] == 1
    same = replace(distilled.distillation, plain_share=0.7, empty_share=0.29)
    plain = make_distillation(trainer, Ranks(0, 1), replace(distilled, distillation=same))
    given = plain.of_step(0)
    loss = distillation_loss(plain.teacher.velocity(given.states), given)
    assert given.velocity.square().mean() > 1e-3
    assert loss.item() < 1e-6


def test_the_teacher_stays_and_the_student_comes_nearer(distilled: DualRun) -> None:
    assert distilled.distillation is not None
    run = replace(
        distilled,
        objective=replace(distilled.objective, i2t_fraction=1.0, lambda_text=0.01, alignment_weight=0.0),
        optimizer=replace(distilled.optimizer, lr=1e-3),
        distillation=replace(distilled.distillation, num_prompts=32, weight=100.0),
    )
    trainer = make_awake(run)
    assert trainer.distillation is not None
    before = {name: value.clone() for name, value in trainer.distillation.teacher.model.state_dict().items()}
    given = trainer.distillation.of_step(10_000)

    def miss() -> float:
        student = make_distillation(trainer, Ranks(0, 1)).teacher
        return distillation_loss(student.velocity(given.states), given).item()

    apart = miss()
    take_steps(trainer, 30)
    assert apart > 0
    assert miss() < 0.7 * apart
    for name, value in trainer.distillation.teacher.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_ranks_share_a_step(distilled: DualRun) -> None:
    trainer = make_awake(distilled)
    whole, first, second = (
        make_distillation(trainer, ranks).of_step(3) for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2))
    )
    assert distilled.distillation is not None
    num_states = distilled.distillation.sampling.num_steps
    for all_of, one, other in zip(whole, first, second, strict=True):
        parts = [value.unflatten(0, (num_states, -1)) for value in (one, other)]
        torch.testing.assert_close(all_of, torch.cat(parts, 1).flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_a_resumed_run_has_the_teacher_of_its_beginning(distilled: DualRun, tmp_path: Path) -> None:
    whole = take_steps(make_trainer(replace(distilled, out=str(tmp_path / "whole"))), 4)
    parted = replace(distilled, out=str(tmp_path / "parted"))
    first = make_trainer(parted)
    begun = take_steps(first, 2)
    first.save()
    again = make_trainer(parted)
    checkpoint = find_newest(Path(parted.out))
    assert checkpoint is not None
    again.resume(checkpoint)
    assert [result.values for result in begun + take_steps(again, 2)] == [result.values for result in whole]
    assert whole[-1].values["distillation"] > 0  # the student has left its teacher


def test_a_step_learns_the_same_whatever_the_micro_batches(distilled: DualRun) -> None:
    (whole,) = take_steps(make_awake(distilled), 1)
    (parted,) = take_steps(make_awake(replace(distilled, micro_batch_size=2)), 1)
    assert whole.values["distillation"] > 0
    assert parted.values == pytest.approx(whole.values, abs=1e-5)


def test_settings_that_do_not_fit_are_a_fault_of_one_line(distilled: DualRun, rewarded: DualRun) -> None:
    with pytest.raises(ValueError, match="reward and distillation do not go together"):
        replace(rewarded, distillation=DistillationConfig())
    with pytest.raises(ValueError, match=r"distillation does not go with lora\.rank above 0"):
        replace(distilled, lora=LoraConfig(rank=4))
    with pytest.raises(ValueError, match="leave no prompt to be worded otherwise"):
        DistillationConfig(plain_share=0.9, empty_share=0.1)
    with pytest.raises(ValueError, match=r"distillation\.presets: unknown wild"):
        DistillationConfig(presets={"wild": 1.0})
    odd = replace(distilled, micro_batch_size=2, distillation=DistillationConfig(num_prompts=3))
    with pytest.raises(
        ValueError, match=r"distillation: 3 prompts of 8 states cannot be shared by 1 ranks of"
    ):
        make_trainer(replace(odd, global_batch_size=14))
