from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddit.config import DualRun
from ddit.train.checkpoint import load_newest
from ddit.train.loop import Trainer, train
from ddit.train.parallel import Ranks


def weights(config: DualRun) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(Path(config.out))
    assert checkpoint is not None
    assert checkpoint.step == config.max_steps
    return checkpoint.tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    joint: DualRun, tmp_path: Path, dtype: str
) -> None:
    whole = replace(joint, out=str(tmp_path / "whole"), compute_dtype=dtype)
    parted = replace(joint, out=str(tmp_path / "parted"), compute_dtype=dtype)
    train(whole)
    train(parted, stop_at=1)
    train(parted, stop_at=3)
    train(parted)
    expected, found = weights(whole), weights(parted)
    assert expected.keys() == found.keys()
    assert any(name.startswith("muon.") for name in expected)
    assert any(name.startswith("ema.") for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_run_leaves_a_model_folder_a_log_and_sheets(joint: DualRun) -> None:
    out = train(joint)
    assert (out / "config.json").exists()
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert (out / "export" / part).is_dir()
    assert '"uptake"' in (out / "log.jsonl").read_text()
    assert '"question_nll"' in (out / "log.jsonl").read_text()
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["0000004.png"]


def test_a_torn_checkpoint_is_passed_over(joint: DualRun, capsys: pytest.CaptureFixture[str]) -> None:
    train(joint, stop_at=1)
    train(joint, stop_at=2)
    newest = Path(joint.out) / "ckpt-00000002" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    (Path(joint.out) / "ckpt-00000003.tmp").mkdir()
    capsys.readouterr()
    checkpoint = load_newest(Path(joint.out))
    assert checkpoint is not None
    assert checkpoint.step == 1
    words = capsys.readouterr().err
    assert "ckpt-00000002 is passed over" in words
    assert "ckpt-00000003.tmp is passed over: it was never finished" in words


def test_only_the_newest_checkpoints_are_kept(joint: DualRun) -> None:
    for step in (1, 2, 3):
        train(joint, stop_at=step)
    assert sorted(path.name for path in Path(joint.out).glob("ckpt-*")) == ["ckpt-00000002", "ckpt-00000003"]


def test_a_loss_that_is_not_finite_stops_before_the_step(joint: DualRun) -> None:
    trainer = Trainer(joint)
    with torch.no_grad():
        trainer.learner.transformer.image_proj_out.weight.fill_(float("nan"))
    before = trainer.learner.transformer.context_embedder.weight.clone()
    with pytest.raises(FloatingPointError, match="of step 0 is nan: stopped before the step"):
        trainer.train_step()
    assert torch.equal(before, trainer.learner.transformer.context_embedder.weight)
    assert trainer.step == 0


def test_a_stage_starts_from_its_predecessors_export(joint: DualRun, tmp_path: Path) -> None:
    out = train(joint)
    after = replace(joint, out=str(tmp_path / "next"), init=str(out / "export"))
    start = Trainer(after).learner.transformer.state_dict()
    exported = load_file(next((out / "export" / "transformer").glob("*.safetensors")))
    for name, tensor in exported.items():
        assert torch.equal(start[name], tensor.float()), name


def test_a_run_of_another_model_is_refused(joint: DualRun) -> None:
    train(joint, stop_at=1)
    wider = replace(joint, model=replace(joint.model, hidden_size=64))
    with pytest.raises(ValueError, match="holds a run of another model"):
        train(wider)


def test_encoders_that_do_not_fit_are_named(joint: DualRun) -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size is 7, but the encoders need"):
        Trainer(replace(joint, model=replace(joint.model, vocab_size=7)))


def test_ranks_together_make_the_global_batch(joint: DualRun) -> None:
    whole = Trainer(joint).batches(5)
    halves = [Trainer(joint, Ranks(index, 2)).batches(5) for index in (0, 1)]
    assert torch.equal(whole.prompt_ids, torch.cat([half.prompt_ids for half in halves]))
    assert torch.equal(whole.read_ids, torch.cat([half.read_ids for half in halves]))
    n = len(whole.prompt_ids)
    assert torch.equal(whole.latents[:n], torch.cat([half.latents[: n // 2] for half in halves]))
    assert torch.equal(whole.latents[n:], torch.cat([half.latents[n // 2 :] for half in halves]))


def test_a_few_scenes_are_learnt_by_heart(joint: DualRun) -> None:
    config = replace(
        joint,
        model=replace(joint.model, hidden_size=64, num_heads=2),
        optimizer=replace(joint.optimizer, warmup_steps=5),
        max_steps=150,
    )
    trainer = Trainer(config)
    one_batch = trainer.batches(0)
    trainer.batches = lambda step: one_batch  # type: ignore[assignment]
    values = [trainer.train_step().values for _ in range(150)]

    def mean(name: str, rows: slice) -> float:
        part = [row[name] for row in values[rows]]
        return sum(part) / len(part)

    assert mean("image", slice(-20, None)) < 0.75 * mean("image", slice(0, 5))
    assert mean("text", slice(-20, None)) < 0.3 * mean("text", slice(0, 5))
    assert mean("alignment", slice(-20, None)) < 0.3 * mean("alignment", slice(0, 5))
