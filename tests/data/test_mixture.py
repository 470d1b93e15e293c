from collections import Counter

import numpy as np
import pytest
from list_source import ListSource

from ddit.data.buckets import assign_buckets, bucket_shapes, merge_small
from ddit.data.mixture import PERIOD, HalfBatches, Pattern

SQUARE = [(32, 32)]


def places(half: HalfBatches, step: int) -> list[tuple[int, int]]:
    return [(p.source, p.index) for p in (half.place(step, i) for i in range(half.batch_size))]


def test_sources_are_mixed_by_exact_counts() -> None:
    weights = [0.5, 3.0, 0.25, 1e-7]
    pattern = Pattern(weights, seed=0)
    assert pattern.counts.tolist() == [1333, 8000, 666, 1]  # the least gets one entry
    found = Counter(pattern.locate(number)[0] for number in range(3 * PERIOD))
    assert [found[i] for i in range(4)] == (3 * pattern.counts).tolist()
    for stretch in range(0, PERIOD, 100):  # no stretch is far from the shares
        share = Counter(pattern.locate(stretch + i)[0] for i in range(100))
        assert abs(share[1] - 80) <= 2
        assert abs(share[0] - 13.33) <= 2.5


def test_a_pattern_counts_what_came_before() -> None:
    pattern, seen = Pattern([1.0, 2.0, 5.0], seed=1), Counter()
    for number in range(2 * PERIOD + 57):
        choice, before = pattern.locate(number)
        assert before == seen[choice]
        seen[choice] += 1


def test_each_source_is_walked_in_permutations_whatever_its_length() -> None:
    half = HalfBatches([(ListSource(7), 1.0), (ListSource(300), 3.0)], 16, shapes=SQUARE, seed=0, stream=0)
    by_source: dict[int, list[int]] = {0: [], 1: []}
    for step in range(80):
        for source, index in places(half, step):
            by_source[source].append(index)
    small, large = by_source[0], by_source[1]
    assert len(small) == pytest.approx(320, abs=1)
    for start in range(0, 315, 7):
        assert sorted(small[start : start + 7]) == list(range(7))
    for start in range(0, 900, 300):
        assert sorted(large[start : start + 300]) == list(range(300))
    assert large[:300] != large[300:600]


def test_a_batch_is_a_function_of_seed_step_and_stream() -> None:
    def make(seed: int, stream: int) -> HalfBatches:
        return HalfBatches([(ListSource(500), 1.0)], 8, shapes=SQUARE, seed=seed, stream=stream)

    late = places(make(0, 0), 10**7)
    assert late == places(make(0, 0), 10**7)
    assert late != places(make(1, 0), 10**7)
    assert late != places(make(0, 1), 10**7)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="the weight of source 1 must be above 0"):
        HalfBatches([(ListSource(3), 1.0), (ListSource(3), weight)], 2, shapes=SQUARE, seed=0, stream=0)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source 0 has no samples"):
        HalfBatches([(ListSource(0), 1.0)], 2, shapes=SQUARE, seed=0, stream=0)


def test_buckets_are_about_equal_in_area() -> None:
    for size, num, unit in [(256, 9, 16), (512, 5, 16), (1024, 7, 32)]:
        shapes = bucket_shapes(size, num, unit)
        assert len(shapes) == num
        assert (size, size) in shapes
        ratios = [width / height for height, width in shapes]
        assert ratios == sorted(ratios)
        for height, width in shapes:
            assert height % unit == width % unit == 0
            assert 0.85 < height * width / size**2 < 1.15
        assert {(w, h) for h, w in shapes} == set(shapes)
    assert bucket_shapes(64, 1, 16) == [(64, 64)]
    with pytest.raises(ValueError, match="multiple of 16"):
        bucket_shapes(100, 1, 16)


def test_images_go_to_the_nearest_ratio_and_texts_to_any() -> None:
    shapes = bucket_shapes(256, 5, 16)
    sizes = np.array([(100, 100), (2000, 1000), (900, 100), (10, 40), (110, 100)])
    assert assign_buckets(sizes, shapes).tolist() == [2, 4, 4, 0, 2]
    mixed = np.concatenate(
        [np.tile([(100, 100)], (300, 1)), np.tile([(200, 100)], (100, 1)), np.zeros((400, 2))]
    )
    counts = np.bincount(assign_buckets(mixed.astype(int), shapes)[400:], minlength=5)
    assert abs(counts[2] - 300) <= 3
    assert abs(counts[4] - 100) <= 3


def test_small_buckets_are_merged_into_the_nearest() -> None:
    shapes = bucket_shapes(256, 5, 16)
    target = merge_small(np.array([3, 50, 1000, 9, 2]), shapes, 10)
    assert target.tolist() == [1, 1, 2, 3, 3]  # nine and two make a bucket of their own
    assert merge_small(np.array([0, 1, 0, 2, 0]), shapes, 10)[[1, 3]].tolist() == [3, 3]


def test_a_half_batch_has_one_bucket_by_the_share_of_samples() -> None:
    shapes = bucket_shapes(64, 5, 16)
    sizes = [(64, 64)] * 600 + [(128, 64)] * 300 + [(40, 80)] * 95 + [(90, 64)] * 5
    source = ListSource(1000, sizes=sizes)
    half = HalfBatches([(source, 1.0)], 10, shapes=shapes, seed=0, stream=0)
    steps, seen = Counter(), Counter()
    for step in range(1000):
        rows = places(half, step)
        steps[half.shape(step)] += 1
        seen.update(index for _, index in rows)
        assert len({sizes[index] for _, index in rows} - {(90, 64)}) == 1
    assert sum(steps.values()) == 1000
    assert abs(max(steps.values()) - 600) <= 10  # squares, with or without the five that were merged
    assert set(seen.values()) <= {9, 10, 11}  # ten epochs, in which every sample came about as often


def test_a_replacement_is_of_the_same_source_and_bucket() -> None:
    shapes = bucket_shapes(64, 3, 16)
    sizes = [(64, 64), (96, 48)] * 50
    half = HalfBatches([(ListSource(100, sizes=sizes), 1.0)], 4, shapes=shapes, seed=0, stream=0)
    found = set()
    for step in range(20):
        place = half.place(step, 0)
        for attempt in (1, 2):
            other = half.replacement(place, step, 0, attempt)
            assert other == half.replacement(place, step, 0, attempt)
            assert sizes[other.index] == sizes[place.index]
            found.add(other.index)
    assert len(found) > 20
