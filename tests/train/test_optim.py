import dataclasses
import math

import pytest
import torch
from torch import nn

from ddit.config.runs import OptimizerConfig
from ddit.model import DualDiT, DualDiTConfig
from ddit.train.muon import Muon, orthogonalize
from ddit.train.optim import Ema, build_optimizers, lr_factor, make_room, optimizer_state

CONFIG = DualDiTConfig(
    in_channels=2, patch_size=2, hidden_size=16, depth=2, num_heads=2, text_dim=8, vocab_size=11, sample_size=8,
    pos_embed_max_size=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.1, 1.0, 1.0, 0.5, 0.0125]),
        ("cosine", [0.1, 1.0, 0.586824, 0.116978, 0.000076]),
    ],
)
def test_the_schedule_has_the_values_of_its_formula(schedule: str, expected: list[float]) -> None:
    cfg = OptimizerConfig(warmup_steps=10, schedule=schedule, decay_fraction=0.4)  # type: ignore[arg-type]
    values = [lr_factor(step, 100, cfg) for step in (0, 10, 50, 80, 99.5)]  # type: ignore[arg-type]
    assert values == pytest.approx(expected, abs=1e-5)


def test_the_average_has_its_closed_form() -> None:
    first, second, third = ({"w": torch.tensor([float(k)])} for k in (1, 5, 2))
    average = Ema(first, decay=0.9)
    average.update(second, step=1000)
    average.update(third, step=1001)
    assert average.tensors["w"].item() == pytest.approx(0.81 * 1 + 0.09 * 5 + 0.1 * 2)


def test_the_average_soon_forgets_the_fresh_weights() -> None:
    """In update k the decay is (1 + k) / (10 + k), so that of the start prod_k (1 + k) / (10 + k) is left."""
    average = Ema({"w": torch.tensor([1.0])}, decay=0.999)
    for step in range(50):
        average.update({"w": torch.tensor([0.0])}, step)
    assert average.tensors["w"].item() == pytest.approx(
        math.prod((1 + k) / (10 + k) for k in range(50)), rel=1e-4
    )


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 32), (48, 16), (16, 48)):
        matrix = torch.randn(shape, generator=generator)
        exact, quick = (orthogonalize(matrix, 5, dtype).float() for dtype in (torch.float32, torch.bfloat16))
        values = torch.linalg.svdvals(quick)
        assert values.min() > 0.3
        assert values.max() < 1.3
        assert (exact - quick).norm() < 0.05 * exact.norm()


def test_muon_takes_the_steps_of_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((32, 8), (8, 32), (16, 16))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine, reference = (
        Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1),
    )
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_a_kernel_takes_the_steps_of_its_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    optimizers = Muon([kernel], lr=0.02), Muon([matrix], lr=0.02)
    for _ in range(2):
        kernel.grad = torch.randn(kernel.shape, generator=generator)
        matrix.grad = kernel.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_muon_takes_the_matrices_of_attention_and_mlp_and_the_kernels_of_the_stem() -> None:
    model = DualDiT(dataclasses.replace(CONFIG, stem=(8, 16)))
    optimizers = build_optimizers(dict(model.named_parameters()), OptimizerConfig(name="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in optimizers["muon"].param_groups for p in group["params"]}
    rest = {names[id(p)] for group in optimizers["adamw"].param_groups for p in group["params"]}
    assert len(taken) == 2 * 12 + 4
    assert all(".attn." in name or ".ff" in name or ".conv.weight" in name for name in taken)
    assert taken | rest == set(names.values())
    assert not taken & rest


def test_the_averages_take_the_weights_place_and_give_it_back() -> None:
    weights = {"w": torch.tensor([1.0, 2.0])}
    average = Ema(weights, decay=0.5)
    weights["w"].fill_(3.0)
    with average.swapped_into(weights):
        assert weights["w"].tolist() == [1.0, 2.0]
    assert weights["w"].tolist() == [3.0, 3.0]
    assert average.tensors["w"].tolist() == [1.0, 2.0]


def test_matrices_alone_are_decayed() -> None:
    model = DualDiT(CONFIG)
    (adamw,) = build_optimizers(dict(model.named_parameters()), OptimizerConfig()).values()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in adamw.param_groups)
    assert [group["weight_decay"] for group in adamw.param_groups] == [1e-2, 0.0]
    assert "null_image_embd" in kept
    assert all(name.endswith("weight") for name in decayed)
    assert all(name.endswith("bias") for name in kept - {"null_image_embd"})


def test_state_is_kept_by_name_for_what_had_a_step() -> None:
    """A parameter that a run never touches has no state, before a restart or after it."""
    model = nn.Linear(3, 2)
    named = dict(model.named_parameters())
    optimizers = build_optimizers(named, OptimizerConfig())
    model.weight.grad = torch.ones(2, 3)
    optimizers["adamw"].step()
    state = optimizer_state(named, optimizers)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "step.weight": (),
        "exp_avg.weight": (2, 3),
        "exp_avg_sq.weight": (2, 3),
    }
    again = build_optimizers(named, OptimizerConfig())
    make_room({name: tuple(value.shape) for name, value in state.items()}, named, again)
    room = optimizer_state(named, again)
    assert {name: value.shape for name, value in room.items()} == {n: v.shape for n, v in state.items()}
    assert not any(value.any() for value in room.values())


def test_everything_is_decayed_where_that_is_asked_for() -> None:
    model = DualDiT(CONFIG)
    (adamw,) = build_optimizers(dict(model.named_parameters()), OptimizerConfig(decay="all")).values()
    (group,) = adamw.param_groups
    assert group["weight_decay"] == 1e-2
    assert len(group["params"]) == len(list(model.parameters()))
