"""Tuning by reward: the loss, what is right, and rounds that depend on neither ranks nor resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from stepping import make_trainer, take_steps
from torch import Tensor, nn

from ddit.config.runs import CHECK_FILE, TEACHER_FILE, DualRun, RewardConfig, TeacherRun
from ddit.data.sampler import sample_rng
from ddit.devices import Ranks
from ddit.diffusion import flow
from ddit.objectives import FlowConfig
from ddit.settings import ImageSampling
from ddit.train.checkpoint import find_newest
from ddit.train.judge import Judge, reward_of, worth_of
from ddit.train.objective import Drawn, reward_loss
from ddit.train.own_drawings import draw_prompts
from ddit.train.reward import Rollouts, quality_of
from ddit.train.small_nets import train_teacher
from ddit.world import PRESETS, Prompt
from ddit.world.detector import DetectorNet, load_detector
from ddit.world.geneval import Detection
from ddit.world.wide import WIDE_CLASSES, WIDE_PRESETS
from ddit.world.wide.checked import CheckNet
from ddit.world.wide.scenes import WideObject, is_allowed, make_scene, render

DOG = Detection("dog", "red", (4, 4, 24, 24), 0.9)
CAT = Detection("cat", None, (34, 4, 54, 24), 0.7)
ONE_DOG = Prompt("a red dog", "colors", [{"class": "dog", "count": 1, "color": "red"}])


def make_drawn(quality: float, n: int = 6) -> Drawn:
    g = torch.Generator().manual_seed(0)
    latents, noise, old = (torch.randn(n, 2, 3, 3, generator=g) for _ in range(3))
    t = torch.rand(n, generator=g)
    return Drawn(latents, torch.zeros(n, 1, 1), torch.full((n,), quality), t, noise, old)


@pytest.mark.parametrize(("quality", "sign"), [(0.5, 0), (1.0, -1), (0.0, 1)])
def test_the_gradient_leads_to_what_is_good_and_away_from_what_is_bad(quality: float, sign: int) -> None:
    drawn = make_drawn(quality)
    velocity = drawn.old_velocity.clone().requires_grad_()
    reward_loss(lambda x, t: velocity, drawn).backward()
    assert velocity.grad is not None
    target = drawn.noise - drawn.latents
    along = (velocity.grad * (target - drawn.old_velocity)).sum().item()
    if sign:
        assert along * sign > 1e-2
    else:
        torch.testing.assert_close(velocity.grad, torch.zeros_like(velocity.grad), atol=1e-7, rtol=0.0)


class _Field(nn.Module):
    """A velocity of points (B, 1, 1, 1) on a line."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.stack([x.flatten(), t], dim=1)).view_as(x)


def test_of_two_modes_the_rewarded_one_is_drawn_more_and_more() -> None:
    torch.manual_seed(0)
    model, policy = _Field(), _Field()
    sampling, cfg = ImageSampling(num_steps=12, sampler="euler", shift=1.0), FlowConfig()

    def fit(num_steps: int, lr: float, loss_of: Callable[[], Tensor]) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr)
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()

    def true_points() -> Tensor:
        return (torch.randint(0, 2, (256, 1, 1, 1)) * 2 - 1) * 1.0 + 0.05 * torch.randn(256, 1, 1, 1)

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        return flow.sample_latents(policy, torch.randn(n, 1, 1, 1), cfg=sampling)

    def own_drawings() -> Tensor:
        policy.load_state_dict(model.state_dict())
        points = draw(256)
        quality = quality_of((points.flatten() > 0).float().view(16, 16), 1.2).flatten()
        t, noise = flow.sample_t(256, cfg), torch.randn(256, 1, 1, 1)
        with torch.no_grad():
            old = policy(flow.add_noise(points, noise, t), t)
        return reward_loss(model, Drawn(points, points, quality, t, noise, old))

    fit(500, 3e-3, lambda: flow.flow_loss(model, true_points(), cfg=cfg).mean())
    policy.load_state_dict(model.state_dict())
    before = (draw(1000) > 0).float().mean().item()
    fit(150, 1e-3, own_drawings)
    policy.load_state_dict(model.state_dict())
    after = draw(1000)
    assert 0.4 < before < 0.6
    assert (after > 0).float().mean() > 0.9
    assert 0.7 < after[after > 0].median() < 1.3, (
        "it is the mode that was there, not what the reward would let pass"
    )


@pytest.mark.parametrize(
    ("prompt", "found", "reward"),
    [
        (ONE_DOG, [DOG], 0.9),
        (ONE_DOG, [DOG, DOG._replace(score=0.4)], 0.4),
        (ONE_DOG, [DOG._replace(color="blue")], 0.0),
        (ONE_DOG, [DOG, CAT], 0.0),  # which GenEval would let pass
        (ONE_DOG, [], 0.0),
        (replace(ONE_DOG, exclude=[{"class": "dog", "count": 2}]), [DOG, DOG], 0.0),
    ],
)
def test_only_what_was_asked_for_and_nothing_else_is_right(
    prompt: Prompt, found: list[Detection], reward: float
) -> None:
    assert reward_of(prompt, found) == pytest.approx(reward)


