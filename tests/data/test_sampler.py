import numpy as np
import pytest

from ddit.data.sampler import noise_rng, shuffled_index


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50, 1000, 4099])
def test_every_epoch_is_a_permutation_of_its_own(length: int) -> None:
    epochs = [[shuffled_index(e * length + i, length, seed=3) for i in range(length)] for e in (0, 1, 10**6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(length))
    if length >= 50:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert [shuffled_index(i, length, seed=4) for i in range(length)] != epochs[0]


def test_a_permutation_looks_random() -> None:
    length = 10_000
    order = np.array([shuffled_index(i, length, seed=0) for i in range(length)])
    # neighbours in the walk are no neighbours in the source, and the halves are mixed
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(length), order)[0, 1]) < 0.05
    assert 0.45 < (order[: length // 2] < length // 2).mean() < 0.55
    assert 3000 < np.abs(np.diff(order)).mean() < 3700  # a third of the length


def test_noise_depends_on_seed_step_and_position() -> None:
    found = {noise_rng(*key).random() for key in np.ndindex(3, 3, 3)}
    assert len(found) == 27
    assert noise_rng(1, 2, 3).random() == noise_rng(1, 2, 3).random()
