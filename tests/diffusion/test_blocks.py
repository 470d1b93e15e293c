"""Block diffusion: its law and its bound on texts that can be enumerated, and who takes part in which block."""

import itertools

import pytest
import torch
from torch import Tensor
from toy_texts import MASK, VOCAB, bound, by_orders, conditionals_of, context_logits

from ddit.diffusion.blocks import block_times, sample_blocks
from ddit.diffusion.likelihood import mask_sets
from ddit.diffusion.masked import mask_tokens, masked_token_nll, nll_weights
from ddit.diffusion.text_sampler import TextState, sample_text
from ddit.model.text_blocks import text_blocks
from ddit.objectives import MaskedConfig
from ddit.settings import UnmaskingRule

JOINT = torch.rand((VOCAB - 1,) * 3, generator=torch.Generator().manual_seed(0)) ** 3
JOINT /= JOINT.sum()
TEXTS = torch.tensor([*itertools.product(range(VOCAB - 1), repeat=3)])
EVERY = 10**6


def behind(logits_fn, block_size: int):
    """Logits in blocks: nothing after a position's block is seen."""

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        blocks = torch.arange(noisy_ids.shape[1]) // block_size
        last = torch.where(is_masked, blocks, -1).amax(1, keepdim=True)
        return logits_fn(torch.where(blocks > last, MASK, noisy_ids), is_masked, rows)

    return logits


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_bound_of_a_consistent_model_is_its_log_likelihood_with_any_blocks(block_size: int) -> None:
    sets = mask_sets(3, EVERY, torch.Generator(), block_size=block_size)
    assert sets.is_exact
    predict = behind(conditionals_of(JOINT), block_size)
    found = torch.tensor([bound(predict, ids, sets)[0] for ids in TEXTS])
    torch.testing.assert_close(found.exp(), JOINT.flatten(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block_size", [2, 3])
def test_the_bound_of_any_model_is_the_sum_of_the_blocks_means_over_orders(block_size: int) -> None:
    ids, predict = torch.tensor([0, 2, 1, 1, 0]), behind(context_logits, block_size)
    expected = 0.0
    for start in range(0, 5, block_size):
        rest = ids.clone()
        rest[start:] = MASK
        rest[start : start + block_size] = ids[start : start + block_size]
        expected += by_orders(predict, rest, [[i] for i in range(start, min(5, start + block_size))])
    found, error = bound(predict, ids, mask_sets(5, EVERY, torch.Generator(), block_size=block_size))
    assert error == 0
    assert found == pytest.approx(expected, abs=1e-5)


def test_few_sets_of_each_block_give_the_bound_on_average() -> None:
    ids, predict = torch.tensor([0, 2, 1, 1, 0, 2]), behind(context_logits, 3)
    exact, _ = bound(predict, ids, mask_sets(6, EVERY, torch.Generator(), block_size=3))
    draws = [mask_sets(6, 4, torch.Generator().manual_seed(seed), block_size=3) for seed in range(300)]
    assert {len(sets.is_masked) for sets in draws} == {4}
    found = torch.tensor([bound(predict, ids, sets)[0] for sets in draws])
    assert abs(found.mean() - exact) < 4 * found.std() / 300**0.5


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_training_loss_is_the_bound_on_average(block_size: int) -> None:
    """-log p by times and masks as they are drawn in training: blocks with noise behind clean ones, summed."""
    count = 20_000
    ids = torch.tensor([1, 0, 2]).expand(count, -1)
    answer = torch.ones_like(ids, dtype=torch.bool)
    blocks = text_blocks(answer, block_size).expand(count, -1)
    g = torch.Generator().manual_seed(0)
    t = block_times(torch.rand(count, generator=g), blocks)
    noisy = mask_tokens(ids, answer, t, mask_token_id=MASK, generator=g)
    weights = nll_weights(ids, answer, t, MaskedConfig(normalizer="answer")) * 3
    loss, table = torch.zeros(count), behind(conditionals_of(JOINT), block_size)
    for block in range(1, int(blocks.max()) + 1):
        now = torch.where(blocks == block, noisy, ids)
        seen, which = now.unique(dim=0, return_inverse=True)
        nll = masked_token_nll(table, ids[: len(seen)], seen, answer[: len(seen)], mask_token_id=MASK)[which]
        loss += (weights * nll).sum(1)
    expected = -JOINT[1, 0, 2].log()
    assert abs(loss.mean() - expected) < 4 * loss.std() / count**0.5 + 0.01 * expected  # times begin at 1e-3


@pytest.mark.parametrize(("block_size", "num_steps"), [(1, 1), (2, 60), (3, 60)])
def test_texts_are_drawn_from_the_models_law(block_size: int, num_steps: int) -> None:
    count = 4000
    ids = torch.zeros(count, 3, dtype=torch.long)
    blocks = text_blocks(torch.ones_like(ids, dtype=torch.bool), block_size)
    predict = conditionals_of(JOINT)

    def shared(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        both, which = torch.stack([noisy_ids, is_masked.long()], 1).unique(dim=0, return_inverse=True)
        table = torch.zeros(len(both), 3, VOCAB)
        table[both[:, 1].bool()] = predict(both[:, 0], both[:, 1].bool(), rows)
        return table[which][is_masked]

    torch.manual_seed(0)
    found = sample_blocks(shared, ids, blocks, num_steps=num_steps, mask_token_id=MASK).ids
    shares = (found[:, None] == TEXTS).all(2).float().mean(0)
    error = (JOINT.flatten() * (1 - JOINT.flatten()) / count).sqrt()
    assert ((shares - JOINT.flatten()).abs() < 4 * error + 0.004).all()


def test_one_block_is_the_process_without_blocks_step_by_step() -> None:
    ids, rule = torch.zeros(3, 5, dtype=torch.long), UnmaskingRule(order="confidence")
    answer = torch.arange(5).expand(3, -1) > 0
    states: list[list[TextState]] = [[], []]

    def run(sample, given, seen: list[TextState]):
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return sample(
            context_logits, ids, given, num_steps=3, mask_token_id=MASK, eos_token_id=2, rule=rule,
            generators=generators, on_step=lambda done, total, state: seen.append(state),
        )  # fmt: skip

    found, expected = (
        run(sample_blocks, text_blocks(answer, 4), states[0]),
        run(sample_text, answer, states[1]),
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(states[0], states[1])


def test_a_text_ends_with_its_block_and_takes_no_more_steps() -> None:
    """Row r says its end (2) in block r + 1; steps are reported with what is closed, until the last of all blocks."""
    began: list[tuple[int, list[int]]] = []
    steps: list[tuple[int, int]] = []

    def predict(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        ends = (torch.arange(9) >= 2 * rows[:, None] + 1)[is_masked]
        return torch.stack([torch.zeros(len(ends)), 50.0 * ~ends, 50.0 * ends, torch.zeros(len(ends))], dim=1)

    def watch(done: int, total: int, state: TextState) -> None:
        steps.append((done, total))
        assert (state.confidence[state.ids == MASK] == 0).all()

    ids = torch.zeros(2, 9, dtype=torch.long)
    blocks = text_blocks(torch.arange(9).expand(2, -1) > 0, 2)
    found = sample_blocks(
        predict, ids, blocks, num_steps=2, mask_token_id=MASK, eos_token_id=2, rule=UnmaskingRule(order="confidence"),
        on_step=watch, on_block=lambda block, rows: began.append((block, rows.tolist())),
    )  # fmt: skip
    assert found.ids.tolist() == [[0, 2, 2, 2, 2, 2, 2, 2, 2], [0, 1, 1, 2, 2, 2, 2, 2, 2]]
    assert began == [(1, [0, 1]), (2, [1])]
    assert found.num_steps.tolist() == [1, 3]
    assert steps[-1] == (8, 8)
    assert steps == sorted(set(steps))