def a_judge(*, likeness: bool, found: dict[str, list[Detection]], monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge whose nets find what is given by name in every image."""
    judge = object.__new__(Judge)
    judge.likeness, judge.check = likeness, None
    judge.nets = list(found)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(
        "ddit.train.judge.detect", lambda images, *, net, threshold: [found[net]] * len(images)
    )
    return judge


def test_a_drawing_is_right_if_all_nets_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    unsure = DOG._replace(score=0.6)
    for others, reward in (([unsure], 0.6), ([CAT], 0.0), ([], 0.0)):
        judge = a_judge(likeness=False, found={"one": [DOG], "other": others}, monkeypatch=monkeypatch)
        assert judge.rewards([ONE_DOG, ONE_DOG], images) == pytest.approx([reward, reward])


def test_what_the_check_rejects_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    judge = a_judge(likeness=False, found={"one": [DOG]}, monkeypatch=monkeypatch)
    judge.check = CheckNet(8)
    checked = [[DOG._replace(score=0.5)], []]
    monkeypatch.setattr("ddit.train.judge.detect_checked", lambda images, *, net, check, threshold: checked)
    assert judge.rewards([ONE_DOG, ONE_DOG], images) == [0.5, 0]


def test_a_judge_run_leaves_a_net_that_checks_what_the_first_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_detector(classes=WIDE_CLASSES)
    monkeypatch.setattr("ddit.train.small_nets.train_wide_detector", lambda **_: trained)
    run = TeacherRun(
        out=str(tmp_path), world=WIDE_PRESETS["wide"], decoys=True, check_steps=1, check_images=64
    )
    export = train_teacher(run) / "export"
    cfg = RewardConfig((str(export / TEACHER_FILE),), check=str(export / CHECK_FILE))
    judge = Judge(cfg, torch.device("cpu"))
    assert judge.check is not None
    assert judge.rewards([ONE_DOG], np.zeros((1, 64, 64, 3), np.uint8)) == [0]
    with pytest.raises(
        ValueError, match=r"reward\.check: '.*none' is not there; ddit train wide-judge makes one"
    ):
        Judge(replace(cfg, check=str(tmp_path / "none")), torch.device("cpu"))
    with pytest.raises(ValueError, match="check_steps needs decoys"):
        replace(run, decoys=False)


def test_a_right_drawing_is_worth_more_the_more_it_looks_like_the_sprite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dog = WideObject("dog", "red", "noto", 4, 4, 20)
    scene = replace(make_scene(WIDE_PRESETS["wide-easy"], "train", 0), objects=(dog,))
    sharp = Image.fromarray(render(scene))
    images = np.stack([np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2)])
    judge = a_judge(likeness=True, found={"one": [DOG._replace(box=dog.box)]}, monkeypatch=monkeypatch)
    best, middle, worst = judge.rewards([ONE_DOG] * 3, images)
    assert best > middle > worst > 0
    judge.nets = ["none"]  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("ddit.train.judge.detect", lambda images, *, net, threshold: [[CAT]] * len(images))
    assert judge.rewards([ONE_DOG] * 3, images) == [0, 0, 0]


@pytest.mark.parametrize(
    ("matched", "worth"), [([], 1), ([5], 0.05), ([17], 0.5), ([20, 26], 1.5), ([60], 2)]
)
def test_what_a_likeness_is_worth(matched: list[float], worth: float) -> None:
    assert worth_of(matched) == pytest.approx(worth)


def test_quality_is_measured_against_the_other_drawings_of_a_prompt() -> None:
    rewards = torch.tensor([[0.9, 0.0, 0.0, 0.0], [0.9, 0.9, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0]])
    quality = quality_of(rewards, 2.0)
    assert (quality[1:] == 0.5).all()
    assert quality[0, 0] > 0.8
    assert (quality[0, 1:] < 0.5).all()
    assert quality_of(rewards, 0.1)[0].tolist() == [1, 0, 0, 0]


def test_prompts_are_of_the_presets_and_name_no_held_out_pair() -> None:
    cfg = RewardConfig(detectors=("judge.safetensors",), num_prompts=300, presets={"wide": 1.0})
    prompts = draw_prompts(cfg, sample_rng(0, 0, 0))
    assert len(prompts) == 300
    assert len({p.tag for p in prompts}) == 11
    assert len({p.text for p in prompts}) > 250
    pairs = [[(c["class"], c.get("color")) for c in p.include] for p in prompts]
    assert all(is_allowed("train", pair) for pair in pairs)
    small = draw_prompts(replace(cfg, presets={"fixed": 1.0}), sample_rng(0, 0, 0))
    assert {p.tag for p in small} == {
        "single_object",
        "two_object",
        "counting",
        "colors",
        "position",
        "color_attr",
    }


@pytest.mark.parametrize(
    ("presets", "match"),
    [({"wild": 1.0}, "unknown wild; known: fixed-1"), ({"wide": 0.0}, "no preset a share")],
)
def test_presets_that_are_none_are_named(presets: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RewardConfig(detectors=("judge.safetensors",), presets=presets)


@pytest.mark.parametrize("name", [*PRESETS, *WIDE_PRESETS])
def test_every_preset_has_prompts(name: str) -> None:
    cfg = RewardConfig(detectors=("judge.safetensors",), num_prompts=6, presets={name: 1.0})
    assert len(draw_prompts(cfg, sample_rng(0, 0, 0))) == 6


def test_ranks_share_a_round(rewarded: DualRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have the drawings of one, and measure them against all of the round's."""
    monkeypatch.setattr("ddit.train.judge.reward_of", lambda prompt, found: float(len(found) % 3))
    trainer = make_trainer(rewarded)
    given: list[list[tuple[int, float]]] = []
    monkeypatch.setattr(Ranks, "gather", lambda ranks, values: given.append(values) or given[0])
    rounds = []
    for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2)):
        rollouts = Rollouts(trainer.cfg, trainer.images, trainer.codec, ranks)
        rollouts.policy.follow(trainer.learner.transformer)
        rollouts.of_step(0, trainer.learner.transformer)
        rounds.append(rollouts._steps)
    whole, first, second = rounds
    assert sorted(given[0]) == sorted(given[1] + given[2])
    assert len({q for step in whole for q in step.quality.tolist()}) > 1
    for all_of, one, other in zip(whole, first, second, strict=True):
        assert all_of.rows == one.rows + other.rows
        for name in ("latents", "states", "quality"):
            parts = torch.cat([getattr(one, name), getattr(other, name)])
            torch.testing.assert_close(getattr(all_of, name), parts, atol=1e-4, rtol=1e-4)


