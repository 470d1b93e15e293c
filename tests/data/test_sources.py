import numpy as np

from ddit.config.data import WorldData
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


def test_turns_are_questions_as_often_as_asked() -> None:
    source = WorldSource(WorldData(PRESETS["fixed"]))
    turns = [source.turn(index, sample_rng(0, 0, index), 0.25) for index in range(400)]
    share = sum(turn.question is not None for turn in turns) / 400
    assert 0.18 < share < 0.32


def test_pixels_are_the_rendered_scene() -> None:
    pixels = WorldSource(WorldData(PRESETS["fixed"])).pixels(3, 5)
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
