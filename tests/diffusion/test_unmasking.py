"""Unmasking rules: what each promises about steps, law and order, and what holds for all of them."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from ddit.diffusion.masked import guided_logits, subs_log_probs
from ddit.diffusion.text_sampler import TextState, sample_text
from ddit.diffusion.unmasking import choose_positions, confidence_of, sample_categorical, top_p_filter
from ddit.settings import ORDERS, UnmaskingRule

MASK, EOS, VOCAB = 7, 1, 8
RULE_FIELDS = {field.name for field in fields(UnmaskingRule)}
RULES = {
    "plain": UnmaskingRule(threshold=0.5, entropy_bound=0.5),
    "full": UnmaskingRule(threshold=0.5, entropy_bound=0.5, top_p=0.8, commit_above=0.7, block_size=3),
}


def context_logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
    """Logits that depend on the whole visible context, on the position and on which sample it is."""
    context = (noisy_ids * torch.arange(1, noisy_ids.shape[1] + 1)).sum(1, keepdim=True) + 31 * rows[:, None]
    position = torch.arange(noisy_ids.shape[1])[None]
    return torch.sin((context + 3 * position)[..., None] * 0.7 + 1.3 * torch.arange(VOCAB))[is_masked] * 3


def task(count: int = 4, length: int = 9) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, MASK, (count, length), generator=torch.Generator().manual_seed(0))
    answer_mask = torch.ones_like(ids, dtype=torch.bool)
    answer_mask[:, :2] = False
    answer_mask[-1, :5] = False  # rows that finish at different times
    return ids, answer_mask


def fill(
    ids: Tensor,
    answer_mask: Tensor,
    logits_fn=context_logits,
    first_seed: int = 0,
    rule: UnmaskingRule | None = None,
    **changes,
):
    """`changes` go to the rule or, where it has no such field, to `sample_text`."""
    generators = [torch.Generator().manual_seed(first_seed + row) for row in range(len(ids))]
    rule = replace(
        rule or UnmaskingRule(), **{name: changes.pop(name) for name in RULE_FIELDS & set(changes)}
    )
    settings = {"num_steps": 5, "mask_token_id": MASK, "generators": generators} | changes
    settings["rule"] = rule
    return sample_text(logits_fn, ids, answer_mask, **settings)


@pytest.mark.parametrize("order", ORDERS)
def test_every_step_shows_the_probability_that_each_token_was_filled_in_with(order) -> None:
    ids, answer_mask = task()
    states = []
    sample = fill(
        ids, answer_mask, order=order, num_steps=4, on_step=lambda done, total, state: states.append(state)
    )
    assert torch.equal(states[-1].ids, sample.ids)
    before, sure = torch.where(answer_mask, MASK, ids), (~answer_mask).float()
    for state in states:
        is_masked = before == MASK
        logits = context_logits(before, is_masked, torch.arange(len(ids)))
        probs = subs_log_probs(logits, MASK).exp()
        tokens = state.ids[is_masked]
        filled = tokens != MASK
        expected = probs.gather(1, tokens[:, None]).flatten() * filled
        assert torch.allclose(state.confidence[is_masked], expected, atol=1e-6)
        assert torch.equal(state.confidence[~is_masked], sure[~is_masked])  # what was filled in keeps its own
        before, sure = state.ids, state.confidence
    assert (sure > 0).all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("order", ORDERS)
def test_pinned_tokens_stay_and_no_mask_or_banned_token_is_filled_in(order, temperature, rule) -> None:
    ids, answer_mask = task()
    for num_steps in (1, 4, 30):
        sample = fill(ids, answer_mask, order=order, temperature=temperature, rule=rule, num_steps=num_steps,
                      eos_token_id=EOS, banned_ids=(5,))  # fmt: skip
        assert torch.equal(sample.ids[~answer_mask], ids[~answer_mask])
        assert not torch.isin(sample.ids[answer_mask], torch.tensor([MASK, 5])).any()
        assert (sample.num_steps <= num_steps + (order == "random")).all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_gives_what_single_calls_give(order, rule) -> None:
    ids, answer_mask = task()
    batch = fill(ids, answer_mask, order=order, rule=rule, eos_token_id=EOS)
    for row in range(len(ids)):
        one = slice(row, row + 1)

        def logits_fn(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor, row: int = row) -> Tensor:
            return context_logits(noisy_ids, is_masked, rows + row)

        single = fill(ids[one], answer_mask[one], logits_fn, row, order=order, rule=rule, eos_token_id=EOS)
        assert torch.equal(single.ids[0], batch.ids[row])
        assert single.num_steps[0] == batch.num_steps[row]


@pytest.mark.parametrize("block_size", [0, 1])
@pytest.mark.parametrize("num_steps", [2, 3])
def test_order_random_follows_the_exact_law_of_ancestral_sampling(num_steps, block_size) -> None:
    """Two tokens, filled in one step (as if independent) or one after the other; chi-square over four outcomes."""
    joint = torch.tensor([[0.4, 0.1], [0.05, 0.45]])

    def exact(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        a, b = noisy_ids[:, :1], noisy_ids[:, 1:]
        first = torch.where(b == MASK, joint.sum(1), joint.T[(b[:, 0] - 2).clamp(0, 1)])
        second = torch.where(a == MASK, joint.sum(0), joint[(a[:, 0] - 2).clamp(0, 1)])
        probs = torch.zeros(*noisy_ids.shape, VOCAB)
        probs[:, 0, 2:4], probs[:, 1, 2:4] = first, second
        return probs.log()[is_masked]

    # With blocks of one, a step out of two is a block's, and the middle of three has a third of either.
    together = 1 / num_steps if block_size == 0 else {2: 0.0, 3: 1 / 9}[num_steps]
    law = (1 - together) * joint + together * joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    count, shared = 4000, torch.Generator().manual_seed(3)
    ids = torch.full((count, 2), 2)
    sample = sample_text(
        exact, ids, torch.ones_like(ids, dtype=torch.bool), num_steps=num_steps, mask_token_id=MASK,
        rule=UnmaskingRule(block_size=block_size), generators=[shared] * count,
    )  # fmt: skip
    seen = torch.stack([((sample.ids == torch.tensor([a, b])).all(1)).sum()
                        for a, b in itertools.product((2, 3), repeat=2)])  # fmt: skip
    expected = law.flatten() * count
    assert (
        (seen - expected) ** 2 / expected
    ).sum() < 16.3  # 0.1 % of chi-square with three degrees of freedom
    assert sample.num_steps.float().mean().item() == pytest.approx(2 - together, abs=0.03)


@pytest.mark.parametrize("order", ["threshold", "entropy", "confidence", "margin"])
def test_a_threshold_of_one_or_as_many_steps_as_positions_is_one_token_a_pass(order) -> None:
    ids, answer_mask = task()
    rule = UnmaskingRule(threshold=1.0, entropy_bound=0.0)
    sample = fill(ids, answer_mask, order=order, rule=rule, num_steps=7, temperature=0.0)
    assert sample.num_steps.tolist() == answer_mask.sum(1).tolist()
    by_confidence = fill(ids, answer_mask, order="confidence", num_steps=7, temperature=0.0)
    assert order in ("entropy", "margin") or torch.equal(sample.ids, by_confidence.ids)


def known(*best: float):
    """Position i has a token of probability best[i], whatever the context; the rest is shared evenly."""

    def logits_fn(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        probs = torch.tensor(best)[:, None].expand(-1, VOCAB).clone()
        probs[:, :2] = probs[:, 3:] = (1 - probs[:, :1]) / (VOCAB - 2)
        return probs.log().expand(len(noisy_ids), -1, -1)[is_masked]

    return logits_fn


def steps_taken(order, rule: UnmaskingRule, *best: float, num_steps: int = 9) -> int:
    ids = torch.full((1, len(best)), 3)
    sample = fill(ids, torch.ones_like(ids, dtype=torch.bool), known(*best), order=order, rule=rule,
                  num_steps=num_steps, temperature=0.0)  # fmt: skip
    assert (sample.ids == 2).all()
    return int(sample.num_steps[0])


def test_passes_are_what_the_rules_promise() -> None:
    sure = (0.95, 0.95, 0.3, 0.92, 0.4)
    assert steps_taken("threshold", UnmaskingRule(threshold=0.9), *sure) == 3
    assert steps_taken("threshold", UnmaskingRule(threshold=0.35), *sure) == 2
    assert steps_taken("threshold", UnmaskingRule(threshold=1.0), *sure, num_steps=2) == 2
    assert steps_taken("entropy", UnmaskingRule(entropy_bound=1e3), *sure) == 1
    assert steps_taken("confidence", UnmaskingRule(), *sure, num_steps=3) == 3
    assert steps_taken("margin", UnmaskingRule(), *sure, num_steps=3) == 3
    assert steps_taken("confidence", UnmaskingRule(commit_above=0.25), *sure) == 1
    assert steps_taken("threshold", UnmaskingRule(threshold=0.9, block_size=2), *sure) == 4


def test_everything_is_committed_once_every_masked_position_is_sure() -> None:
    for order in ORDERS:
        assert (
            steps_taken(order, UnmaskingRule(commit_above=0.6, threshold=1.0, entropy_bound=0.0), *[0.7] * 6)
            == 1
        )
    assert steps_taken("confidence", UnmaskingRule(commit_above=0.8), *[0.7] * 6) == 6


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_are_filled_left_to_right(order) -> None:
    ids, answer_mask = task(3, 14)
    seen = []

    def watched(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        seen.extend(zip(is_masked, rows.tolist(), strict=True))
        return context_logits(noisy_ids, is_masked, rows)

    fill(ids, answer_mask, watched, order=order, num_steps=12, rule=UnmaskingRule(block_size=4))
    for is_masked, row in seen:
        blocks = is_masked[answer_mask[row]].split(4)
        first = next(i for i, block in enumerate(blocks) if block.any())
        assert all(block.all() for block in blocks[first + 2 :])  # a step may end a block and begin the next
    if order in ("threshold", "entropy"):
        assert all(
            sum(b.any() and not b.all() for b in is_masked[answer_mask[row]].split(4)) <= 1
            for is_masked, row in seen
        )


def test_the_entropy_bound_leaves_out_the_largest_of_the_chosen() -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.99, 0.01, 0.0]])
    sure, is_masked = confidence_of("entropy", probs, probs.argmax(-1)), torch.ones(1, 4, dtype=torch.bool)
    assert sure[0].item() == pytest.approx(-0.6931, abs=1e-4)
    for bound, expected in ((0.0, [0, 1, 0, 1]), (0.06, [0, 1, 1, 1]), (0.4, [1, 1, 1, 1])):
        rule = UnmaskingRule(order="entropy", entropy_bound=bound)
        chosen = choose_positions(rule, sure, is_masked, torch.zeros(1, 4).long(), torch.tensor([1]))
        assert chosen[0].tolist() == [bool(value) for value in expected]


def test_margin_prefers_the_clear_lead_and_confidence_the_likely_token() -> None:
    probs = torch.tensor([[0.5, 0.49, 0.01], [0.45, 0.28, 0.27]])
    assert confidence_of("confidence", probs, probs.argmax(-1)).argmax() == 0
    assert confidence_of("margin", probs, probs.argmax(-1)).argmax() == 1


def test_top_p_keeps_the_fewest_tokens_that_hold_it() -> None:
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    torch.testing.assert_close(top_p_filter(probs, 0.7), torch.tensor([[0.0, 2 / 3, 0.0, 1 / 3]]))
    torch.testing.assert_close(top_p_filter(probs, 0.2), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    assert top_p_filter(probs, 1.0) is probs


def test_draws_follow_the_weights_and_never_take_a_token_without_one() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    uniform = torch.tensor([0.0, 0.7499, 0.7501, 1 - 2**-24])
    assert sample_categorical(weights.expand(4, -1), uniform).tolist() == [1, 1, 3, 3]
    random = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    share = (sample_categorical(weights.expand(4000, -1), random) == 1).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.025)


def test_an_end_of_text_that_was_given_ends_no_answer() -> None:
    ids, answer_mask = task(2)
    ids[:, 1] = EOS  # as after an earlier turn
    sample = fill(ids, answer_mask, order="confidence", temperature=0.0, eos_token_id=EOS)
    assert (sample.ids[0, 2:] != EOS).any()
    assert sample.num_steps[0] > 1


@pytest.mark.parametrize("order", ORDERS)
def test_a_guidance_scale_of_one_is_no_guidance_bit_for_bit_and_no_evaluation(order) -> None:
    def never(*_: Tensor) -> Tensor:
        raise AssertionError("the null image was asked")

    ids, answer_mask = task()
    plain = fill(ids, answer_mask, order=order)
    unguided = fill(ids, answer_mask, guided_logits(context_logits, never, 1.0), order=order)
    assert torch.equal(plain.ids, unguided.ids)
    assert torch.equal(plain.num_steps, unguided.num_steps)


def test_guidance_extrapolates_log_probabilities_from_the_null_image() -> None:
    ids, answer_mask = task(1)
    rows, null = torch.tensor([0]), lambda ids, is_masked, rows: context_logits(ids, is_masked, rows + 5)
    p, q = (fn(ids, answer_mask, rows).log_softmax(-1) for fn in (context_logits, null))
    guided = guided_logits(context_logits, null, 2.5)(ids, answer_mask, rows)
    torch.testing.assert_close(guided.log_softmax(-1), (p + 1.5 * (p - q)).log_softmax(-1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 0.0}, "threshold must be above 0, got 0.0"),
        ({"entropy_bound": -1.0}, "entropy_bound must be at least 0, got -1.0"),
        ({"top_p": 1.5}, "top_p must be at most 1, got 1.5"),
        ({"commit_above": 0.0}, "commit_above must be above 0, got 0.0"),
        ({"block_size": -1}, "block_size must be at least 0, got -1"),
        ({"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
        ({"order": "sideways"}, "order must be random, confidence, .* or entropy, got 'sideways'"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnmaskingRule(**values)
    with pytest.raises(ValueError, match="text_guidance_scale must be at least 0"):
        guided_logits(context_logits, context_logits, -1.0)


# --- editing ---


def late_logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
    """Tokens are filled from left to right: a position is 2 with about .6 of the probability, but 3 with .9 behind
    another that is filled."""
    probs, position = torch.full((*noisy_ids.shape, VOCAB), 1e-6), torch.arange(noisy_ids.shape[1])
    is_late = torch.roll(noisy_ids != MASK, 1, dims=1) & (position > 0)
    probs[..., 2], probs[..., 3] = (
        torch.where(is_late, 0.1, 0.6 - 0.01 * position),
        torch.where(is_late, 0.9, 0.3),
    )
    return probs.log()[is_masked]


@pytest.mark.parametrize(
    ("edit_above", "block_size", "after_two_steps", "settled"),
    [
        (1.0, 0, [2, 2, 3, 2, MASK, MASK], 4),
        (0.95, 0, [2, 2, 3, 2, MASK, MASK], 0),  # 3 is not likely enough
        (0.85, 0, [2, 3, 3, 2, MASK, MASK], 0),
        (0.85, 3, [2, 3, 3, 2, MASK, MASK], 3),
        (0.85, 2, [2, 2, 3, 2, MASK, MASK], 4),  # the first block was finished
    ],
)
def test_a_filled_token_is_replaced_where_another_is_likelier_while_its_block_is_open(
    edit_above: float, block_size: int, after_two_steps: list[int], settled: int
) -> None:
    states: list[TextState] = []
    sample = fill(
        torch.full((2, 6), 6), torch.ones(2, 6, dtype=torch.bool), late_logits, edit_above=edit_above,
        block_size=block_size, order="confidence", temperature=0.0, num_steps=3,
        on_step=lambda done, total, state: states.append(state),
    )  # fmt: skip
    assert sample.num_steps.tolist() == [3, 3]  # two positions a step, as without editing
    assert states[1].ids.tolist() == [after_two_steps] * 2
    assert states[1].is_settled.sum(1).tolist() == [settled] * 2
    assert states[2].is_settled.all()
    changed = states[1].ids != states[0].ids
    assert (states[1].confidence[changed & (states[1].ids != MASK)] > 0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_with_editing_a_batch_gives_what_single_calls_give_in_as_many_steps(order) -> None:
    ids, answer_mask = task()
    rule = replace(RULES["plain"], order=order, edit_above=0.5)
    batch = fill(ids, answer_mask, rule=rule)
    assert not torch.equal(batch.ids, fill(ids, answer_mask, rule=replace(rule, edit_above=1.0)).ids)
    assert (batch.ids != MASK).all()
    assert torch.equal(batch.ids[~answer_mask], ids[~answer_mask])
    assert batch.num_steps.max() <= 5
    for row in range(len(ids)):

        def alone(noisy_ids: Tensor, is_masked: Tensor, _: Tensor, row: int = row) -> Tensor:
            return context_logits(noisy_ids, is_masked, torch.tensor([row]))

        one = fill(ids[row : row + 1], answer_mask[row : row + 1], alone, first_seed=row, rule=rule)
        assert torch.equal(one.ids[0], batch.ids[row])
