"""Text process: closed forms, an enumerable distribution, and what must never happen to a token."""

import itertools
import math
from typing import Any

import pytest
import torch

from ddit.diffusion import masked, text_sampler
from ddit.diffusion.masked import mask_tokens, masked_loss, posterior, sample_t, subs_log_probs
from ddit.diffusion.text_sampler import sample_text
from ddit.objectives import MaskedConfig
from ddit.settings import UnmaskingRule

MASK, EOS, VOCAB = 7, 1, 8


def ids_and_answer(batch_size: int = 3, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, MASK, (batch_size, length), generator=torch.Generator().manual_seed(0))
    answer_mask = torch.ones_like(ids, dtype=torch.bool)
    answer_mask[:, :2] = False
    return ids, answer_mask


def context_logits(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Logits that depend on the whole visible context, on the position and on which sample it is."""
    length = noisy_ids.shape[1]
    context = (noisy_ids * torch.arange(1, length + 1)).sum(1, keepdim=True) + 31 * rows[:, None]
    position = torch.arange(length)[None]
    tokens = torch.arange(VOCAB)
    return torch.sin((context + 3 * position)[..., None] * 0.7 + 1.3 * tokens)[is_masked] * 3


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def fill(ids: torch.Tensor, answer_mask: torch.Tensor, **changes):
    """`order`, `temperature` and `top_p` go to the rule, the rest to `sample_text`."""
    logits_fn = changes.pop("logits_fn", context_logits)
    changes["rule"] = UnmaskingRule(
        **{name: changes.pop(name) for name in ("order", "temperature", "top_p") if name in changes}
    )
    settings = {"num_steps": 5, "mask_token_id": MASK, "generators": generators(*range(len(ids)))} | changes
    return sample_text(logits_fn, ids, answer_mask, **settings)


def test_an_oracle_has_no_loss() -> None:
    ids, answer_mask = ids_and_answer()

    def oracle(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return 100.0 * torch.nn.functional.one_hot(ids[rows][is_masked], VOCAB)

    loss = masked_loss(
        oracle,
        ids,
        answer_mask,
        mask_token_id=MASK,
        cfg=MaskedConfig(),
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(loss, torch.zeros(3))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_times_is_one_and_the_rest_is_uniform(share: float) -> None:
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t = masked.time_of_uniform(u, share)
    assert (t == 1).double().mean() == pytest.approx(share)
    rest = t[t < 1]
    expected = 0.001 + 0.999 * (torch.arange(len(rest), dtype=torch.float64) + 0.5) / max(len(rest), 1)
    torch.testing.assert_close(rest, expected)
    if share == 0:
        assert torch.equal(t, masked.time_of_uniform(u))


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (MaskedConfig(), [1 / 0.5 * 2 / 6, 1 / 0.1 * 1 / 6, 0.0]),
        (MaskedConfig(normalizer="answer"), [1 / 0.5 * 2 / 4, 1 / 0.1 * 1 / 4, 0.0]),
        (MaskedConfig(max_weight=4.0), [1 / 0.5 * 2 / 6, 4 * 1 / 6, 0.0]),
    ],
)
def test_uniform_logits_cost_log_vocabulary_a_masked_token(cfg: MaskedConfig, expected: list[float]) -> None:
    """The mask token is ruled out, so a uniform prediction spreads over V - 1 tokens."""
    ids, answer_mask = ids_and_answer()
    noisy = ids.clone()
    noisy[0, 2] = noisy[0, 5] = noisy[1, 3] = MASK
    loss = masked_loss(
        lambda noisy_ids, is_masked, rows: torch.zeros(int(is_masked.sum()), VOCAB),
        ids,
        answer_mask,
        mask_token_id=MASK,
        cfg=cfg,
        t=torch.tensor([0.5, 0.1, 0.9]),
        noisy_ids=noisy,
    )
    torch.testing.assert_close(loss, torch.tensor(expected) * math.log(VOCAB - 1))


def test_a_short_answer_counts_as_much_as_a_long_one_without_the_padding() -> None:
    """Everything is masked at t = 1 and costs log (V - 1): the loss is that times positions over those that count."""
    end = 0
    ids = torch.tensor([[5, 5, 1, end, end, end], [5, 5, 1, 2, 3, end], [5, 5, 1, end, 2, 3]])
    answer = torch.ones_like(ids, dtype=torch.bool)
    answer[:, :2] = False
    given = {"mask_token_id": MASK, "t": torch.ones(3), "noisy_ids": torch.where(answer, MASK, ids)}

    def loss(**normalizer: Any) -> list[float]:
        def uniform(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return torch.zeros(int(is_masked.sum()), VOCAB)

        found = masked_loss(uniform, ids, answer, cfg=MaskedConfig(**normalizer), eos_token_id=end, **given)
        return (found / math.log(VOCAB - 1)).tolist()

    assert loss(normalizer="answer") == pytest.approx([1, 1, 1])
    assert loss(normalizer="unpadded") == pytest.approx([4 / 2, 1, 1])
    with pytest.raises(ValueError, match="end-of-text"):
        masked_loss(
            lambda *_: torch.zeros(12, VOCAB), ids, answer, cfg=MaskedConfig(normalizer="unpadded"), **given
        )


def test_the_expected_loss_is_the_negative_log_likelihood_of_independent_tokens() -> None:
    """Where tokens are independent, the NELBO is exact: E_t of the loss is -log p (up to eps)."""
    probs = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.1, 0.15, 0.1])
    ids = torch.tensor([[2, 3, 0, 5]]).expand(40_000, -1)
    answer_mask = torch.ones_like(ids, dtype=torch.bool)
    logits = torch.cat([probs.log(), torch.tensor([50.0])])
    loss = masked_loss(
        lambda noisy_ids, is_masked, rows: logits.expand(int(is_masked.sum()), -1),
        ids,
        answer_mask,
        mask_token_id=MASK,
        cfg=MaskedConfig(),
        generator=torch.Generator().manual_seed(0),
    )
    expected = -probs[ids[0]].log().sum().item()
    assert loss.mean().item() * 4 == pytest.approx(expected, rel=0.02)


def test_times_are_stratified_over_the_global_batch() -> None:
    """Two ranks of four samples: each of the eight equal slices of (0, 1) gets exactly one time."""
    halves = [
        sample_t(4, generator=torch.Generator().manual_seed(rank), offset=4 * rank, total=8)
        for rank in range(2)
    ]
    assert (torch.cat(halves) * 8).floor().tolist() == list(range(8))


def test_only_the_answer_is_masked_and_in_the_share_that_t_says() -> None:
    ids, answer_mask = ids_and_answer(20_000)
    t = torch.full((20_000,), 0.3)
    noisy = mask_tokens(ids, answer_mask, t, mask_token_id=MASK, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, :2], ids[:, :2])
    is_masked = noisy == MASK
    assert torch.equal(noisy[~is_masked], ids[~is_masked])
    assert is_masked[:, 2:].float().mean().item() == pytest.approx(0.999 * 0.3, abs=0.005)


def test_the_posterior_normalises_to_one_and_keeps_s_over_t_masked() -> None:
    p_x0 = subs_log_probs(torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0)), MASK).exp()
    q_xs = posterior(p_x0.clone(), 0.6, 0.5, MASK)
    torch.testing.assert_close(q_xs.sum(-1), torch.full((5,), 0.6))
    torch.testing.assert_close(q_xs[:, MASK], torch.full((5,), 0.5))


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("num_steps", [1, 3, 40])
def test_pinned_tokens_stay_and_the_mask_token_is_never_produced(
    order: str, temperature: float, num_steps: int
) -> None:
    ids, answer_mask = ids_and_answer()
    answer_mask[1] = False
    answer_mask[1, 3] = True
    sample = fill(
        ids, answer_mask, order=order, temperature=temperature, num_steps=num_steps, eos_token_id=EOS
    )
    assert torch.equal(sample.ids[~answer_mask], ids[~answer_mask])
    assert (sample.ids != MASK).all()


def test_banned_tokens_are_never_produced() -> None:
    ids, answer_mask = ids_and_answer(8, 12)
    sample = fill(ids, answer_mask, banned_ids=(0, EOS, 5), temperature=2.0)
    assert not torch.isin(sample.ids[answer_mask], torch.tensor([0, EOS, 5])).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_the_logits_that_a_model_returned_stay_as_they_are(temperature: float) -> None:
    ids, answer_mask = ids_and_answer()
    returned = []

    def logits_fn(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        logits = context_logits(noisy_ids, is_masked, rows)
        returned.append((logits, logits.clone()))
        return logits

    fill(ids, answer_mask, logits_fn=logits_fn, banned_ids=(0, 5), temperature=temperature)
    assert all(torch.equal(now, before) for now, before in returned)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_batch_gives_what_single_calls_give(order: str) -> None:
    ids, answer_mask = ids_and_answer(4, 9)
    answer_mask[2, :6] = False  # rows that finish at different times
    batch = fill(ids, answer_mask, order=order, eos_token_id=EOS, generators=generators(5, 6, 7, 8))
    for row in range(4):

        def single_logits(noisy_ids, is_masked, rows, row=row):
            return context_logits(noisy_ids, is_masked, rows + row)

        single = fill(
            ids[row : row + 1], answer_mask[row : row + 1], order=order, eos_token_id=EOS,
            generators=generators(5 + row), logits_fn=single_logits,
        )  # fmt: skip
        assert torch.equal(single.ids[0], batch.ids[row])
        assert single.num_steps[0] == batch.num_steps[row]


@pytest.mark.parametrize("order", ["random", "confidence", "margin", "entropy"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_distributions_in_parts_give_the_same_text(
    order: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, answer_mask = ids_and_answer(4, 9)
    options = {"order": order, "temperature": temperature, "top_p": 0.9, "eos_token_id": EOS}
    states = [[], []]
    for num_bytes, kept in zip((2**30, 1), states, strict=True):
        monkeypatch.setattr(text_sampler, "CACHE_BYTES", num_bytes)

        def keep(done, total, state, kept=kept):
            kept += [state.ids, state.confidence]

        fill(ids, answer_mask, generators=generators(1, 2, 3, 4), on_step=keep, **options)
    torch.testing.assert_close(states[0], states[1])


def test_the_same_seed_gives_the_same_text_and_another_another() -> None:
    ids, answer_mask = ids_and_answer(4, 12)
    runs = [
        fill(ids, answer_mask, generators=generators(*seeds)).ids
        for seeds in ([1, 2, 3, 4],) * 2 + ([9, 8, 7, 6],)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_steps_that_change_nothing_are_not_taken() -> None:
    """400 steps over 4 positions change a sample at most 4 times."""
    ids, answer_mask = ids_and_answer()
    calls = []

    def counted(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        calls.extend(rows.tolist())
        return context_logits(noisy_ids, is_masked, rows)

    sample = fill(ids, answer_mask, num_steps=400, logits_fn=counted)
    assert sample.num_steps.max() <= 4
    assert sample.num_steps.tolist() == [calls.count(row) for row in range(3)]


def test_the_rest_is_filled_once_the_end_of_text_is_reached() -> None:
    """Position 3 is the end of text with certainty; 4 and 5 are unsure and would be filled in last."""
    ids, answer_mask = ids_and_answer(1)

    def logits_fn(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 6, VOCAB)
        logits[0, 2, 3], logits[0, 3, EOS] = 20.0, 30.0
        return logits[is_masked]

    settings = {"order": "confidence", "temperature": 0.0, "num_steps": 4, "logits_fn": logits_fn}
    stopped = fill(ids, answer_mask, eos_token_id=EOS, **settings)
    assert stopped.ids[0, 2:].tolist() == [3, EOS, EOS, EOS]
    assert stopped.num_steps.tolist() == [2]
    unstopped = fill(ids, answer_mask, **settings)
    assert unstopped.num_steps.tolist() == [4]


def test_an_end_of_text_after_masked_positions_stops_nothing() -> None:
    ids, answer_mask = ids_and_answer(1)

    def logits_fn(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 6, VOCAB)
        logits[0, 4, EOS] = 30.0  # sure of the end first, and of what stands before it later
        logits[0, 2, 3] = logits[0, 3, 4] = 5.0
        return logits[is_masked]

    sample = fill(
        ids,
        answer_mask,
        eos_token_id=EOS,
        order="confidence",
        temperature=0.0,
        num_steps=4,
        logits_fn=logits_fn,
    )
    assert sample.ids[0, 2:].tolist() == [3, 4, EOS, EOS]


def test_many_ancestral_steps_sample_an_enumerable_joint_distribution() -> None:
    """With exact conditionals of a joint over two tokens, one-at-a-time unmasking draws from that joint."""
    joint = torch.tensor([[0.4, 0.1], [0.05, 0.45]])  # p(a, b) over tokens {2, 3}

    def exact(noisy_ids: torch.Tensor, is_masked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        probs = torch.zeros(*noisy_ids.shape, VOCAB)
        for row, (a, b) in enumerate(noisy_ids.tolist()):
            given_b = joint.sum(1) if b == MASK else joint[:, b - 2]
            given_a = joint.sum(0) if a == MASK else joint[a - 2]
            probs[row, 0, 2:4], probs[row, 1, 2:4] = given_b / given_b.sum(), given_a / given_a.sum()
        return probs.log()[is_masked]

    count = 1000
    ids = torch.full((count, 2), 2)
    sample = sample_text(
        exact, ids, torch.ones_like(ids, dtype=torch.bool), num_steps=40, mask_token_id=MASK,
        generators=[torch.Generator().manual_seed(0)] * count,
    )  # fmt: skip
    for a, b in itertools.product((0, 1), repeat=2):
        share = ((sample.ids[:, 0] == a + 2) & (sample.ids[:, 1] == b + 2)).float().mean().item()
        assert share == pytest.approx(joint[a, b].item(), abs=0.06)


def test_every_step_is_reported_and_bad_settings_are_refused() -> None:
    ids, answer_mask = ids_and_answer()
    seen = []
    fill(ids, answer_mask, on_step=lambda done, total, _: seen.append((done, total)))
    assert [done for done, _ in seen] == [*range(1, len(seen)), 5]
    assert {total for _, total in seen} == {5}
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        fill(ids, answer_mask, num_steps=0)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        fill(ids, answer_mask, temperature=-1.0)


def test_a_share_of_the_visible_answer_is_replaced_by_tokens_of_its_text() -> None:
    ids = torch.arange(4000).reshape(2, 2000) + 10
    answer, noisy = torch.arange(2000).expand(2, -1) > 5, ids.clone()
    noisy[:, 500:1000] = MASK
    uniform = torch.rand(2, 2, 2000, generator=torch.Generator().manual_seed(0))
    found = masked.replace_tokens(noisy, ids, answer, 0.3, mask_token_id=MASK, uniform=uniform)
    changed = found != noisy
    assert not changed[:, :6].any()
    assert not changed[:, 500:1000].any()
    assert changed[:, 1000:].float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert all(set(row.tolist()) <= {MASK, *own.tolist()} for row, own in zip(found, ids, strict=True))
    none = masked.replace_tokens(noisy, ids, answer, 0.0, mask_token_id=MASK, uniform=uniform)
    assert torch.equal(none, noisy)


def test_sharpening_adds_the_entropy_of_right_predictions() -> None:
    """Of a certain model it is 0; of a uniform one it is log V, where the first token, the likeliest, is right."""
    ids, answer = torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.bool)
    given = {"mask_token_id": MASK, "t": torch.ones(1), "noisy_ids": torch.full((1, 8), MASK)}

    def loss(logit: float, sharpen: float) -> float:
        logits = logit * torch.nn.functional.one_hot(torch.zeros(8, dtype=torch.long), VOCAB).float()
        cfg = MaskedConfig(sharpen=sharpen)
        return masked_loss(lambda *_: logits, ids, answer, cfg=cfg, **given).item()

    uniform = math.log(VOCAB - 1)
    assert loss(0.0, 0.5) - loss(0.0, 0.0) == pytest.approx(0.5 * uniform, abs=1e-5)
    assert loss(50.0, 0.5) == pytest.approx(0.0, abs=1e-5)
    assert loss(-50.0, 0.5) == loss(-50.0, 0.0)  # another one is likelier
