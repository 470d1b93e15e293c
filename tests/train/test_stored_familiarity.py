"""What training stores of its images: from sources whose latents are cached, too."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ddit.config.data import JsonData, WorldData
from ddit.model.familiarity import FILE, Familiarity
from ddit.model.folders import resolve
from ddit.recipes.mini import mini_isolated
from ddit.train.familiarity import add_familiarity
from ddit.world import PRESETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve("mini"), tmp_path / "model"))


def test_images_are_read_where_latents_are_cached(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddit.train.familiarity.NUM_IMAGES", 240)
    monkeypatch.setattr("ddit.train.familiarity.NUM_FOREIGN_IMAGES", 40)
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


@pytest.mark.parametrize("sources", [(), (JsonData("gone.json", latents="latents"),)], ids=["no", "gone"])
def test_a_run_without_images_to_read_stores_none(
    folder: Path, tmp_path: Path, sources: tuple[JsonData, ...]
) -> None:
    run = mini_isolated(tmp_path, PRESETS["fixed"])
    before = (folder / FILE).read_bytes()
    assert not add_familiarity(folder, replace(run, data=replace(run.data, i2t=sources)))
    assert (folder / FILE).read_bytes() == before


def test_a_run_of_few_samples_stores_none(folder: Path, tmp_path: Path) -> None:
    run = mini_isolated(tmp_path, PRESETS["fixed"])
    run = replace(
        run, data=replace(run.data, i2t=(WorldData(PRESETS["fixed"]),)), max_steps=2, global_batch_size=8
    )
    assert not add_familiarity(folder, run)
