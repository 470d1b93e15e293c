"""A model as callables: what is reused between steps is exact or is computed again when it should be."""

import pytest
import torch
from tiny_models import randomize, tiny_text_codec
from torch import Tensor

from ddit.diffusion.masked import LogitsFn
from ddit.diffusion.text_sampler import sample_text
from ddit.diffusion.unmasking import answer_blocks
from ddit.inference.callables import ImageContext, Refresh, TextStates, logits_fn, velocity_fn
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.encoders import TextCodec
from ddit.model.small_text import tiny_t5
from ddit.model.t5_cache import T5Cache
from ddit.settings import UnmaskingRule

LENGTH, BATCH = 7, 4


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return tiny_text_codec()


def make_model(codec: TextCodec, **changes) -> DualDiT:
    config = DualDiTConfig(
        in_channels=4, hidden_size=32, depth=3, num_heads=2, text_dim=codec.width, vocab_size=codec.vocab_size,
        sample_size=8, pos_embed_max_size=8, **changes,
    )  # fmt: skip
    model = DualDiT(config).eval().requires_grad_(False)
    randomize(model, 5)
    return model


def make_task(codec: TextCodec) -> tuple[Tensor, Tensor]:
    """Ids and masked positions of four texts."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, codec.mask_token_id, (BATCH, LENGTH), generator=generator)
    is_masked = torch.rand(BATCH, LENGTH, generator=generator) < 0.6
    is_masked[:, 3] = True
    return torch.where(is_masked, codec.mask_token_id, ids), is_masked


def make_latents(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def blocks(block_size: int = 0) -> Tensor:
    return answer_blocks(torch.ones(BATCH, LENGTH, dtype=torch.bool), block_size)


def whole_logits(
    model: DualDiT, codec: TextCodec, latents: Tensor | None, ids: Tensor, is_masked: Tensor
) -> Tensor:
    return model(latents, torch.zeros(len(ids)), codec.states(ids), num_t2i=0, logit_mask=is_masked).logits


ROWS, IMAGES = torch.arange(BATCH), torch.tensor([0, 1, 0, 0])


# --- the image side ---


@pytest.mark.parametrize("extra", [{}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 2)}])
def test_texts_that_share_an_image_take_from_its_one_cache_what_a_whole_forward_pass_gives(
    codec, extra
) -> None:
    model = make_model(codec, image_attends_text=False, **extra)
    (ids, is_masked), latents = make_task(codec), make_latents(2)
    context = ImageContext(latents, model.image_kv(latents), IMAGES)
    cached = logits_fn(model, TextStates(codec), context)
    torch.testing.assert_close(
        cached(ids, is_masked, ROWS),
        whole_logits(model, codec, latents[IMAGES], ids, is_masked),
        atol=1e-5,
        rtol=1e-5,
    )
    some = torch.tensor([3, 1])  # finished samples have left
    torch.testing.assert_close(
        cached(ids[some], is_masked[some], some),
        whole_logits(model, codec, latents[IMAGES[some]], ids[some], is_masked[some]),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def test_the_null_image_is_read_once_as_well(codec) -> None:
    model = make_model(codec, image_attends_text=False)
    ids, is_masked = make_task(codec)
    context = ImageContext(None, model.image_kv(None), torch.zeros_like(IMAGES))
    cached = logits_fn(model, TextStates(codec), context)
    torch.testing.assert_close(
        cached(ids, is_masked, ROWS), whole_logits(model, codec, None, ids, is_masked), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("isolated", [True, False])
def test_a_whole_pass_keeps_the_image_side_as_it_was_for_its_text(codec, isolated: bool) -> None:
    model = make_model(codec, image_attends_text=not isolated)
    ids, latents = make_task(codec)[0], make_latents(BATCH)
    states = codec.states(ids)
    whole = model(latents, torch.zeros(BATCH), states, num_t2i=0, keep_image=True)
    torch.testing.assert_close(model.text_logits(states, whole.image_kv), whole.logits, atol=1e-5, rtol=1e-5)
    others = codec.states(ids.flip(0))
    exact = model(latents, torch.zeros(BATCH), others, num_t2i=0).logits
    error = (model.text_logits(others, whole.image_kv) - exact).abs().max()
    assert (error < 1e-4) == isolated


def test_renewal_in_every_pass_is_no_cache_bit_for_bit(codec) -> None:
    model, latents = make_model(codec), make_latents(2)
    ids = torch.randint(3, codec.mask_token_id, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    answer_mask = torch.ones_like(ids, dtype=torch.bool)
    filled, seen = [], []
    for refresh in (None, Refresh(1, blocks())):
        predict = joint_logits(model, codec, latents, IMAGES, refresh)

        def watched(noisy_ids, is_masked, rows, predict=predict):
            seen.append(predict(noisy_ids, is_masked, rows).clone())
            return seen[-1].clone()

        sample = sample_text(
            watched, ids, answer_mask, num_steps=5, mask_token_id=codec.mask_token_id,
            rule=UnmaskingRule(order="confidence", temperature=0.0),
        )  # fmt: skip
        filled.append(sample.ids)
    assert torch.equal(*filled)
    assert len(seen) == 10
    assert all(torch.equal(a, b) for a, b in zip(seen[:5], seen[5:], strict=True))


def test_samples_of_different_age_in_one_pass_are_what_they_are_alone(codec) -> None:
    model, latents = make_model(codec), make_latents(2)
    ids, is_masked = make_task(codec)
    later = torch.where(is_masked & (torch.arange(LENGTH) != 3), 4, ids)
    both = joint_logits(model, codec, latents, IMAGES, Refresh(2, blocks()))
    both(ids, is_masked, ROWS)
    both(ids[:2], is_masked[:2], ROWS[:2])  # these are due in the next step, the others not
    mixed, still = both(later, later == codec.mask_token_id, ROWS), later == codec.mask_token_id
    start = 0
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = joint_logits(model, codec, latents, IMAGES[one], Refresh(2, blocks()[one]))
        alone(ids[one], is_masked[one], torch.tensor([0]))
        if row < 2:
            alone(ids[one], is_masked[one], torch.tensor([0]))
        single = alone(later[one], still[one], torch.tensor([0]))
        count = int(still[row].sum())
        torch.testing.assert_close(mixed[start : start + count], single, atol=1e-5, rtol=1e-5)
        start += count
        exact = whole_logits(model, codec, latents[IMAGES[one]], later[one], still[one])
        assert ((single - exact).abs().max() < 1e-4) == (row < 2)


def test_what_is_kept_is_renewed_every_few_passes_and_where_a_block_begins() -> None:
    everything = torch.ones(1, LENGTH, dtype=torch.bool)
    second_block = torch.arange(LENGTH)[None] >= 3
    row = torch.tensor([2])

    def dues(every: int, block_size: int, *steps: Tensor) -> list[bool]:
        refresh = Refresh(every, blocks(block_size))
        return [bool(refresh.due(is_masked, row)) for is_masked in steps]

    assert dues(3, 0, *[everything] * 7) == [True, False, False, True, False, False, True]
    assert dues(1, 0, *[everything] * 3) == [True, True, True]
    assert dues(0, 0, *[everything] * 3) == [True, False, False]
    assert dues(0, 3, everything, everything, second_block, second_block) == [True, False, True, False]
    assert dues(3, 3, everything, second_block, second_block, second_block, second_block) == [
        True, True, False, False, True,
    ]  # fmt: skip


# --- the text encoder ---


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_renewed_text_has_the_encoders_own_states(num_layers: int) -> None:
    torch.manual_seed(0)
    encoder = tiny_t5(40, d_model=24, num_layers=num_layers, num_heads=2, d_ff=32).eval()
    cache, always = T5Cache(encoder, BATCH), torch.ones(BATCH, dtype=torch.bool)
    for seed in range(3):
        ids = torch.randint(3, 40, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected, found = encoder(input_ids=ids).last_hidden_state, cache.states(ids, ROWS, always)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_filled_positions_are_computed_against_what_is_kept_of_the_others() -> None:
    """With one layer, keys and values are those of the tokens alone: the new position is exact, the others are old."""
    torch.manual_seed(0)
    encoder = tiny_t5(40, d_model=24, num_layers=1, num_heads=2, d_ff=32).eval()
    cache = T5Cache(encoder, BATCH)
    ids = torch.randint(3, 40, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 2], changed[1, 0], changed[1, 5] = 39, 38, 37
    with torch.no_grad():
        before = cache.states(ids, ROWS, torch.ones(BATCH, dtype=torch.bool)).clone()
        found = cache.states(changed, ROWS, torch.tensor([False, False, True, False]))
        exact = encoder(input_ids=changed).last_hidden_state
    is_new = ids != changed
    torch.testing.assert_close(found[is_new], exact[is_new], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[~is_new], before[~is_new], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(exact[0, 3], before[0, 3], atol=1e-3)


def test_states_are_computed_once_a_pass(codec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = codec.states
    monkeypatch.setattr(codec, "states", lambda ids: calls.append(len(ids)) or plain(ids))
    states_fn, (ids, is_masked) = TextStates(codec), make_task(codec)
    for _ in range(2):
        states_fn(ids, is_masked, ROWS)
    assert calls == [BATCH]
    assert not torch.equal(states_fn(ids.flip(0), is_masked, ROWS), states_fn(ids, is_masked, ROWS))


# --- the callables ---


def joint_logits(
    model: DualDiT, codec: TextCodec, latents: Tensor | None, index: Tensor, refresh: Refresh | None = None
) -> LogitsFn:
    return logits_fn(model, TextStates(codec), ImageContext(latents, None, index), refresh)


def test_the_velocity_is_under_both_prompts_or_under_the_conditional_one_alone(codec) -> None:
    model, latents = make_model(codec), make_latents(BATCH)
    states = codec.states(torch.cat([make_task(codec)[0], make_task(codec)[0].flip(0)]))
    t = torch.full((2 * BATCH,), 0.4)
    velocity = velocity_fn(model, states)
    both = velocity(torch.cat([latents, latents]), t)
    expected = model(torch.cat([latents, latents]), t, states, num_t2i=2 * BATCH).velocity
    assert torch.equal(both, expected)
    torch.testing.assert_close(velocity(latents, t[:BATCH]), both[BATCH:], atol=1e-5, rtol=1e-5)


def test_a_row_may_have_the_null_image_among_others(codec) -> None:
    model, latents = make_model(codec), make_latents(2)
    ids, is_masked = make_task(codec)
    nulls = torch.tensor([False, True, False, True])
    mixed = logits_fn(model, TextStates(codec), ImageContext(latents, None, IMAGES, nulls))(
        ids, is_masked, ROWS
    )
    alone = whole_logits(model, codec, None, ids[nulls], is_masked[nulls])
    is_null = nulls[:, None].expand_as(is_masked)[is_masked]
    torch.testing.assert_close(mixed[is_null], alone, atol=1e-5, rtol=1e-5)
