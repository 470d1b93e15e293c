import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ddit.config.data import LlavaData
from ddit.config.runs import DualRun
from ddit.devices import Ranks
from ddit.model.encoders import TextCodec
from ddit.train.batches import ImageFacts, StepData
from ddit.train.parallel import make_mesh
from ddit.train.trainer import rounding_seed

HERE = Path(__file__).parent


class Outcome(NamedTuple):
    values: list[dict[str, float]]
    state: dict[str, Tensor]


@pytest.fixture
def run(plain: DualRun, config_file: Callable[[DualRun], Path], tmp_path: Path) -> Callable[..., Outcome]:
    """Takes the steps of a run up to a number, by so many processes under torchrun."""

    def run(
        name: str, num_ranks: int, num_steps: int = 3, *, config: DualRun = plain, num_replicas: int = 1
    ) -> Outcome:
        parallel = replace(config.parallel, num_replicas=num_replicas)
        file = config_file(replace(config, out=str(tmp_path / name), parallel=parallel))
        out = tmp_path / f"{name}-{num_steps}-steps"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command = [
            sys.executable,
            *launcher,
            str(HERE / "take_steps.py"),
            str(file),
            str(out),
            str(num_steps),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Warning" not in done.stderr
        return Outcome(json.loads((out / "values.json").read_text()), load_file(out / "state.safetensors"))

    return run


def check_same(found: Outcome, expected: Outcome) -> None:
    assert len(found.values) == len(expected.values)
    for ours, theirs in zip(found.values, expected.values, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_any_number_of_ranks_and_replicas_takes_the_steps_of_one(run: Callable[..., Outcome]) -> None:
    """Losses, gradient norms (not inflated by replicas), weights, averages and optimiser state after three steps."""
    one = run("one", 1)
    assert {"total", "image", "text", "alignment", "grad_norm"} <= set(one.values[0])
    check_same(run("two", 2), one)
    check_same(run("table", 4, num_replicas=2), one)


@pytest.mark.slow
def test_ranks_share_accumulation_mask_token_and_text_encoder(
    plain: DualRun, run: Callable[..., Outcome]
) -> None:
    config = replace(plain, train_mask_embedding=True)
    sharded = replace(config.parallel, text_encoder="sharded", reshard_after_forward=True)
    one = run("one", 1, config=config)
    check_same(run("two", 2, config=replace(config, micro_batch_size=2, parallel=sharded)), one)


@pytest.mark.slow
def test_two_ranks_draw_and_learn_what_one_does(rewarded: DualRun, run: Callable[..., Outcome]) -> None:
    one = run("one", 1, config=rewarded)
    assert any(name.startswith("policy.") for name in one.state)
    check_same(run("two", 2, config=rewarded), one)


@pytest.mark.slow
def test_two_ranks_distil_what_one_does(distilled: DualRun, run: Callable[..., Outcome]) -> None:
    one = run("one", 1, config=distilled)
    assert "distillation" in one.values[0]
    check_same(run("two", 2, config=distilled), one)


@pytest.fixture
def partly_without_images(plain: DualRun, tmp_path: Path) -> DualRun:
    """Texts of two lengths, and every third conversation without an image, so that ranks differ in what they hold."""
    entries = []
    for number in range(12):
        turns = [{"from": "human", "value": "what color is the car?"}, {"from": "gpt", "value": "red"}]
        entry = {"id": str(number), "conversations": turns}
        if number % 3:
            Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
            entry["image"] = f"{number}.png"
        entries.append(entry)
    (tmp_path / "turns.json").write_text(json.dumps(entries))
    source = LlavaData(str(tmp_path / "turns.json"), images=str(tmp_path))
    return replace(plain, data=replace(plain.data, i2t=(source,), i2t_length=plain.data.t2i_length + 3))


@pytest.mark.slow
def test_ranks_that_differ_in_absent_images_take_the_steps_of_one(
    partly_without_images: DualRun, run: Callable[..., Outcome]
) -> None:
    config = partly_without_images
    one = run("one", 1, config=config)
    check_same(run("two", 2, config=replace(config, micro_batch_size=2)), one)
    check_same(run("table", 4, config=config, num_replicas=2), one)


@pytest.mark.slow
def test_gradients_shared_with_every_micro_batch_are_those_shared_with_the_last(
    plain: DualRun, run: Callable[..., Outcome]
) -> None:
    config = replace(plain, micro_batch_size=2)
    one = run("one", 1, config=config)
    shared = replace(config, parallel=replace(config.parallel, accumulate="sharded"))
    check_same(run("two", 2, config=shared), one)
    check_same(run("table", 4, config=shared, num_replicas=2), one)


@pytest.mark.slow
def test_adapters_are_trained_alike_by_any_number_of_ranks(
    plain: DualRun, run: Callable[..., Outcome]
) -> None:
    pytest.importorskip("peft")
    config = replace(plain, lora=replace(plain.lora, rank=2))
    one = run("one", 1, config=config)
    assert not any("base_layer" in name for name in one.state)
    check_same(run("two", 2, config=config), one)


@pytest.mark.slow
def test_a_run_goes_on_at_another_number_of_ranks(run: Callable[..., Outcome]) -> None:
    alone = run("alone", 1, 6)
    parts = [run("moved", num_ranks, num_steps) for num_ranks, num_steps in ((1, 2), (2, 4), (1, 6))]
    values = [value for part in parts for value in part.values]
    check_same(Outcome(values, parts[-1].state), alone)


@pytest.mark.slow
def test_muon_takes_the_same_steps_on_sharded_matrices(
    joint: DualRun, plain: DualRun, run: Callable[..., Outcome]
) -> None:
    """Two ranks round otherwise, and bfloat16 products magnify that: the losses agree less closely than AdamW's."""
    config = replace(plain, optimizer=joint.optimizer)
    one, two = run("one", 1, config=config), run("two", 2, config=config)
    for ours, theirs in zip(two.values, one.values, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.slow
def test_8_bit_moments_and_rounded_weights_are_resumed_bit_for_bit(
    wide: DualRun, run: Callable[..., Outcome]
) -> None:
    """By as many ranks; by another number the weights are rounded otherwise, and the losses agree less closely."""
    whole, half = run("whole", 2, 4, config=wide), run("parted", 2, 2, config=wide)
    parted = run("parted", 2, 4, config=wide)
    assert half.values + parted.values == whole.values
    assert any(name.startswith("optimizer.exp_avg_scale.") for name in whole.state)
    assert parted.state.keys() == whole.state.keys()
    for name, tensor in whole.state.items():
        assert torch.equal(parted.state[name], tensor), name
    run("moved", 1, 2, config=wide)
    moved = run("moved", 2, 4, config=wide, num_replicas=1)
    for ours, theirs in zip(moved.values, whole.values[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2)


def test_replicas_round_a_shard_alike(wide: DualRun) -> None:
    table = replace(wide, parallel=replace(wide.parallel, num_replicas=2))
    seeds = [[rounding_seed(table, Ranks(rank, 4), step) for rank in range(4)] for step in range(3)]
    assert all(row[:2] == row[2:] for row in seeds)
    assert len({seed for row in seeds for seed in row}) == 2 * 3


def test_replicas_that_do_not_divide_the_ranks_are_named() -> None:
    with pytest.raises(ValueError, match=r"parallel\.num_replicas is 2, which does not divide 3 ranks"):
        make_mesh(Ranks(0, 3), 2)


def test_samples_that_cannot_be_shared_are_named(plain: DualRun) -> None:
    codec = TextCodec.from_pretrained(f"{plain.text}/tokenizer", f"{plain.text}/text_encoder")
    with pytest.raises(ValueError, match="cannot be shared equally by 3 ranks"):
        StepData(plain, codec, ImageFacts(8, 4), Ranks(0, 3))


@pytest.mark.slow
def test_ranks_share_figures_samples_and_exports(
    joint: DualRun, plain: DualRun, config_file: Callable[[DualRun], Path], tmp_path: Path
) -> None:
    """Whole runs: held-out figures are those of one rank, although each rank measures a part of the samples."""

    def figures(num_ranks: int) -> list[dict[str, float]]:
        out = tmp_path / str(num_ranks)
        report = replace(joint.report, num_held_out=5)
        file = config_file(replace(plain, out=str(out), report=report, train_mask_embedding=True))
        code = "from ddit.config.runs import from_json; from ddit.train.loop import train; "
        code += f"train(from_json(open({str(file)!r}).read()))"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command = [sys.executable, *launcher, "--no-python", sys.executable, "-c", code]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (out / "export" / "model_index.json").exists()
        assert (out / "samples" / "0000004.png").exists()
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [line for line in lines if "uptake" in line]

    one, two = figures(1), figures(2)
    assert len(one) == 3
    for ours, theirs in zip(two, one, strict=True):
        names = {"velocity_true", "velocity_shuffled", "caption_nll", "question_nll", "caption_exact"}
        names |= {"flow_loss", "flow_loss_ci", "flow_t0.95", "caption_nelbo", "question_nelbo_token_ci"}
        assert names <= set(theirs)
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
