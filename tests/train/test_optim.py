import math

import pytest
import torch
from torch import nn

from ddit.config import OptimizerConfig
from ddit.model import DualDiT, DualDiTConfig
from ddit.train.loop import clip_gradients
from ddit.train.muon import Muon, orthogonalize
from ddit.train.optim import Ema, MasterWeights, build_optimizers, lr_factor

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
    values = [torch.tensor([float(k)]) for k in (1, 5, 2)]
    average = Ema(values[:1], decay=0.9)
    average.update(values[1:2], step=1000)
    average.update(values[2:], step=1001)
    assert average.tensors[0].item() == pytest.approx(0.81 * 1 + 0.09 * 5 + 0.1 * 2)


def test_the_average_soon_forgets_the_fresh_weights() -> None:
    """In update k the decay is (1 + k) / (10 + k), so that of the start prod_k (1 + k) / (10 + k) is left."""
    average = Ema([torch.tensor([1.0])], decay=0.999)
    for step in range(50):
        average.update([torch.tensor([0.0])], step)
    assert average.tensors[0].item() == pytest.approx(
        math.prod((1 + k) / (10 + k) for k in range(50)), rel=1e-4
    )


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 32), (48, 16), (16, 48)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator), 5).float())
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_muon_takes_the_steps_of_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((32, 8), (8, 32), (16, 16))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine, reference = (
        Muon(ours, lr=0.02, weight_decay=0.1),
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


def test_muon_takes_the_matrices_of_attention_and_mlp_alone() -> None:
    model = DualDiT(CONFIG)
    optimizers = build_optimizers(model.named_parameters(), OptimizerConfig(name="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in optimizers["muon"].param_groups for p in group["params"]}
    rest = {names[id(p)] for group in optimizers["adamw"].param_groups for p in group["params"]}
    assert len(taken) == 2 * 12
    assert all(".attn." in name or ".ff" in name for name in taken)
    assert taken | rest == set(names.values())
    assert not taken & rest


def test_masters_stay_in_float32_and_carry_steps_below_bfloat16s_resolution() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(1.0)
    masters = MasterWeights(model, torch.bfloat16)
    optimizer = torch.optim.SGD(masters.masters, lr=1.0)
    for _ in range(8):
        model.weight.grad = torch.full((1, 2), 1e-3, dtype=torch.bfloat16)
        masters.collect_gradients()
        optimizer.step()
        masters.publish()
    assert model.weight.dtype == torch.bfloat16
    assert masters.masters[0].dtype == torch.float32
    assert masters.masters[0].tolist() == [pytest.approx([0.992, 0.992], abs=1e-4)]
    assert model.weight[0, 0].item() == pytest.approx(0.992, abs=4e-3)
    assert model.weight[0, 0].item() < 1


def test_clipping_scales_to_the_global_norm() -> None:
    gradients = [torch.full((4,), 3.0), torch.full((4,), 4.0)]
    assert clip_gradients(gradients, 1.0) == pytest.approx(10.0)
    assert gradients[0].tolist() == pytest.approx([0.3] * 4, abs=1e-5)
    assert clip_gradients(gradients, 5.0) == pytest.approx(1.0, abs=1e-5)
    assert gradients[1].tolist() == pytest.approx([0.4] * 4, abs=1e-5)
