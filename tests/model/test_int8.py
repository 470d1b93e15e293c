"""The text encoder in 8 bit: nearly the same states, a quarter of the memory."""

import copy

import pytest
import torch
from text_models import word_codec
from torch import Tensor, nn

from ddit.model.encoders import TextCodec
from ddit.model.int8 import Int8Linear, quantize_linears
from ddit.model.small_text import tiny_t5


@pytest.fixture
def codec() -> TextCodec:
    codec = word_codec()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = tiny_t5(codec.encoder.config.vocab_size, d_model=128, num_layers=4, num_heads=4, d_ff=256)
    return TextCodec(codec.tokenizer, encoder)


def ids(codec: TextCodec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, codec.encoder.config.vocab_size, (4, 12), generator=generator)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.02), (torch.bfloat16, 0.03)])
def test_states_stay_close_to_the_full_ones(codec: TextCodec, dtype: torch.dtype, bound: float) -> None:
    full = codec.states(ids(codec))
    codec.to(dtype=dtype)
    quantize_linears(codec.encoder)
    found = codec.states(ids(codec))
    assert found.dtype == dtype
    assert 1e-4 < error(found, full) < bound


def test_the_weights_take_about_a_quarter_of_float32(codec: TextCodec) -> None:
    def num_bytes(kinds: tuple[type, ...]) -> int:
        layers = [m for m in codec.encoder.modules() if isinstance(m, kinds)]
        return sum(
            t.nbytes for m in layers for t in [*m.parameters(recurse=False), *m.buffers(recurse=False)]
        )

    before, table = num_bytes((nn.Linear,)), codec.encoder.get_input_embeddings().weight.clone()
    quantize_linears(codec.encoder)
    assert num_bytes((nn.Linear,)) == 0
    assert num_bytes((Int8Linear,)) / before == pytest.approx(0.25, abs=0.02)
    assert torch.equal(codec.encoder.get_input_embeddings().weight, table)


def test_a_layer_is_within_half_a_step_of_each_weight_whatever_its_rows_size() -> None:
    linear = nn.Linear(8, 3)
    with torch.no_grad():
        linear.weight[0] *= 1e-4
        linear.weight[1] = 0
    quantized = Int8Linear(linear)
    recovered = quantized(torch.eye(8)).T - linear.bias[:, None]
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((recovered - linear.weight).abs() <= 0.51 * step + 1e-7).all()
    assert not recovered[1].any()


def test_gradients_flow_through_to_the_mask_tokens_embedding(codec: TextCodec) -> None:
    def gradient(one: TextCodec) -> Tensor:
        vector = one.encoder.get_input_embeddings().weight[one.mask_token_id].clone().requires_grad_()
        noisy = ids(one)
        noisy[:, ::2] = one.mask_token_id
        with one.embed_mask_as(vector):
            one.states(noisy)[:, 0].sum().backward()
        assert vector.grad is not None
        return vector.grad

    full = gradient(copy.deepcopy(codec))
    quantize_linears(codec.encoder)
    assert error(gradient(codec), full) < 0.1
    assert not any(p.requires_grad for p in codec.encoder.parameters())
