from pathlib import Path

import pytest

from ddit.config import DualRun, apply_overrides, from_json, to_json
from ddit.recipes import MINI_CHAIN, build, stages


def test_every_recipe_survives_json(tmp_path: Path) -> None:
    for family in ("mini", "tiny"):
        for name in stages(family):
            config = build(name, tmp_path)
            assert from_json(to_json(config)) == config


def test_overrides_are_typed_and_nested() -> None:
    config = build("mini-joint", "runs")
    changed = apply_overrides(
        config,
        [
            "optimizer.lr=1e-4",
            "max_steps=7",
            "init=null",
            "optimizer.betas=[0.5, 0.9]",
            "objective.text.normalizer=all",
        ],
    )
    assert isinstance(changed, DualRun)
    assert changed.optimizer.lr == 1e-4
    assert changed.optimizer.betas == (0.5, 0.9)
    assert (changed.max_steps, changed.init, changed.objective.text.normalizer) == (7, None, "all")
    assert isinstance(config, DualRun)
    assert config.max_steps != 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'"),
        (
            "optimizer.warmup_step=1",
            "unknown key 'optimizer.warmup_step'; did you mean optimizer.warmup_steps",
        ),
        ("seed.more=1", "unknown key 'seed.more': 'seed' has no fields of its own"),
        ("max_steps=ten", "bad value for max_steps: 'ten'"),
        ("max_steps=1.5", "bad value for max_steps: '1.5'"),
        ("optimizer.schedule=sometimes", "bad value for optimizer.schedule: 'sometimes'"),
        ("max_steps", "override 'max_steps' is not of the form key=value"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        apply_overrides(build("mini-joint", "runs"), [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_stored_configuration_with_an_unknown_key_is_refused() -> None:
    text = to_json(build("mini-image", "runs")).replace('"warmup_steps"', '"warmup"')
    with pytest.raises(ValueError, match=r"unknown key 'optimizer\.warmup'"):
        from_json(text)


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'mini-imagee'; known: mini, tiny, mini-vae"):
        build("mini-imagee", "runs")
    with pytest.raises(ValueError, match="unknown world 'flat'; known: fixed-1"):
        build("mini-image", "runs", world="flat")


def test_the_chain_links_each_stage_to_its_predecessor() -> None:
    assert stages("mini") == list(MINI_CHAIN)
    joint, questions = build("mini-joint", "runs"), build("mini-questions", "runs")
    assert isinstance(joint, DualRun)
    assert isinstance(questions, DualRun)
    assert joint.init == "runs/mini-image/export"
    assert questions.init == "runs/mini-joint/export"
