"""Model: parity with the published tensors, and what may and may not depend on what."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddit.model import DualDiT, DualDiTConfig
from ddit.model.embeddings import sincos_positions

CONFIG = DualDiTConfig(
    in_channels=4,
    hidden_size=32,
    depth=3,
    num_heads=2,
    text_dim=24,
    vocab_size=41,
    sample_size=16,
    pos_embed_max_size=12,
)
VARIANTS = {
    "sd3": CONFIG,
    "sd3.5": dataclasses.replace(CONFIG, qk_norm="rms_norm", dual_attention_layers=(0, 1)),
    "isolated": dataclasses.replace(CONFIG, image_attends_text=False),
    "isolated-sd3.5": dataclasses.replace(
        CONFIG, qk_norm="rms_norm", dual_attention_layers=(0, 2), image_attends_text=False
    ),
    "stem": dataclasses.replace(CONFIG, stem=(8, 16)),
    "refiner": dataclasses.replace(CONFIG, refiner=8),
}


def make_model(config: DualDiTConfig) -> DualDiT:
    """Random weights with no zero-initialised path, so that every part reaches the output."""
    model = DualDiT(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15, generator=generator)
    return model


def make_inputs(batch_size: int = 4, size: tuple[int, int] = (8, 12)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(batch_size, 4, *size, generator=generator)
    t = torch.rand(batch_size, generator=generator)
    return latents, t, torch.randn(batch_size, 5, 24, generator=generator)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> DualDiT:
    return make_model(VARIANTS[request.param])


def test_names_and_shapes_at_full_size_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = DualDiT(DualDiTConfig())
    published = json.loads((Path(__file__).parents[1] / "data" / "state_dict_shapes.json").read_text())[
        "d_dit"
    ]
    assert {name: list(x.shape) for name, x in model.state_dict().items()} == published


def test_a_mixed_batch_equals_both_directions_apart(model: DualDiT) -> None:
    latents, t, states = make_inputs()
    mixed = model(latents, t, states, num_t2i=1)
    t2i = model(latents[:1], t[:1], states[:1], num_t2i=1)
    i2t = model(latents[1:], t[1:], states[1:], num_t2i=0)
    torch.testing.assert_close(mixed.velocity, t2i.velocity)
    torch.testing.assert_close(mixed.logits, i2t.logits)
    assert t2i.logits is None
    assert i2t.velocity is None


def test_outputs_of_a_batch_are_those_of_single_samples_with_their_own_times(model: DualDiT) -> None:
    latents, t, states = make_inputs()
    for n in (0, 4):
        batch = model(latents, t, states, num_t2i=n)
        for i in range(4):
            single = model(latents[i : i + 1], t[i : i + 1], states[i : i + 1], num_t2i=min(n, 1))
            out, expected = (batch.velocity, single.velocity) if n else (batch.logits, single.logits)
            torch.testing.assert_close(out[i : i + 1], expected)


def test_the_last_block_leaves_out_only_what_is_unused() -> None:
    model = make_model(CONFIG)
    latents, t, states = make_inputs()
    everything = model(latents, t, states)
    some = model(latents, t, states, num_t2i=2)
    torch.testing.assert_close(some.velocity, everything.velocity[:2])
    torch.testing.assert_close(some.logits, everything.logits[2:])


def test_logits_at_some_positions_equal_all_logits_there(model: DualDiT) -> None:
    latents, t, states = make_inputs()
    everywhere = model(latents, t, states, num_t2i=0).logits
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    torch.testing.assert_close(model(latents, t, states, num_t2i=0, logit_mask=mask).logits, everywhere[mask])


@pytest.mark.parametrize("name", ["isolated", "isolated-sd3.5"])
def test_the_cached_image_side_is_exact(name: str) -> None:
    model = make_model(VARIANTS[name])
    latents, t, states = make_inputs()
    full = model(latents, torch.zeros_like(t), states, num_t2i=0).logits
    torch.testing.assert_close(model.text_logits(states, model.image_kv(latents)), full, atol=1e-6, rtol=1e-5)


def test_isolation_changes_i2t_but_not_t2i() -> None:
    joint, isolated = make_model(VARIANTS["sd3"]), make_model(VARIANTS["isolated"])
    inputs = make_inputs()
    torch.testing.assert_close(joint(*inputs, num_t2i=4).velocity, isolated(*inputs, num_t2i=4).velocity)
    difference = joint(*inputs, num_t2i=0).logits - isolated(*inputs, num_t2i=0).logits
    assert difference.abs().max() > 1e-3


def test_the_null_image_stands_in_for_absent_latents(model: DualDiT) -> None:
    _, t, states = make_inputs()
    output = model(None, t, states)
    assert output.velocity is None
    assert output.logits.shape == (4, 5, 41)
    with torch.no_grad():
        model.null_image_embd.mul_(-1)
    assert (model(None, t, states).logits - output.logits).abs().max() > 1e-4
    with pytest.raises(ValueError, match="null image is of i2t samples only"):
        model(None, t, states, num_t2i=1)


@pytest.mark.parametrize("max_plain_attention", [0, 128], ids=["fused", "plain"])
def test_null_rows_of_a_mixed_batch_are_exactly_the_null_image(
    model: DualDiT, max_plain_attention: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddit.model.attention.MAX_PLAIN_ATTENTION", max_plain_attention)
    latents, t, states = make_inputs(6)
    null_rows = torch.tensor([False, False, False, True, False, True])
    with_images = ~null_rows[2:]

    def gradients(outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
        generator = torch.Generator().manual_seed(5)
        targets = [torch.randn(out.shape, generator=generator) for out in outputs]
        model.zero_grad()
        sum((out * target).sum() for out, target in zip(outputs, targets, strict=True)).backward()
        return [p.grad for p in model.parameters()]

    mixed = model(latents, t, states, num_t2i=2, null_rows=null_rows)
    mixed_outputs = [mixed.velocity, mixed.logits[with_images], mixed.logits[~with_images]]
    mixed_gradients = gradients(mixed_outputs)
    i2t = torch.tensor([2, 4])
    apart = [
        model(latents[:2], t[:2], states[:2], num_t2i=2).velocity,
        model(latents[i2t], t[i2t], states[i2t], num_t2i=0).logits,
        model(None, t[null_rows], states[null_rows]).logits,
    ]
    torch.testing.assert_close(mixed_outputs, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed_gradients, gradients(apart), atol=2e-4, rtol=1e-5)


def test_null_rows_go_through_as_eight_tokens_of_their_own() -> None:
    model, sizes = make_model(CONFIG), []
    model.transformer_blocks[0].register_forward_pre_hook(
        lambda block, args: sizes.append([tuple(group.image.shape[:2]) for group in args[0]])
    )
    latents, t, states = make_inputs()
    plain = model(latents, t, states, num_t2i=1)
    same = model(latents, t, states, num_t2i=1, null_rows=torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(same, plain, atol=0, rtol=0)
    model(latents, t, states, num_t2i=1, null_rows=torch.arange(4) == 3)
    model(latents, t, states, num_t2i=0, null_rows=torch.ones(4, dtype=torch.bool))
    assert sizes == [[(4, 24)], [(4, 24)], [(3, 24), (1, 8)], [(4, 8)]]


def test_null_rows_that_cannot_be_are_refused() -> None:
    model = make_model(CONFIG)
    latents, t, states = make_inputs()
    with pytest.raises(ValueError, match="null image is of i2t samples only"):
        model(latents, t, states, num_t2i=2, null_rows=torch.arange(4) == 1)
    with pytest.raises(ValueError, match="null image is of i2t samples only"):
        model(latents, t, states, null_rows=torch.arange(4) == 1)
    with pytest.raises(ValueError, match="neither keep_image nor features_after"):
        model(latents, t, states, num_t2i=0, null_rows=torch.arange(4) == 1, keep_image=True)


def test_features_are_the_image_tokens_after_the_named_block() -> None:
    model = make_model(CONFIG)
    seen = []
    model.transformer_blocks[1].register_forward_hook(lambda block, args, out: seen.append(out[0][0]))
    output = model(*make_inputs(), num_t2i=4, features_after=1)
    torch.testing.assert_close(output.features, seen[0])
    assert model(*make_inputs(), num_t2i=4).features is None


def test_checkpointed_gradients_equal_plain_ones() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(CONFIG).train()
        model.gradient_checkpointing = checkpointing
        output = model(*make_inputs(), num_t2i=2)
        (output.velocity.square().mean() + output.logits.square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(gradient is not None for name, gradient in gradients[0].items() if name != "null_image_embd")
    torch.testing.assert_close(gradients[0], gradients[1])


def test_positions_are_the_central_crop_of_the_table() -> None:
    """A constant image's tokens differ by position alone: the 2x4 crop starts at row 5, column 4 of 12."""
    model = make_model(CONFIG)
    latents = torch.zeros(1, 4, 4, 8)
    table = sincos_positions(32, 12, 8).view(12, 12, 32)
    tokens = model.pos_embed(latents).view(2, 4, 32) - model.pos_embed.proj.bias
    torch.testing.assert_close(tokens, table[5:7, 4:8], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_blocks_give_the_same_output() -> None:
    model = make_model(CONFIG)
    inputs = make_inputs()
    null_rows = [None, torch.arange(4) == 3]
    plain = [model(*inputs, num_t2i=2, null_rows=rows) for rows in null_rows]
    model.compile_blocks()
    compiled = [model(*inputs, num_t2i=2, null_rows=rows) for rows in null_rows]
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_text_step_gives_the_same_logits_and_begins_a_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(dataclasses.replace(CONFIG, image_attends_text=False))
    latents, _, states = make_inputs()
    cache = model.image_kv(latents)
    plain = model.text_logits(states, cache)
    model.compile_text_step()
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    for step in (1, 2):
        torch.testing.assert_close(model.text_logits(states, cache), plain, atol=1e-5, rtol=1e-4)
        assert len(marks) == step


def test_fresh_weights_follow_the_generator_and_start_at_zero_velocity() -> None:
    one, other = DualDiT(CONFIG), DualDiT(CONFIG)
    for model in (one, other):
        model.init_weights(torch.Generator().manual_seed(7))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), atol=0, rtol=0)
    assert one(*make_inputs()).velocity.abs().max() == 0


