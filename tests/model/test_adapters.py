"""Adapters: what they leave alone, what they train, and that their folder is peft's own."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_pipeline
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ddit.devices import join_ranks
from ddit.model import DualDiT
from ddit.model.adapters import (
    adapter_scale,
    add_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
    trained_names,
)
from ddit.pipeline import Pipeline
from ddit.train.parallel import make_mesh


@pytest.fixture
def model() -> DualDiT:
    return tiny_pipeline().transformer


@pytest.fixture
def mesh() -> DeviceMesh:
    """This process alone, as a mesh; training runs of other tests in this process may have joined its group before."""
    return make_mesh(join_ranks(), 1)


def run(model: torch.nn.Module) -> Tensor:
    """Velocity and logits of fixed inputs, as one vector."""
    config = tiny_pipeline().transformer.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, config.in_channels, 8, 8, generator=generator)
    states = torch.randn(2, 5, config.text_dim, generator=generator)
    output = model(latents, torch.tensor([0.3, 0.8]), states)
    return torch.cat([output.velocity.flatten(), output.logits.flatten()])


def adapted(model: DualDiT, rank: int = 4) -> DualDiT:
    """A copy with adapters that change something, and other whole parts."""
    model = copy.deepcopy(model)
    add_adapters(model, rank=rank, alpha=8.0)
    generator = torch.Generator().manual_seed(1)
    for name in trained_names(model):
        if "lora_A" not in name:
            parameter = model.get_parameter(name)
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_fresh_adapters_change_nothing_and_their_draw_is_seeded(model: DualDiT) -> None:
    before = run(model)
    state = torch.random.get_rng_state()
    models = [copy.deepcopy(model) for _ in range(3)]
    for one, seed in zip(models, (3, 3, 4), strict=True):
        add_adapters(one, rank=2, alpha=4.0, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(run(one), before) for one in models)
    first, again, other = (
        next(p for name, p in one.named_parameters() if "lora_A" in name) for one in models
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_adapters_and_the_two_whole_parts_get_gradients(model: DualDiT) -> None:
    add_adapters(model, rank=2, alpha=4.0)
    run(model).square().sum().backward()
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    whole = {name for name in with_gradient if "lora_" not in name}
    assert whole == {"text_proj_out.weight", "text_proj_out.bias"}  # the null image was not in this batch
    assert set(trained_names(model)) == {*with_gradient, "null_image_embd"}
    adapters = {name.split(".lora_")[0] for name in with_gradient if "lora_" in name}
    per_block = {name.split(".", 2)[2] for name in adapters}
    assert len(per_block & {"attn.to_q", "attn.add_k_proj", "attn.to_out.0", "attn.to_add_out"}) == 4
    assert len(per_block & {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}) == 4
    assert not [name for name in per_block if "norm" in name]


def test_merged_equals_adapted_and_is_a_plain_model(model: DualDiT) -> None:
    with_adapters = adapted(model)
    expected = run(with_adapters)
    assert (expected - run(model)).norm() > 1e-2 * expected.norm()
    merge_adapters(with_adapters)
    assert_close(run(with_adapters), expected)
    assert adapter_scale(with_adapters) is None
    fresh = DualDiT(model.config)
    fresh.load_state_dict(with_adapters.state_dict())
    assert_close(run(fresh), expected)
    assert len(trained_names(with_adapters)) == len(list(model.parameters()))


def test_the_folder_holds_what_was_trained_and_loads_again(model: DualDiT, tmp_path: Path) -> None:
    with_adapters = adapted(model, rank=1)
    save_adapters(tmp_path, with_adapters, base="tiny")
    assert sorted(path.name for path in tmp_path.glob("*adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    trained = sum(
        model.numel() for model in (with_adapters.get_parameter(n) for n in trained_names(with_adapters))
    )
    assert sum(tensor.numel() for tensor in stored.values()) == trained
    assert trained < 0.2 * sum(p.numel() for p in model.parameters())

    again = copy.deepcopy(model)
    load_adapters(again, tmp_path)
    assert torch.equal(run(again), run(with_adapters))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path))
    assert_close(run(theirs), run(with_adapters))


def test_averaged_values_are_saved_in_place_of_the_models_own(model: DualDiT, tmp_path: Path) -> None:
    with_adapters = adapted(model)
    state = {name: 0 * with_adapters.get_parameter(name) for name in trained_names(with_adapters)}
    save_adapters(tmp_path, with_adapters, state=state, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 and not tensor.any() for tensor in stored.values())
    del state["null_image_embd"]
    with pytest.raises(ValueError, match="the state has no null_image_embd"):
        save_adapters(tmp_path, with_adapters, state=state)


def test_a_pipeline_loads_with_an_adapter(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    save_adapters(tmp_path / "adapter", adapted(pipeline.transformer))
    loaded = Pipeline.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", dtype="float32")
    assert_close(run(loaded.transformer), run(adapted(pipeline.transformer)))


def test_a_few_steps_lower_a_loss(model: DualDiT) -> None:
    add_adapters(model, rank=4, alpha=8.0)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = run(model).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())


def shard(model: DualDiT, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """FSDP2 as the training loop applies it: what is frozen is left out."""
    frozen = {p for p in model.parameters() if not p.requires_grad}
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=frozen)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # returned views, which nothing here writes to
def test_sharded_adapters_have_the_gradients_of_whole_ones(model: DualDiT, mesh: DeviceMesh) -> None:
    whole, sharded = adapted(model), adapted(model)
    shard(sharded, mesh, torch.float32)
    for one in (whole, sharded):
        run(one).square().mean().backward()
    for name in trained_names(whole):
        expected, found = whole.get_parameter(name).grad, sharded.get_parameter(name).grad
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            assert_close(found.full_tensor(), expected)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_float32_adapters_train_over_a_frozen_bf16_model(model: DualDiT, mesh: DeviceMesh) -> None:
    add_adapters(model, rank=2, alpha=4.0, frozen_dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    shard(model, mesh, torch.bfloat16)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(12):
        loss = run(model).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
def test_compiled_blocks_with_adapters_give_the_same(model: DualDiT) -> None:
    with_adapters = adapted(model)
    expected = run(with_adapters)
    for block in with_adapters.transformer_blocks:
        block.compile()
    assert_close(run(with_adapters), expected)


def test_what_cannot_be_done_is_one_line(
    model: DualDiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="a rank of at least 1, got 0"):
        add_adapters(model, rank=0, alpha=1.0)
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_adapters(model)
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapters(tmp_path, model)
    with pytest.raises(ValueError, match=r"it has no adapter_config\.json"):
        load_adapters(model, tmp_path)
    with_adapters = adapted(model)
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(with_adapters, rank=2, alpha=1.0)
    save_adapters(tmp_path, with_adapters)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_adapters(DualDiT(type(model.config)(**{**vars(model.config), "depth": 1})), tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'ddit\[lora\]'"):
        add_adapters(model, rank=2, alpha=1.0)
