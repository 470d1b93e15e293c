"""Likelihood bounds: closed forms, enumeration by brute force, and an error that means what it says."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from toy_texts import LENGTH, MASK, VOCAB, bound, by_orders, conditionals_of, context_logits

from ddit.diffusion.likelihood import MaskSets, mask_sets, set_log_probs, text_units
from ddit.diffusion.masked import MaskedConfig, masked_loss, subs_log_probs


def exact_sets(num_units: int) -> MaskSets:
    return mask_sets(num_units, 2**num_units - 1, torch.Generator())


def test_conditionals_of_one_joint_distribution_give_its_log_likelihood_exactly() -> None:
    joint = torch.rand((VOCAB - 1,) * 3, generator=torch.Generator().manual_seed(0)) ** 3
    joint /= joint.sum()
    for ids in itertools.product(range(VOCAB - 1), repeat=3):
        found, error = bound(conditionals_of(joint), torch.tensor(ids), exact_sets(3))
        assert found == pytest.approx(joint[ids].log().item(), abs=1e-5)
        assert error == 0


def test_other_conditionals_give_the_mean_over_all_orders_of_revealing() -> None:
    for ids in itertools.product(range(VOCAB - 1), repeat=LENGTH):
        text = torch.tensor(ids)
        found, error = bound(context_logits, text, exact_sets(LENGTH))
        assert found == pytest.approx(by_orders(context_logits, text, [[0], [1], [2], [3]]), abs=1e-5)
        assert error == 0


def test_a_unit_of_several_positions_is_masked_and_revealed_as_one_and_given_ones_never() -> None:
    text, units = torch.tensor([2, 0, 1, 2, 0, 0]), torch.tensor([-1, 0, 1, 2, 2, 2])
    found, _ = bound(context_logits, text, exact_sets(3), units)
    assert found == pytest.approx(by_orders(context_logits, text, [[1], [2], [3, 4, 5]]), abs=1e-5)


def test_what_is_not_scored_is_masked_and_costs_nothing() -> None:
    text, units = torch.tensor([[1, 2, 0, 0]]), torch.tensor([[-1, 0, 1, 1]])
    seen = []

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        seen.append((noisy_ids.tolist(), is_masked.tolist()))
        return context_logits(noisy_ids, is_masked, rows)

    is_scored = torch.tensor([[False, True, True, False]])
    value = set_log_probs(logits, text, units, is_scored, torch.tensor([[False, True]]), mask_token_id=MASK)
    assert seen == [([[1, 2, MASK, MASK]], [[False, False, True, False]])]
    is_masked = torch.tensor([[False, False, True, False]])
    log_probs = subs_log_probs(
        context_logits(torch.tensor([[1, 2, MASK, MASK]]), is_masked, torch.zeros(1)), MASK
    )
    assert value.item() == pytest.approx(log_probs[0, 0].item())


def test_the_bound_of_single_positions_is_the_published_nelbo_in_the_mean_over_time() -> None:
    text = torch.tensor([2, 0, 1, 2])
    loss = masked_loss(
        context_logits,
        text.expand(60_000, -1),
        torch.ones(60_000, LENGTH, dtype=torch.bool),
        mask_token_id=MASK,
        cfg=MaskedConfig(),
        generator=torch.Generator().manual_seed(0),
    )
    found, _ = bound(context_logits, text, exact_sets(LENGTH))
    assert -loss.mean().item() * LENGTH == pytest.approx(found, rel=0.02)


# --- the draw of sets ---


@pytest.mark.parametrize(
    ("num_units", "num_samples"), [(6, 20), (9, 32), (12, 64), (40, 16), (5, 2), (300, 64)]
)
def test_as_many_sets_are_drawn_as_asked_for_and_none_twice_in_a_stratum(
    num_units: int, num_samples: int
) -> None:
    sets = mask_sets(num_units, num_samples, torch.Generator().manual_seed(0))
    assert len(sets.is_masked) == sum(sets.counts) == num_samples
    assert sets.is_masked.any(1).all()
    assert not sets.is_exact
    for stratum, unseen in zip(sets.is_masked.split(sets.counts), sets.unseen, strict=True):
        if unseen < 1:  # of one size
            (size,) = stratum.sum(1).unique().tolist()
            assert len(stratum.unique(dim=0)) == len(stratum)
            assert unseen == 1 - len(stratum) / math.comb(num_units, size)


def test_all_sets_are_taken_where_there_are_no_more_than_asked_for() -> None:
    sets = mask_sets(5, 31, torch.Generator())
    assert sets.is_exact
    assert len(sets.is_masked.unique(dim=0)) == 31
    assert not mask_sets(5, 30, torch.Generator()).is_exact


def test_the_draw_depends_on_the_seed_alone() -> None:
    first, again, other = (mask_sets(8, 20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.is_masked, again.is_masked)
    assert not torch.equal(first.is_masked, other.is_masked)


def test_one_sample_has_no_error_and_is_refused() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        mask_sets(3, 1, torch.Generator())


@pytest.mark.parametrize("num_samples", [4, 9, 40, 90])
def test_the_estimate_is_right_in_the_mean_and_its_error_is_its_spread(num_samples: int) -> None:
    """4 samples of 7 sizes share strata, 9 are two in some, 90 of 127 take some strata whole."""
    text = torch.tensor([2, 0, 1, 2, 1, 0, 2])
    exact, _ = bound(context_logits, text, exact_sets(7))
    found = [
        bound(context_logits, text, mask_sets(7, num_samples, torch.Generator().manual_seed(seed)))
        for seed in range(400)
    ]
    estimates, errors = torch.tensor(found, dtype=torch.float64).T
    spread = estimates.std().item()
    assert estimates.mean().item() == pytest.approx(exact, abs=4 * spread / 20)
    assert errors.square().mean().sqrt().item() == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("num_samples", [4, 16])
def test_sets_by_their_size_leave_less_variance_than_stratified_times(num_samples: int) -> None:
    text = torch.tensor([2, 0, 1, 2, 1, 0, 2])
    by_sets, by_times = [], []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        by_sets.append(bound(context_logits, text, mask_sets(7, num_samples, generator))[0])
        every = torch.ones(num_samples, 7, dtype=torch.bool)
        loss = masked_loss(
            context_logits,
            text.expand(num_samples, -1),
            every,
            mask_token_id=MASK,
            cfg=MaskedConfig(),
            generator=generator,
        )
        by_times.append(-7 * loss.mean().item())
    spreads = [torch.tensor(values).std().item() for values in (by_sets, by_times)]
    assert spreads[0] < 0.75 * spreads[1]


# --- units of texts ---


def test_each_token_is_a_unit_and_the_end_is_one_with_its_padding() -> None:
    ids = torch.tensor([[5, 6, 7, 1, 1, 1], [5, 1, 6, 7, 1, 1], [1, 1, 1, 1, 1, 1], [5, 6, 7, 8, 9, 5]])
    answers = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1] * 6, [0, 0, 1, 1, 1, 1]]).bool()
    units, is_scored, counts = text_units(ids, answers, 1)
    assert units.tolist() == [
        [-1, 0, 1, 2, 2, 2],
        [0, 1, -1, 2, 3, 3],  # an end between two answers is a token like any other
        [0] * 6,
        [-1, -1, 0, 1, 2, 3],  # cut: no end
    ]
    assert counts.tolist() == is_scored.sum(1).tolist() == [3, 4, 1, 4]
    for row, scored in zip(units, is_scored, strict=True):  # the first position of each unit
        assert row[scored].tolist() == list(range(int(row.max()) + 1))
