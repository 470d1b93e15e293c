"""8-bit moments, stochastic rounding, and the runs that use them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stepping import make_trainer, take_steps
from torch import Tensor, nn

from ddit.config.runs import DualRun, OptimizerConfig
from ddit.train import adamw8bit
from ddit.train.adamw8bit import BLOCK, AdamW8bit, dequantize, quantize, round_stochastically
from ddit.train.checkpoint import find_newest
from ddit.train.loop import train
from ddit.train.optim import Ema, build_optimizers, make_room, optimizer_state
from ddit.train.parallel import local, total_norm
from ddit.train.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: local(tensor).clone() for name, tensor in trainer._state().items()}


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_values(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4 * BLOCK, generator=generator) ** 3
    x = x if signed else x.abs()
    codes, scale = quantize(x, signed=signed)
    book = adamw8bit._codebook(signed, torch.device("cpu"))
    scaled = x.unflatten(1, (-1, BLOCK)) / scale[..., None]
    nearest = (scaled.flatten()[:, None] - book).abs().amin(1)
    found = (
        (scaled - dequantize(codes, torch.ones_like(scale), signed=signed).view_as(scaled)).abs().flatten()
    )
    large = scaled.flatten().abs() > 1e-6
    torch.testing.assert_close(found[large], nearest[large], rtol=0, atol=2e-4)


def test_codes_are_those_of_the_published_map() -> None:
    """0, 1, and in each of 7 decades the middles of 2^k equal parts, on either side if they have a sign."""
    signed, unsigned = (adamw8bit._codebook(sign, torch.device("cpu")).tolist() for sign in (True, False))
    assert len(set(signed)) == len(set(unsigned)) == 256
    assert signed[127:130] == pytest.approx([0, 5.5e-7, 3.25e-6])
    assert signed[:127] == pytest.approx([-value for value in signed[254:127:-1]])
    assert unsigned[:3] == pytest.approx([0, 3.25e-7, 7.75e-7])
    assert (signed[254], unsigned[254]) == pytest.approx((1 - 0.9 / 128, 1 - 0.9 / 256))
    assert signed[255] == unsigned[255] == 1


def test_a_second_moment_is_never_rounded_to_zero() -> None:
    """The step divides by it: beside a large one the smallest is still there."""
    x = torch.full((1, BLOCK), 1e-30)
    x[0, 0], x[0, 1] = 1.0, 0.0
    found = dequantize(*quantize(x, signed=False), signed=False)[0]
    assert found[:2].tolist() == [1.0, 0.0]
    assert found[2:] == pytest.approx(3.25e-7)


def test_numbers_are_rounded_up_or_down_with_the_right_chance() -> None:
    torch.manual_seed(0)
    for value, below, above in ((1.001953125, 1.0, 1.0078125), (-1.001953125, -1.0, -1.0078125)):
        found = round_stochastically(torch.full((40_000,), value)).float()
        assert set(found.tolist()) == {below, above}
        assert found.mean().item() == pytest.approx(value, abs=1e-4)
    exact = torch.tensor([0.0, -0.0, 1.0078125, -3e38, 1e-38]).bfloat16().float()
    assert torch.equal(round_stochastically(exact).float(), exact)


@pytest.mark.parametrize("shape", [(64,), (3, 5), (8, 96)], ids=str)
def test_tensors_without_blocks_take_the_steps_of_torchs_adamw(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    mine = AdamW8bit([ours], lr=0.02, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        gradient = ours.grad.clone()
        mine.step()
        reference.step()
        assert torch.equal(ours.grad, gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(mine.state[ours][key], reference.state[theirs][key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_matrix_is_fitted_as_by_torchs_adamw(dtype: torch.dtype) -> None:
    def fit(make: Callable[[nn.Parameter], torch.optim.Optimizer], dtype: torch.dtype) -> list[float]:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        target = torch.randn(16, 2 * BLOCK, generator=generator)
        weight = nn.Parameter(torch.zeros(16, 2 * BLOCK, dtype=dtype))
        optimizer, losses = make(weight), []
        for _ in range(200):
            x = torch.randn(32, 2 * BLOCK, generator=generator)
            loss = (x @ (weight.float() - target).T).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    exact = fit(lambda w: torch.optim.AdamW([w], lr=0.1), torch.float32)
    found = fit(lambda w: AdamW8bit([w], lr=0.1), dtype)
    assert exact[-1] < 0.03 * exact[0]
    assert found[:100] == pytest.approx(exact[:100], rel=0.05)
    assert found[-1] < 1.5 * exact[-1]


def test_small_steps_move_bfloat16_weights_on_average() -> None:
    """A thousandth of 1 in 100 steps; each is a fourhundredth of what bfloat16 can show there."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(64, BLOCK, dtype=torch.bfloat16))
    average = Ema({"weight": weight}, decay=0.5)
    optimizer = AdamW8bit([weight], lr=1e-5, weight_decay=0.0)
    for step in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        average.update({"weight": weight}, 1000 + step)
    assert weight.float().mean().item() == pytest.approx(1 - 1e-3, abs=1e-4)
    assert average.tensors["weight"].dtype == torch.bfloat16
    assert average.tensors["weight"].float().mean().item() == pytest.approx(1 - 0.99e-3, abs=1e-4)


