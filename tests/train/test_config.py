from pathlib import Path

import pytest

from ddit.config.runs import DualRun, from_json, to_json
from ddit.recipes import ASIDE, MINI_STAGES, build, recipe_names, stages


def test_every_recipe_survives_json(tmp_path: Path) -> None:
    for name in [*recipe_names(), *stages("tiny")]:
        config = build(name, tmp_path)
        assert from_json(to_json(config)) == config


def test_a_stored_configuration_with_an_unknown_key_is_refused() -> None:
    text = to_json(build("mini-image", "runs"))
    with pytest.raises(
        ValueError, match=r"unknown key 'optimizer\.warmup'; did you mean optimizer\.warmup_steps"
    ):
        from_json(text.replace('"warmup_steps"', '"warmup"'))
    with pytest.raises(
        ValueError, match=r"unknown key 'data\.t2i\.0\.slit'; did you mean data\.t2i\.0\.split"
    ):
        from_json(text.replace('"split"', '"slit"', 1))
    with pytest.raises(ValueError, match=r"data\.t2i\.0\.kind is 'word'; known: world, json, tar"):
        from_json(text.replace('"kind": "world"', '"kind": "word"', 1))
    with pytest.raises(ValueError, match="missing key 'model'"):
        from_json('{"kind": "dual", "out": "x", "data": {}}')


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="unknown recipe 'mini-imagee'; known: mini, tiny, sd3-medium-stage1"
    ):
        build("mini-imagee", "runs")
    with pytest.raises(ValueError, match="unknown world 'flat'; known: fixed-1"):
        build("mini-image", "runs", world="flat")


def test_the_chain_links_each_stage_to_its_predecessor() -> None:
    assert stages("mini") == [f"mini-{stage}" for stage in MINI_STAGES if stage not in ASIDE]
    for stage, before in (("stage1", "image"), ("stage2", "stage1"), ("stage3", "stage2")):
        config = build(f"mini-{stage}", "runs")
        assert isinstance(config, DualRun)
        assert config.init == f"runs/mini-{before}/export"
