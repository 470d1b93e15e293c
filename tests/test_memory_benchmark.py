"""Memory a GPU: built on the meta device, it must follow the shards, the replicas and what is trained."""

from dataclasses import replace

import pytest
import torch

from benchmarks.memory_per_gpu import GIB, MemoryReport, build_on_meta, memory_per_gpu, saved_bytes
from ddit.config.runs import DualRun
from ddit.model.dual_dit import JointBlock
from ddit.recipes import SD3_STAGES, SIZES, build


def stage(name: str, **parallel) -> DualRun:
    config = build(name, "runs")
    assert isinstance(config, DualRun)
    return replace(config, parallel=replace(config.parallel, **parallel))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SD3_STAGES)
def test_every_big_recipe_builds_on_the_meta_device(size, name):
    model = build_on_meta(stage(f"{size}-{name}"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) > 2.0e9


def test_sharded_state_is_divided_by_the_shards_and_not_by_the_replicas():
    eight, all_shards = (memory_per_gpu(stage("sd3-medium-stage1"), n) for n in (8, 32))
    replicas = memory_per_gpu(stage("sd3-medium-stage1", num_replicas=4), 32)
    for part in ("masters", "gradients", "optimizer", "averages"):
        assert getattr(eight, part) == pytest.approx(4 * getattr(all_shards, part), rel=1e-6)
        assert getattr(replicas, part) == getattr(eight, part)
    assert all_shards.total < eight.total


def test_the_state_of_the_two_billion_model_is_sixteen_bytes_a_parameter_and_four_for_the_average():
    config = stage("sd3-medium-stage1")
    count = sum(parameter.numel() for parameter in build_on_meta(config).parameters())
    report = memory_per_gpu(config, 1)
    assert report.masters + report.gradients + report.optimizer + report.averages == 20 * count


def test_recomputing_activations_and_adapters_save_memory():
    config = stage("sd3-medium-stage3")
    kept = memory_per_gpu(replace(config, parallel=replace(config.parallel, checkpoint_activations=False)), 8)
    assert memory_per_gpu(config, 8).activations < kept.activations / 5
    adapters = memory_per_gpu(stage("sd3-medium-lora"), 1)
    assert adapters.total < 16 * GIB < memory_per_gpu(config, 1).total


def test_what_a_block_keeps_grows_with_the_batch_alone():
    config = stage("sd3-medium-stage1")
    one, four = saved_bytes(config, 1), saved_bytes(config, 4)
    assert one[0] < four[0] <= 4 * one[0]
    assert four[1] == 4 * one[1]


def test_a_block_keeps_what_its_backward_pass_is_seen_to_keep():
    """The same count on real tensors, where plain attention keeps its weights besides."""
    config = stage("sd3-medium-stage1")
    small = replace(
        config, compute_dtype="float32", model=replace(config.model, hidden_size=32, num_heads=2, depth=2)
    )
    block = JointBlock(small.model, 0)
    image = torch.randn(2, 256, 32, requires_grad=True)
    text, cond = torch.randn(2, 64, 32, requires_grad=True), torch.randn(2, 32, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(image, text, cond, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    real = sum(size for key, size in kept.items() if key not in weights)
    assert saved_bytes(small, 2)[0] == pytest.approx(real, rel=0.15)


def test_replicas_must_divide_the_gpus():
    with pytest.raises(ValueError, match="32 GPUs cannot make 5 equal replicas"):
        memory_per_gpu(stage("sd3-medium-stage1", num_replicas=5), 32)


def test_the_total_is_the_sum_of_the_parts():
    assert MemoryReport(1, 2, 3, 4, 5, 6, 7, 8).total == 36