class _LargestMatmul(TorchDispatchMode):
    """Records the rows of the largest matrix product with `columns` columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.rows = columns, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_product = func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm)
        if is_product and out.shape[-1] == self.columns:
            self.rows = max(self.rows, out.numel() // self.columns)
        return out


def test_logits_are_computed_nowhere_but_where_asked_for() -> None:
    model = make_model(CONFIG)
    latents, t, states = make_inputs()
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    with _LargestMatmul(columns=41) as seen, torch.no_grad():
        model(latents, t, states, num_t2i=0, logit_mask=mask)
    assert seen.rows == 2


@pytest.mark.parametrize(
    ("latents_size", "message"),
    [((7, 8), "not divisible by the patch size"), ((8, 26), "exceed the position table")],
)
def test_latents_that_do_not_fit_are_refused(latents_size: tuple[int, int], message: str) -> None:
    _, t, states = make_inputs()
    with pytest.raises(ValueError, match=message):
        make_model(CONFIG)(torch.zeros(4, 4, *latents_size), t, states)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "hidden_size 32 is not a multiple of num_heads 3"),
        ({"qk_norm": "layer"}, "qk_norm must be rms_norm, got 'layer'"),
        ({"dual_attention_layers": (3,)}, "exceed depth 3"),
        ({"stem": (8, 8, 8)}, "patch_size 2 is not a multiple of 4, by which a stem of 3 stages"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_a_refiner_adds_nothing_at_first_and_then_what_it_sees_beyond_a_patch() -> None:
    model = DualDiT(dataclasses.replace(CONFIG, patch_size=4, refiner=8))
    latents, t, states = make_inputs(1)
    model.init_weights(torch.Generator().manual_seed(0))
    assert not model(latents, t, states).velocity.any()
    with torch.no_grad():
        model.refiner.out.weight.normal_()  # the tokens still hand on nothing
    latents.requires_grad_()
    velocity = model(latents, t, states).velocity
    assert velocity.shape == latents.shape
    (gradient,) = torch.autograd.grad(velocity[0, :, 0, 3].sum(), latents)
    assert gradient[0, :, 0, 4].abs().max() > 0.01 * gradient.abs().max()


@pytest.mark.parametrize("stem", [(), (8,), (8, 16), (8, 16, 12)])
def test_a_stem_leaves_the_number_of_tokens_and_sees_beyond_a_patch(stem: tuple[int, ...]) -> None:
    model = make_model(dataclasses.replace(CONFIG, patch_size=4, stem=stem))
    latents = torch.randn(1, 4, 16, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tokens = model.pos_embed(latents)
    assert tokens.shape == (1, 8, 32)
    (gradient,) = torch.autograd.grad(tokens[0, 0].sum(), latents)
    assert (gradient[..., 4:] != 0).any() == bool(stem)


def test_a_cache_needs_an_isolated_image_side() -> None:
    with pytest.raises(ValueError, match="image_attends_text is True"):
        make_model(CONFIG).image_kv(make_inputs()[0])
    with pytest.raises(ValueError, match="needs num_t2i"):
        make_model(VARIANTS["isolated"])(*make_inputs())
