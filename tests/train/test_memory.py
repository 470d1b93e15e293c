"""Memory a GPU: built on the meta device, it must follow the shards, the replicas and what is trained."""

from dataclasses import replace

import pytest
import torch

from ddit.config.runs import DualRun
from ddit.model.block import JointBlock, Tokens
from ddit.recipes import SD3_STAGES, SIZES, build
from ddit.train.memory import GIB, MemoryReport, build_on_meta, memory_per_gpu, saved_bytes

SETTLED = {
    "num_replicas": 1,
    "checkpoint_activations": True,
    "text_encoder": "sharded",
    "accumulate": "sharded",
}


def stage(name: str, *, micro: int = 8, **parallel) -> DualRun:
    config = build(name, "runs")
    assert isinstance(config, DualRun)
    settled = {**SETTLED, "text_encoder": "whole"} if config.reaches_into_text_encoder else SETTLED
    return replace(
        config, parallel=replace(config.parallel, **{**settled, **parallel}), micro_batch_size=micro
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SD3_STAGES)
def test_every_big_recipe_builds_on_the_meta_device(size, name):
    model = build_on_meta(stage(f"{size}-{name}").model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) > 2.0e9


def test_sharded_state_is_divided_by_the_shards_and_not_by_the_replicas():
    eight, all_shards = (memory_per_gpu(stage("sd3-medium-stage1"), n) for n in (8, 32))
    replicas = memory_per_gpu(stage("sd3-medium-stage1", num_replicas=4), 32)
    for part in ("masters", "optimizer", "averages"):
        assert getattr(eight, part) == pytest.approx(4 * getattr(all_shards, part), rel=1e-6)
        assert getattr(replicas, part) == getattr(eight, part)
    assert all_shards.total < eight.total


def test_the_state_of_the_two_billion_model_is_twenty_bytes_a_parameter_with_the_average():
    config = stage("sd3-medium-stage1", accumulate="whole")
    count = sum(parameter.numel() for parameter in build_on_meta(config.model).parameters())
    report = memory_per_gpu(config, 1)
    assert report.masters + report.gradients + report.optimizer + report.averages == 20 * count


def test_gradients_are_whole_between_micro_batches_unless_they_are_shared_each_time():
    whole, sharded = (
        memory_per_gpu(stage("sd3-medium-stage1", accumulate=how), 8) for how in ("whole", "sharded")
    )
    count = sum(
        parameter.numel() for parameter in build_on_meta(stage("sd3-medium-stage1").model).parameters()
    )
    assert whole.gradients == 4 * count
    assert sharded.gradients < whole.gradients / 3
    at_once = memory_per_gpu(stage("sd3-medium-stage1", accumulate="whole", micro=64), 8)  # nothing to add up
    assert at_once.gradients == sharded.gradients


def test_the_autoencoder_counts_in_float32_with_the_maps_that_it_holds_while_it_encodes():
    one, many = (memory_per_gpu(stage("sd3-medium-stage2_512", micro=n), 8) for n in (1, 32))
    assert one.autoencoder == 4 * 83_819_683
    assert one.encoding == 5 * 4 * 128 * 512**2
    assert many.encoding == 2 * one.encoding  # in parts of two such images


def test_eight_bit_moments_and_bfloat16_weights_take_eight_bytes_a_parameter():
    config = stage("sd3-medium-stage1", accumulate="sharded")
    small = replace(config, optimizer=replace(config.optimizer, name="adamw8bit", weights="bfloat16"))
    count = sum(parameter.numel() for parameter in build_on_meta(config.model).parameters())
    report = memory_per_gpu(small, 1)
    assert report.masters + report.averages == 4 * count
    assert 2 * count < report.optimizer < 2.2 * count


def test_recomputing_activations_and_adapters_save_memory():
    kept = memory_per_gpu(stage("sd3-medium-stage3", checkpoint_activations=False), 8)
    assert memory_per_gpu(stage("sd3-medium-stage3"), 8).activations < kept.activations / 5
    adapters = memory_per_gpu(stage("sd3-medium-lora", text_encoder="int8"), 1)
    assert adapters.total < 16 * GIB < memory_per_gpu(stage("sd3-medium-stage3"), 1).total


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
        block([Tokens(image, text, cond, 1)])
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    real = sum(size for key, size in kept.items() if key not in weights)
    assert saved_bytes(small, 2)[0] == pytest.approx(real, rel=0.15)


def test_replicas_must_divide_the_gpus():
    with pytest.raises(ValueError, match="32 GPUs cannot make 5 equal replicas"):
        memory_per_gpu(stage("sd3-medium-stage1", num_replicas=5), 32)


def test_encoding_and_activations_are_not_there_at_once():
    assert MemoryReport(1, 2, 3, 4, 5, 6, 7, 8, 9).total == 1 + 2 + 3 + 4 + 7 + 8 + (5 + 6)
    assert MemoryReport(1, 2, 3, 4, 5, 6, 7, 8, 90).total == 1 + 2 + 3 + 4 + 7 + 8 + 90
