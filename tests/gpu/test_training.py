"""Training on a device: adapters, 8-bit moments, FSDP2 over one rank, latents, graphs, steps at the real width."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ddit.devices import join_ranks
from ddit.doctor import training
from ddit.doctor.report import Bench, Outcome
from ddit.model import DualDiTConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of what differs from device to device


def check(outcome: Outcome) -> str:
    assert outcome.status in ("ok", "slow"), outcome.figure
    return outcome.figure


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sd3-medium-lora", "sd3-medium-full", "sd3-medium-stage2", "sd3.5-medium-stage1"]
)
def test_a_recipe_runs_at_toy_width(bench: Bench, name: str) -> None:
    figure = check(training.check_sd3_recipe(bench, name))
    assert "backward" in figure
    assert ("peak" in figure) == bench.is_gpu


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [training.check_accumulation, training.check_precompute, training.check_loader]
)
def test_sharded_gradients_latents_and_loading(bench: Bench, run: Callable[[Bench], Outcome]) -> None:
    check(run(bench))


@pytest.mark.gpu  # on the CPU tests/train/test_compile.py counts the graphs
def test_compiled_training_keeps_within_its_graphs(bench: Bench) -> None:
    assert " graphs; losses differ by " in check(training.check_compiled_training(bench))


@pytest.mark.parametrize("name", ["sd3-medium-stage1", "sd3-medium-lora", "sd3-medium-full"])
def test_steps_without_encoders_as_at_the_real_width(bench: Bench, name: str) -> None:
    config = training._settle(name, compiled=False)
    small = DualDiTConfig(
        hidden_size=128,
        depth=2,
        num_heads=2,
        text_dim=64,
        vocab_size=32128,
        sample_size=16,
        pos_embed_max_size=32,
    )
    config = replace(
        config, model=small, global_batch_size=4, micro_batch_size=None, train_mask_embedding=False,
        parallel=replace(
            config.parallel, num_replicas=1, checkpoint_activations=False, accumulate="whole", text_encoder="whole"
        ),
        data=replace(config.data, image_size=128, t2i_length=16, i2t_length=16),
    )  # fmt: skip
    step = training.real_step(config, bench, join_ranks())
    assert step.seconds > 0
    assert (step.peak is not None) == bench.is_gpu
    assert step.expected > 4 * 32128 * 128 * (1 if config.lora.rank else 3)


@pytest.mark.gpu
@pytest.mark.parametrize("check_", training.real_size_checks(), ids=lambda c: c.name)
def test_steps_at_the_real_width(bench: Bench, check_: training.Check) -> None:
    if not bench.is_gpu:
        pytest.skip("no GPU")
    try:
        check(check_.run(bench))
    except training.Skipped as reason:
        pytest.skip(str(reason))