def test_a_reward_does_not_enter_a_run_that_had_none(plain: DualRun, rewarded: DualRun) -> None:
    before = make_trainer(plain)
    before.save()
    checkpoint = find_newest(Path(plain.out))
    assert checkpoint is not None
    with pytest.raises(ValueError, match="holds a run without a reward: choose another folder"):
        make_trainer(rewarded).resume(checkpoint)


def test_a_resumed_run_makes_the_same_drawings(
    rewarded: DualRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddit.train.judge.reward_of", lambda prompt, found: float(len(found) % 3))
    whole = take_steps(make_trainer(replace(rewarded, out=str(tmp_path / "whole"))), 5)
    parted = replace(rewarded, out=str(tmp_path / "parted"))
    first = make_trainer(parted)
    begun = take_steps(first, 3)  # within the second round
    first.save()
    again = make_trainer(parted)
    checkpoint = find_newest(Path(parted.out))
    assert checkpoint is not None
    again.resume(checkpoint)
    assert [result.values for result in begun + take_steps(again, 2)] == [result.values for result in whole]
    assert {"reward", "right"} <= set(whole[0].values)


def test_a_step_learns_from_its_drawings_whatever_the_micro_batches(rewarded: DualRun) -> None:
    (whole,) = take_steps(make_trainer(rewarded), 1)
    (parted,) = take_steps(make_trainer(replace(rewarded, micro_batch_size=2)), 1)
    assert parted.values == pytest.approx(whole.values, abs=1e-5)


def test_a_reward_needs_a_detector() -> None:
    with pytest.raises(ValueError, match=r"reward\.detectors names no file; ddit train wide-judge makes one"):
        RewardConfig(detectors=())


def test_drawings_are_made_without_guidance() -> None:
    with pytest.raises(
        ValueError, match=r"reward\.sampling\.guidance_scale is 3: drawings to be learnt from are made"
    ):
        RewardConfig(detectors=("judge.safetensors",), sampling=ImageSampling(guidance_scale=3.0))


def test_a_judge_that_is_missing_or_of_another_world_is_a_fault_of_one_line(
    rewarded: DualRun, tmp_path: Path
) -> None:
    assert rewarded.reward is not None
    small = tmp_path / "small.safetensors"
    DetectorNet(8).save(small)
    for path, match in (
        (tmp_path / "none", "is not there; ddit train wide-judge"),
        (small, "does not know .*, of the preset wide"),
    ):
        with pytest.raises(ValueError, match=match):
            make_trainer(replace(rewarded, reward=replace(rewarded.reward, detectors=(str(path),))))


def test_drawings_that_cannot_be_shared_are_a_fault_of_one_line(rewarded: DualRun) -> None:
    assert rewarded.reward is not None
    with pytest.raises(ValueError, match="reward: 6 drawings a round cannot be shared by 4 steps of 1 ranks"):
        make_trainer(replace(rewarded, reward=replace(rewarded.reward, num_prompts=3, num_steps=4)))
    with pytest.raises(
        ValueError, match="the 6 noisy drawings of a rank's step cannot be shared by 4 micro-batches"
    ):
        make_trainer(replace(rewarded, micro_batch_size=2, reward=replace(rewarded.reward, num_prompts=2)))
