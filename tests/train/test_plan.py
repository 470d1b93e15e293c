"""A plan settles what is "auto" by the machine's memory, and what does not fit is said before anything is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest

import ddit
from ddit.config.runs import DualRun
from ddit.recipes import build
from ddit.train.memory import GIB
from ddit.train.plan import Machine, Plan, expected_encoders, make_plan

MINI = str(Path(ddit.__file__).parent / "assets" / "mini")


def plan(name: str, machine: str, **changes) -> Plan:
    config = build(name, "runs")
    assert isinstance(config, DualRun)
    return make_plan(replace(config, **changes), Machine.named(machine))


@pytest.mark.parametrize("machine", ["8xH100", "8xRTX 4090", "4x8xA100"])
def test_the_plan_fits_the_memory_and_fills_the_batch(machine):
    made = plan("sd3-medium-stage1", machine)
    micro = made.cfg.micro_batch_size
    assert isinstance(micro, int)
    assert made.memory.total < made.machine.budget < made.machine.memory
    assert (made.cfg.global_batch_size // made.machine.num_gpus) % micro == 0
    assert "auto" not in vars(made.cfg.parallel).values()


def test_large_gpus_hold_t5_whole_and_recompute_nothing():
    made = plan("sd3-medium-stage1", "8xH100").cfg.parallel
    assert (made.text_encoder, made.checkpoint_activations) == ("whole", False)


def test_small_gpus_shard_t5():
    assert plan("sd3-medium-stage1", "8xRTX 4090").cfg.parallel.text_encoder == "sharded"


def test_each_node_is_a_replica():
    assert plan("sd3-medium-stage1", "4x8xH100").cfg.parallel.num_replicas == 4


def test_adapters_take_eight_samples_or_more_on_24_gib():
    made = plan("sd3-medium-lora", "RTX 4090")
    assert made.cfg.micro_batch_size in (8, 16)
    assert made.memory.total < 22 * GIB


def test_the_conversion_to_blocks_fits_eight_cards_with_t5_in_one_piece():
    made, before = (plan(f"sd3-medium-{stage}", "8xH100") for stage in ("blocks", "stage3"))
    assert made.cfg.parallel.text_encoder == "whole"
    assert made.memory.total < 70 * GIB
    assert made.pairs_per_second < before.pairs_per_second  # two copies of each text
    hours = made.cfg.max_steps * made.cfg.global_batch_size / made.pairs_per_second / 3600
    assert hours < 24


def test_what_was_set_stays():
    config = build("sd3-medium-stage1", "runs")
    assert isinstance(config, DualRun)
    parallel = replace(config.parallel, text_encoder="sharded", checkpoint_activations=True)
    made = make_plan(replace(config, parallel=parallel, micro_batch_size=4), Machine.named("8xH100")).cfg
    assert (made.parallel.text_encoder, made.parallel.checkpoint_activations, made.micro_batch_size) == (
        "sharded",
        True,
        4,
    )


def test_what_cannot_fit_is_said_with_what_is_missing():
    with pytest.raises(
        ValueError, match=r"needs \d+\.\d GiB of a GPU at the least, but 2\d\.\d of 2\d\.\d GiB"
    ):
        plan("sd3-medium-stage1", "RTX 4090")


def test_eight_bit_moments_and_bfloat16_weights_bring_full_tuning_to_one_48_gib_card():
    optimizer = replace(build("sd3-medium-stage1", "runs").optimizer, name="adamw8bit", weights="bfloat16")
    assert plan("sd3-medium-stage1", "L40S", optimizer=optimizer).memory.total < 40 * GIB


def test_the_recipe_for_it_tunes_all_weights_on_24_gib_with_t5_on_the_cpu():
    made = plan("sd3-medium-full", "RTX 4090")
    assert made.memory.total < 20 * GIB
    assert made.cfg.parallel.text_encoder == "offloaded"


def test_an_unknown_machine_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown machine '8xFOO': write 8xH100 .* RTX 4090"):
        Machine.named("8xFOO")


def test_a_small_model_is_not_planned_with_t5_xxl():
    config = build("mini-stage1", "nowhere")
    assert isinstance(config, DualRun)
    with pytest.raises(
        ValueError, match=r"mini-stage1 cannot be planned before its encoders are there: nowhere/"
    ):
        expected_encoders(config)
    trained = replace(config, text=MINI, vae=MINI, init=None)
    assert expected_encoders(trained).t5["d_model"] == config.model.text_dim
    assert make_plan(trained, Machine.named("H100"), expected_encoders(trained)).memory.total < 4 * GIB


def test_a_plan_has_memory_rate_and_hours():
    text = plan("sd3-medium-stage1", "8xH100").to_text()
    assert "plan for 8 x H100: FSDP2" in text
    assert "GiB a GPU" in text
    assert "pairs/s at 40% of the peak rate, 60,000 steps in" in text


def test_on_a_cpu_auto_recomputes_nothing():
    config = build("sd3-medium-stage1", "runs")
    assert isinstance(config, DualRun)
    made = make_plan(config, Machine("CPU", 2, 1, 0, 0.0)).cfg
    assert (made.parallel.checkpoint_activations, made.micro_batch_size) == (False, 8)