def test_moments_take_two_bytes_a_weight() -> None:
    weight = nn.Parameter(torch.zeros(64, 4 * BLOCK, dtype=torch.bfloat16))
    state = AdamW8bit([weight], lr=1.0).new_state(weight)
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    assert num_bytes / weight.numel() == pytest.approx(2 * (1 + 4 / BLOCK), abs=1e-3)


def test_room_is_made_for_8_bit_state() -> None:
    named = {"wide": nn.Parameter(torch.ones(16, BLOCK)), "bias": nn.Parameter(torch.ones(3).bfloat16())}
    config = OptimizerConfig(name="adamw8bit")
    before, after = build_optimizers(named, config), build_optimizers(named, config)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    before["adamw"].step()
    state = optimizer_state(named, before)
    make_room({name: tuple(value.shape) for name, value in state.items()}, named, after)
    room = optimizer_state(named, after)
    assert {n: (v.shape, v.dtype) for n, v in room.items()} == {
        n: (v.shape, v.dtype) for n, v in state.items()
    }


def test_the_norm_of_bfloat16_gradients_has_float32s_digits() -> None:
    tensors = [
        torch.randn(7, 300, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.ones(5).bfloat16(),
    ]
    expected = torch.cat([tensor.float().flatten() for tensor in tensors]).norm().item()
    assert total_norm(tensors) == pytest.approx(expected, rel=1e-6)


def test_bfloat16_weights_without_stochastic_rounding_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.weights=bfloat16 needs optimizer\.name=adamw8bit"):
        OptimizerConfig(weights="bfloat16")


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    wide: DualRun, tmp_path: Path, weights: str
) -> None:
    optimizer = replace(wide.optimizer, weights=weights)
    whole, parted = (
        replace(wide, optimizer=optimizer, out=str(tmp_path / name)) for name in ("whole", "parted")
    )
    uninterrupted = make_trainer(whole)
    take_steps(uninterrupted, 4)
    train(parted, stop_at=2)
    resumed = make_trainer(parted)
    checkpoint = find_newest(resumed.out)
    assert checkpoint is not None
    resumed.resume(checkpoint)
    take_steps(resumed, 2)
    expected, found = state_of(uninterrupted), state_of(resumed)
    assert expected.keys() == found.keys()
    assert any(tensor.dtype == torch.uint8 for tensor in expected.values())
    kept = {tensor.dtype for name, tensor in expected.items() if name.startswith(("model.", "ema."))}
    assert kept == {getattr(torch, weights)}
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_run_of_another_optimiser_is_not_resumed(wide: DualRun) -> None:
    train(wide, stop_at=1)
    optimizer = replace(wide.optimizer, name="adamw", weights="float32")
    with pytest.raises(ValueError, match=r"another optimizer\.name"):
        train(replace(wide, optimizer=optimizer))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_the_steps_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    def moved(device: str) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(64, 4 * BLOCK, generator=generator).to(device, dtype))
        optimizer = AdamW8bit([weight], lr=1e-2)
        for _ in range(5):
            weight.grad = torch.randn(64, 4 * BLOCK, generator=generator).to(device, dtype)
            optimizer.step()
        return weight.detach().float().cpu()

    on_cpu, on_gpu = moved("cpu"), moved("cuda")
    assert (on_cpu - on_gpu).abs().max() < (1e-3 if dtype == torch.float32 else 0.05)
    assert (on_cpu - on_gpu).mean().abs() < 1e-4
