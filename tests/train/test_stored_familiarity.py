"""What training stores of its images: from sources whose latents are cached, too."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ddit.config.data import WorldData
from ddit.model.familiarity import Familiarity
from ddit.model.folders import resolve
from ddit.recipes.mini import mini_isolated
from ddit.train.familiarity import add_familiarity
from ddit.world import PRESETS


def test_images_are_read_where_latents_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddit.train.familiarity.NUM_IMAGES", 240)
    monkeypatch.setattr("ddit.train.familiarity.NUM_FOREIGN_IMAGES", 40)
    folder = tmp_path / "model"
    shutil.copytree(resolve("mini"), folder)
    before = Familiarity.load(folder)
    run = mini_isolated(tmp_path, PRESETS["fixed"])
    source = WorldData(PRESETS["fixed"], num_scenes=1000, latents=str(tmp_path / "latents"))
    run = replace(run, data=replace(run.data, i2t=(source,)))
    assert add_familiarity(folder, run)
    after = Familiarity.load(folder)
    assert before is not None
    assert after is not None
    assert after.direction is not None
    assert after.mean.shape == before.mean.shape


def test_texts_alone_have_none(tmp_path: Path) -> None:
    run = mini_isolated(tmp_path, PRESETS["fixed"])
    assert not add_familiarity(Path(resolve("mini")), replace(run, data=replace(run.data, i2t=())))
