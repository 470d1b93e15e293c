"""Intervals against closed forms, and their coverage by simulation."""

import numpy as np
import pytest

from ddit.eval.geneval import tally_categories
from ddit.eval.intervals import f1_interval, weighted_sum, wilson
from ddit.eval.items import Figure
from ddit.eval.yesno import pope_figures


def test_wilsons_interval_is_where_the_normal_test_is_at_its_limit() -> None:
    """Its limits p solve (share - p)² = z² p (1 - p) / n."""
    for share, num in ((0.0, 10), (0.3, 17), (0.5, 100), (0.981, 368), (1.0, 300)):
        for limit in wilson(share, num):
            assert (share - limit) ** 2 == pytest.approx(1.959964**2 * limit * (1 - limit) / num, abs=1e-12)


def test_a_share_of_one_has_an_interval_with_a_width() -> None:
    low, high = wilson(1.0, 300)
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 300))  # 0.987
    assert high == 1
    assert wilson(0.0, 0) == (0, 1)


@pytest.mark.parametrize(("share", "num"), [(0.99, 300), (0.9, 40)])
def test_the_interval_covers_the_true_share_19_times_in_20(share: float, num: int) -> None:
    found = np.random.default_rng(0).binomial(num, share, size=4000)
    intervals = [wilson(right / num, num) for right in found]
    assert 0.93 < np.mean([low <= share <= high for low, high in intervals]) < 0.985


def test_the_interval_of_a_sum_adds_as_standard_errors_do() -> None:
    assert weighted_sum(1 / 2, [(0.5, (0.2, 0.9)), (0.7, (0.3, 1.0))]) == pytest.approx(
        (0.6 - 0.5 / 2, 0.6 + 0.5 / 2)
    )
    assert weighted_sum(1, [(0.5, (0.4, 0.6))]) == pytest.approx((0.4, 0.6))


def test_f1s_interval_holds_f1_and_has_a_width_at_one() -> None:
    assert f1_interval(0, 0, 0) == (0, 1)
    low, high = f1_interval(8, 10, 12)
    assert low < 16 / 22 < high
    low, high = f1_interval(400, 400, 400)
    assert 0.98 < low < high == 1


def test_the_interval_of_f1_covers_the_true_one() -> None:
    generator, covered = np.random.default_rng(1), []
    for _ in range(2000):
        labels = generator.random(300) < 0.5
        says = generator.random(300) < np.where(labels, 0.9, 0.1)
        counts = int((labels & says).sum()), int(says.sum()), int(labels.sum())
        low, high = f1_interval(*counts)
        covered.append(low <= 0.9 <= high)
    assert np.mean(covered) > 0.93


def test_a_figure_has_wilsons_interval_or_its_own_limits() -> None:
    assert Figure("accuracy", 0.5, 100).interval == wilson(0.5, 100)
    assert Figure("accuracy", 0.0, 0).interval is None
    assert Figure("CIDEr", 5.0, 100, is_share=False).interval is None
    assert Figure("F1", 0.5, 100, is_share=False, limits=(0.4, 0.6)).interval == (0.4, 0.6)


def test_the_mean_of_genevals_categories_is_known_better_than_each() -> None:
    overall, *categories = tally_categories(["counting", "colors"] * 100, [True, True, False, False] * 50)
    assert overall.interval is not None
    low, high = overall.interval
    widths = [high - low for low, high in (wilson(figure.value, figure.num) for figure in categories)]
    assert low < overall.value < high
    assert high - low < min(widths)


def test_popes_f1_has_an_interval() -> None:
    f1 = pope_figures(["yes", "no"] * 50, ["yes", "no"] * 50)[0]
    assert f1.interval == f1_interval(50, 50, 50)
