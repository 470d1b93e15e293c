"""The chunked cross-entropy against the plain one, and what it must not hold in memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddit.diffusion.masked import subs_log_probs
from ddit.train.cross_entropy import weighted_nll

TOKENS, DIM, VOCAB, RULED_OUT = 23, 8, 31, 30


def make_inputs(num_tokens: int = TOKENS, *, vocab: int = VOCAB) -> tuple[list[Tensor], Tensor, Tensor]:
    """Hidden states, weight and bias; targets; weights of the tokens."""
    g = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=g).requires_grad_()
        for shape in ((num_tokens, DIM), (vocab, DIM), (vocab,))
    ]
    return (
        leaves,
        torch.randint(0, RULED_OUT, (num_tokens,), generator=g),
        torch.rand(num_tokens, generator=g),
    )


def plain_nll(leaves: list[Tensor], targets: Tensor, weights: Tensor, sharpen: float = 0.0) -> Tensor:
    hidden, weight, bias = leaves
    log_probs = subs_log_probs(nn.functional.linear(hidden, weight, bias), RULED_OUT)
    nll = -log_probs.gather(1, targets[:, None])[:, 0]
    kept = log_probs[:, [*range(RULED_OUT), *range(RULED_OUT + 1, log_probs.shape[1])]]
    entropy = torch.distributions.Categorical(logits=kept).entropy()
    return (weights * (nll + sharpen * (log_probs.argmax(1) == targets) * entropy)).sum()


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, leaves))


@pytest.mark.parametrize("sharpen", [0.0, 0.7])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 23, 100])
def test_chunks_give_the_loss_and_gradients_of_the_plain_cross_entropy(
    chunk_size: int | None, sharpen: float
) -> None:
    leaves, targets, weights = make_inputs()
    if sharpen:  # some are right
        targets[::2] = subs_log_probs(nn.functional.linear(*leaves), RULED_OUT).argmax(1)[::2]
    loss = weighted_nll(
        *leaves, targets, weights, ruled_out=RULED_OUT, sharpen=sharpen, chunk_size=chunk_size
    )
    expected = plain_nll(leaves, targets, weights, sharpen)
    assert (expected == plain_nll(leaves, targets, weights)) == (sharpen == 0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(loss, leaves), gradients(expected, leaves), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_near_to_float32_as_the_plain_path(chunk_size: int | None, autocast: bool) -> None:
    leaves, targets, weights = make_inputs(200)
    exact = gradients(plain_nll(leaves, targets, weights), leaves)
    used = leaves if autocast else [x.detach().bfloat16().requires_grad_() for x in leaves]

    def errors(function, **options) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = function(*options.pop("arguments"), targets, weights, **options)
        found = gradients(loss, used)
        assert [x.dtype for x in found] == [x.dtype for x in used]
        assert loss.dtype == torch.float32
        return [(a.float() - b).norm().item() / b.norm().item() for a, b in zip(found, exact, strict=True)]

    ours = errors(weighted_nll, arguments=used, ruled_out=RULED_OUT, chunk_size=chunk_size)
    plain = errors(plain_nll, arguments=[used])
    assert all(a < 1.3 * b + 1e-4 for a, b in zip(ours, plain, strict=True))
    assert max(ours) < 0.02


def test_no_token_at_all_gives_a_zero_loss_and_zero_gradients() -> None:
    leaves, targets, weights = make_inputs(0)
    loss = weighted_nll(*leaves, targets, weights, ruled_out=RULED_OUT)
    assert loss == 0
    assert [part.abs().sum().item() for part in gradients(loss, leaves)] == [0, 0, 0]


def test_gradients_can_be_taken_once_and_are_not_computed_where_none_is_wanted() -> None:
    leaves, targets, weights = make_inputs()
    loss = weighted_nll(*leaves, targets, weights, ruled_out=RULED_OUT)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        loss.backward()
    with _Seen() as seen, torch.no_grad():
        torch.testing.assert_close(
            weighted_nll(*leaves, targets, weights, ruled_out=RULED_OUT), loss.detach()
        )
    assert not [shape for shape in seen.products if shape == (VOCAB, DIM)]


class _Seen(TorchDispatchMode):
    """Shapes of the matrix products' results, and the elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                self.products.append(tuple(out.shape))
        return out


def test_the_matrix_of_all_logits_is_never_held() -> None:
    leaves, targets, weights = make_inputs(400, vocab=1000)
    with _Seen() as seen:
        loss = weighted_nll(*leaves, targets, weights, ruled_out=RULED_OUT, chunk_size=7)
        gradients(loss, leaves)
    assert seen.largest == 1000 * DIM  # the weight and its gradient; a chunk has 7 x 1000 logits
    assert max(shape[0] for shape in seen.products if shape[-1] == 1000) == 7
