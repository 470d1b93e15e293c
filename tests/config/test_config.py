"""Configurations in JSON and back; what is stored by 0.1 is still read."""

import json
import subprocess
import sys

import pytest

from ddit.config.data import DataConfig, TarData
from ddit.config.runs import DualRun, from_json, to_json
from ddit.recipes import EXTRA_STAGES, MINI_STAGES, build, list_stages
from ddit.settings import ImageSampling


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
    with pytest.raises(ValueError, match=r"^kind is 'duel'; known: dual, autoencoder, .*; did you mean dual"):
        from_json('{"kind": "duel", "out": "x"}')


def test_a_configuration_of_version_0_1_is_read() -> None:
    config = build("sd3-medium-stage2", "runs")
    assert isinstance(config, DualRun)
    old = json.loads(to_json(config))
    data, objective, report = old["data"], old["objective"], old["report"]
    data["draw"], data["read"] = data.pop("t2i"), data.pop("i2t")
    data["draw_length"], data["read_length"] = data.pop("t2i_length"), data.pop("i2t_length")
    data["max_broken_share"] = data.pop("max_corrupt_share")
    objective["read_fraction"] = objective.pop("i2t_fraction")
    report["sheet_every"], report["num_sheet"] = report.pop("grid_every"), report.pop("num_grid")
    sampling = report.pop("grid_sampling")
    report |= {"sheet_steps": sampling["num_steps"], "sheet_guidance": sampling["guidance_scale"]}
    report["sheet_shift"] = sampling["shift"]
    assert from_json(json.dumps(old)) == config


def test_a_sample_grid_is_sampled_as_before() -> None:
    mini, big, tiny = (build(name, "r") for name in ("mini-image", "sd3-medium-stage1", "tiny-image"))
    assert isinstance(mini, DualRun)
    assert isinstance(big, DualRun)
    assert isinstance(tiny, DualRun)
    assert mini.report.grid_sampling == ImageSampling(num_steps=20, guidance_scale=3.0, shift=2.0)
    assert big.report.grid_sampling == ImageSampling(num_steps=28, guidance_scale=7.0, shift=3.0)
    assert tiny.report.grid_sampling == ImageSampling(num_steps=2, guidance_scale=3.0, shift=2.0)


def test_a_configuration_is_checked_where_it_is_made() -> None:
    for make, fault in {
        lambda: DataConfig(t2i=(3,)): "t2i.0 must be an object with keys, got 3",  # type: ignore[arg-type]
        lambda: TarData("x", weight=0.0): "weight must be above 0, got 0.0",
        lambda: DataConfig(max_corrupt_share=float("nan")): "max_corrupt_share must be finite, got nan",
    }.items():
        with pytest.raises(ValueError, match=f"^{fault}$"):
            make()


def test_configurations_need_no_torch() -> None:
    code = "import sys, ddit.config.overrides, ddit.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_chain_links_each_stage_to_its_predecessor() -> None:
    assert list_stages("mini") == [f"mini-{stage}" for stage in MINI_STAGES if stage not in EXTRA_STAGES]
    for stage, before in (("stage1", "image"), ("stage2", "stage1"), ("stage3", "stage2")):
        config = build(f"mini-{stage}", "runs")
        assert isinstance(config, DualRun)
        assert config.init == f"runs/mini-{before}/export"
