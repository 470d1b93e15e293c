from pathlib import Path

import numpy as np
import pytest
import torch

from ddit.data.config import WorldData
from ddit.data.pool import LatentPool, fill_pool, prepare_pool
from ddit.data.sampler import batch_indices, sample_rng
from ddit.data.sources import WorldSource
from ddit.world import PRESETS


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    for step in (0, 3, 1000):
        assert np.array_equal(
            batch_indices(50, 8, seed=1, step=step), batch_indices(50, 8, seed=1, step=step)
        )
    assert not np.array_equal(batch_indices(50, 8, seed=1, step=0), batch_indices(50, 8, seed=2, step=0))


def test_an_epoch_shows_every_sample_once() -> None:
    seen = np.concatenate([batch_indices(50, 8, seed=0, step=step) for step in range(25)])  # four epochs
    assert np.array_equal(np.bincount(seen), np.full(50, 4))
    assert sorted(seen[:50]) == list(range(50))
    assert not np.array_equal(seen[:50], seen[50:100])


def test_texts_depend_on_seed_step_and_position_alone() -> None:
    source = WorldSource(WorldData(PRESETS["fixed"]))
    texts = [source.caption(7, sample_rng(0, step, 3)) for step in range(20)]
    assert texts == [source.caption(7, sample_rng(0, step, 3)) for step in range(20)]
    assert len(set(texts)) > 3
    states = {
        sample_rng(seed, step, position).random() for seed in (0, 1) for step in (0, 1) for position in (0, 1)
    }
    assert len(states) == 8


def test_readings_are_questions_as_often_as_asked() -> None:
    source = WorldSource(WorldData(PRESETS["fixed"]))
    readings = [source.turn(index, sample_rng(0, 0, index), 0.25) for index in range(400)]
    share = sum(reading.question is not None for reading in readings) / 400
    assert 0.18 < share < 0.32


def test_pixels_are_the_rendered_scene() -> None:
    pixels = WorldSource(WorldData(PRESETS["fixed"])).pixels(3, 5)
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def description(num_scenes: int = 10) -> dict:
    return {"num_scenes": num_scenes, "chunk_size": 4, "latents_shape": [2, 3, 3], "features_shape": None}


def encode(first: int, end: int) -> tuple[torch.Tensor, None]:
    return torch.arange(first, end).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 3), None


def test_a_pool_is_filled_by_several_workers_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    prepare_pool(tmp_path, description())
    fill_pool(tmp_path, encode, worker=1, num_workers=2)
    with pytest.raises(ValueError, match="2 chunks of latents are missing"):
        LatentPool(tmp_path)
    made = []
    prepare_pool(tmp_path, description())
    fill_pool(tmp_path, lambda first, end: made.append(first) or encode(first, end))
    assert made == [0, 8]
    pool = LatentPool(tmp_path)
    assert len(pool) == 10
    assert pool.latents(np.array([9, 0, 4]))[:, 0, 0, 0].tolist() == [9, 0, 4]
    with pytest.raises(ValueError, match="holds no teacher's features"):
        pool.features(np.array([0]))


def test_a_pool_of_other_settings_is_not_overwritten(tmp_path: Path) -> None:
    prepare_pool(tmp_path, description())
    with pytest.raises(ValueError, match="made with other settings"):
        prepare_pool(tmp_path, description(num_scenes=11))
