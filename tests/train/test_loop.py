import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stepping import make_trainer, take_steps
from torch import Tensor
from torch.nn import Dropout

from ddit.config.data import WorldData
from ddit.config.runs import DualRun
from ddit.devices import compute_dtype, join_ranks
from ddit.model.weights import load_transformer
from ddit.pipeline import Pipeline
from ddit.train.batch import text_of
from ddit.train.checkpoint import find_newest, load_tensors, stored_shapes
from ddit.train.learner import start_weights
from ddit.train.log import read_log
from ddit.train.loop import train
from ddit.train.parallel import local
from ddit.train.trainer import Trainer
from ddit.world import enlarge


def stored(config: DualRun) -> dict[str, Tensor]:
    """The whole tensors of a finished run's last checkpoint."""
    join_ranks()
    checkpoint = find_newest(Path(config.out))
    assert checkpoint is not None
    assert checkpoint.step == config.max_steps
    tensors = {name: torch.empty(shape) for name, shape in stored_shapes(checkpoint.folder).items()}
    load_tensors(checkpoint.folder, tensors)
    return tensors


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.0), ("bfloat16", 0.3)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    joint: DualRun, tmp_path: Path, dtype: str, dropout: float
) -> None:
    joint = replace(joint, compute_dtype=dtype, dropout=dropout)
    whole = replace(joint, out=str(tmp_path / "whole"))
    parted = replace(joint, out=str(tmp_path / "parted"))
    train(whole)
    train(parted, stop_at=1)
    train(parted, stop_at=3)
    train(parted)
    expected, found = stored(whole), stored(parted)
    assert expected.keys() == found.keys()
    for part in ("model.", "ema.", "optimizer.momentum_buffer.", "optimizer.exp_avg.", "optimizer.step."):
        assert any(name.startswith(part) for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_run_leaves_two_models_that_load_a_log_and_samples(joint: DualRun) -> None:
    out = train(joint)
    assert (out / "config.json").exists()
    for name in ("export", "export_raw"):
        pipeline = Pipeline.from_pretrained(out / name)
        assert pipeline.settings.text_length == joint.data.i2t_length
        assert len(pipeline.generate(["a red dog"], num_steps=1, seed=0)) == 1
    averaged, raw = (
        load_file(out / name / "transformer" / "diffusion_pytorch_model.safetensors")
        for name in ("export", "export_raw")
    )
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)
    assert '"uptake"' in (out / "log.jsonl").read_text()
    assert '"question_nll"' in (out / "log.jsonl").read_text()
    assert [path.name for path in (out / "samples").glob("*.png")] == ["0000004.png"]


@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(plain: DualRun, micro_batch_size: int) -> None:
    def gradients(config: DualRun) -> tuple[dict[str, float], dict[str, Tensor]]:
        trainer = make_trainer(config)
        values = trainer._backward(trainer.data[0])
        found = {name: p.grad.full_tensor() for name, p in trainer.trained.items() if p.grad is not None}
        return values, found

    values, whole = gradients(plain)
    found_values, found = gradients(replace(plain, micro_batch_size=micro_batch_size))
    assert found_values == pytest.approx(values, abs=1e-5)
    assert found.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
    assert max(gradient.abs().max().item() for gradient in whole.values()) > 1e-2


def test_recomputed_activations_and_weights_that_stay_change_nothing(plain: DualRun) -> None:
    parallel = replace(plain.parallel, checkpoint_activations=True, reshard_after_forward=True)
    expected = take_steps(make_trainer(plain), 2)
    assert take_steps(make_trainer(replace(plain, parallel=parallel)), 2) == expected


def test_dropout_is_in_the_steps_and_not_in_the_figures(plain: DualRun) -> None:
    dropped = replace(plain, dropout=0.5)
    trainer = make_trainer(dropped)
    modes = trainer.evaluate(
        lambda model: {(m.p, m.training) for m in model.modules() if isinstance(m, Dropout)}
    )
    assert modes == {(0.5, False)}
    expected, found = take_steps(make_trainer(plain), 3), take_steps(trainer, 3)
    totals = [
        (one.values["total"], other.values["total"]) for one, other in zip(expected, found, strict=True)
    ]
    assert totals[0][0] == totals[0][1]  # a fresh block's output is multiplied by 0
    assert totals[2][0] != totals[2][1]
    assert take_steps(make_trainer(dropped), 3) == found


@pytest.mark.parametrize("block_size", [0, 3])
def test_texts_are_padded_to_the_first_length_that_holds_them(joint: DualRun, block_size: int) -> None:
    model = replace(joint.model, image_attends_text=False, text_block_size=block_size)
    data = replace(joint.data, i2t_lengths=(7, 11))
    config = replace(joint, model=model, data=data, global_batch_size=32)
    trainer = make_trainer(config)
    (batch,) = trainer.data[0]
    i2t, eos = batch.i2t, trainer.codec.eos_token_id
    assert i2t is not None
    assert i2t.lengths is not None
    lengths = i2t.lengths.tolist()
    assert len(set(lengths)) > 1
    states = trainer.learner._i2t_states(i2t, trainer.codec)
    for row, length in enumerate(lengths):
        num_tokens = int((i2t.input_ids[row] != eos).nonzero().max()) + 1
        assert length == next(offered for offered in (7, 11, 16) if offered > num_tokens)
        assert not i2t.answer_mask[row, length:].any()
        assert i2t.answer_mask[row, num_tokens:length].all()
        own = text_of(i2t.cut(slice(row, row + 1), length), block_size)
        expected = trainer.codec.i2t_states(*own)[0].unflatten(0, (-1, length))
        found = states[row].unflatten(0, (-1, 16))
        torch.testing.assert_close(found[:, :length], expected, atol=1e-5, rtol=1e-4)
        assert not found[:, length:].any()
    out = train(config)
    settings = Pipeline.from_pretrained(out / "export").settings
    windows = (None, None) if block_size else (7, 3)  # texts in blocks end by themselves
    assert (settings.text_length, settings.caption_length, settings.answer_length) == (16, *windows)
    logged = [event for event in read_log(out / "log.jsonl") if "question_nelbo" in event]
    assert all(math.isfinite(event["question_nelbo"]) for event in logged)
    assert logged
    assert not any("mfu" in event for event in read_log(out / "log.jsonl"))


def fill_image_head(trainer: Trainer, value: float) -> None:
    with torch.no_grad():
        trainer.trained["transformer.image_proj_out.weight"].fill_(value)


def test_a_loss_that_is_not_finite_stops_before_the_step(plain: DualRun) -> None:
    trainer = make_trainer(plain)
    fill_image_head(trainer, float("nan"))
    before = trainer.trained["transformer.context_embedder.weight"].full_tensor().clone()
    with pytest.raises(FloatingPointError, match="of step 0 is nan: stopped before the step"):
        take_steps(trainer, 1)
    assert torch.equal(before, trainer.trained["transformer.context_embedder.weight"].full_tensor())
    assert trainer.step == 0


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    plain: DualRun, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(replace(plain, non_finite="skip", max_skipped=2))
    take_steps(trainer, 1)
    good = local(trainer.trained["transformer.image_proj_out.weight"]).detach().clone()
    before = {name: tensor.full_tensor().clone() for name, tensor in trainer.ema.tensors.items()}
    fill_image_head(trainer, float("nan"))
    assert [result.skipped for result in take_steps(trainer, 2)] == [True, True]
    assert "of step 1 is nan: skipped (1 so far)" in capsys.readouterr().err
    assert (trainer.step, trainer.skipped, trainer.skipped_in_row) == (3, 2, 2)
    for name, tensor in trainer.ema.tensors.items():
        assert torch.equal(tensor.full_tensor(), before[name]), name
    with pytest.raises(FloatingPointError, match="3 steps in a row were skipped"):
        take_steps(trainer, 1)
    with torch.no_grad():
        local(trainer.trained["transformer.image_proj_out.weight"]).copy_(good)
    assert not take_steps(trainer, 1)[0].skipped
    assert (trainer.skipped, trainer.skipped_in_row) == (3, 0)


def test_skips_and_corrupt_samples_are_counted_across_a_restart(plain: DualRun) -> None:
    config = replace(plain, non_finite="skip")
    trainer = make_trainer(config)
    trainer.skipped, trainer.skipped_in_row = 4, 2
    trainer.corrupt.add({"not a picture": 1}, 100)
    trainer.save()
    checkpoint = find_newest(Path(config.out))
    assert checkpoint is not None
    again = make_trainer(config)
    again.resume(checkpoint)
    assert (again.skipped, again.skipped_in_row) == (4, 2)
    assert again.corrupt.causes == {"not a picture": 1}
    assert again.corrupt.num_samples == 100


def test_a_signal_saves_and_ends_the_run_which_then_goes_on(
    plain: DualRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def with_signal(trainer: Trainer, *args, **kwargs):
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", with_signal)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped by a signal after 3 steps; saved in"):
        train(plain)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (Path(plain.out) / "ckpt-00000003" / "manifest.json").exists()
    assert not list(Path(plain.out).glob("export*"))  # a preemption leaves seconds
    monkeypatch.undo()
    train(plain)
    assert (Path(plain.out) / "ckpt-00000004" / "manifest.json").exists()
    assert (Path(plain.out) / "export" / "model_index.json").exists()


def test_figures_are_of_the_averaged_weights_and_leave_the_run_as_it_was(joint: DualRun) -> None:
    trainer = make_trainer(joint)
    take_steps(trainer, 2)
    before = {name: p.full_tensor().clone() for name, p in trainer.trained.items()}
    name = "transformer.context_embedder.weight"
    average = trainer.ema.tensors[name].full_tensor().clone()
    seen = trainer.evaluate(lambda model: model.context_embedder.weight.clone())
    assert torch.equal(seen, average)
    assert not torch.equal(seen, before[name])
    for name, parameter in trainer.trained.items():
        assert torch.equal(parameter.full_tensor(), before[name]), name
    other = make_trainer(joint)
    take_steps(other, 2)
    assert take_steps(trainer, 1) == take_steps(other, 1)


def test_only_the_mask_tokens_embedding_is_trained_of_the_text_encoder(plain: DualRun) -> None:
    config = replace(plain, train_mask_embedding=True, optimizer=replace(plain.optimizer, lr=1e-2))
    trainer = make_trainer(config)
    assert trainer.learner.mask_embedding is not None
    mask_id = trainer.codec.mask_token_id
    rows = trainer.codec.encoder.get_input_embeddings().weight
    assert torch.equal(trainer.learner.mask_embedding.full_tensor(), rows[mask_id])
    out = train(config)
    before = load_file(Path(config.text or "") / "text_encoder" / "model.safetensors")
    after = load_file(out / "export_raw" / "text_encoder" / "model.safetensors")
    for name, tensor in before.items():
        changed = (tensor != after[name]).nonzero()
        if tensor.shape == rows.shape:
            assert changed[:, 0].unique().tolist() == [mask_id]
        else:
            assert not len(changed), name


def test_a_stage_starts_from_its_predecessors_export(plain: DualRun, tmp_path: Path) -> None:
    out = train(plain, stop_at=1)
    after = replace(plain, out=str(tmp_path / "next"), init=str(out / "export"), vae=None, text=None)
    start = make_trainer(after).trained
    exported = load_file(next((out / "export" / "transformer").glob("*.safetensors")))
    for name, tensor in exported.items():
        if name != "pos_embed.pos_embed":
            assert torch.equal(start[f"transformer.{name}"].full_tensor(), tensor.float()), name


def test_a_model_of_64_pixels_goes_on_at_128(plain: DualRun, tmp_path: Path) -> None:
    out = train(plain, stop_at=1)
    (source,) = plain.data.t2i
    assert isinstance(source, WorldData)
    large = WorldData(enlarge(source.world, 2), num_scenes=8)
    data = replace(plain.data, t2i=(large,), i2t=(), held_out=(), image_size=128)
    objective = replace(plain.objective, alignment_weight=0.0)
    after = replace(
        plain, out=str(tmp_path / "128"), init=str(out / "export"), data=data, objective=objective
    )
    trainer = make_trainer(after)
    assert trainer.data[0][0].t2i is not None
    assert trainer.data[0][0].t2i.noise.shape[-2:] == (32, 32)
    take_steps(trainer, 1)
    assert trainer.step == 1


def test_a_run_of_another_model_is_refused(plain: DualRun) -> None:
    train(plain, stop_at=1)
    wider = replace(plain, model=replace(plain.model, hidden_size=64))
    with pytest.raises(ValueError, match="holds a run of another model"):
        train(wider)
    with pytest.raises(
        ValueError, match=r"holds a run that trains other weights, such as model\.mask_embedding"
    ):
        train(replace(plain, train_mask_embedding=True))


def test_changed_settings_are_announced(plain: DualRun, capsys: pytest.CaptureFixture[str]) -> None:
    train(plain, stop_at=1)
    capsys.readouterr()
    train(replace(plain, seed=5, micro_batch_size=2), stop_at=2)
    words = capsys.readouterr().err
    assert "resumed with another seed: 1 -> 5" in words
    assert "micro_batch_size" not in words


def test_encoders_that_do_not_fit_are_named(plain: DualRun) -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size is 7, but the encoders need"):
        make_trainer(replace(plain, model=replace(plain.model, vocab_size=7)))
    with pytest.raises(ValueError, match="neither vae nor init is set"):
        make_trainer(replace(plain, vae=None))


def test_another_size_of_start_is_named(plain: DualRun, tmp_path: Path) -> None:
    out = train(plain, stop_at=1)
    deeper = replace(
        plain, out=str(tmp_path / "b"), init=str(out / "export"), model=replace(plain.model, depth=3)
    )
    with pytest.raises(ValueError, match="is of another size: depth 2 against 3"):
        make_trainer(deeper)


def test_fresh_parts_begin_anew_and_all_else_is_that_of_the_start(plain: DualRun, tmp_path: Path) -> None:
    out = train(plain, stop_at=1)
    fresh = ("text_proj_out", "pos_embed", "image_proj_out")
    other = replace(
        plain, out=str(tmp_path / "b"), init=str(out / "export"), fresh=fresh, seed=5,
        model=replace(plain.model, patch_size=2),
    )  # fmt: skip
    found = start_weights(other.model, other.init, 5, fresh).state_dict()
    old = load_transformer(out / "export" / "transformer").state_dict()
    anew = start_weights(other.model, None, 5).state_dict()
    for name, tensor in found.items():
        is_fresh = name.split(".")[0] in fresh
        assert torch.equal(tensor, (anew if is_fresh else old)[name].float()), name
    assert found["image_proj_out.weight"].shape != old["image_proj_out.weight"].shape
    for parts, message in (
        (("text_proj_out",), r"fresh text_proj_out: image_proj_out\.bias does not fit"),
        (("head",), "fresh head: it has no part 'head'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(replace(other, fresh=parts))


def test_a_joint_model_is_converted_to_one_whose_image_side_is_computed_once(
    plain: DualRun, tmp_path: Path
) -> None:
    out = train(plain, stop_at=1)
    isolated = replace(
        plain, out=str(tmp_path / "b"), init=str(out / "export"), vae=None, text=None,
        model=replace(plain.model, image_attends_text=False),
    )  # fmt: skip
    converted = Pipeline.from_pretrained(train(isolated, stop_at=1) / "export").transformer
    assert not converted.config.image_attends_text
    assert len(converted.image_kv(None)) == plain.model.depth


@pytest.mark.slow
def test_a_few_scenes_are_learnt_by_heart(joint: DualRun) -> None:
    config = replace(
        joint,
        model=replace(joint.model, hidden_size=64, num_heads=2),
        optimizer=replace(joint.optimizer, warmup_steps=5),
        max_steps=150,
    )
    trainer = make_trainer(config)
    one_batch = trainer.data[0]
    values = [trainer.train_step(one_batch).values for _ in range(150)]

    def mean(name: str, rows: slice) -> float:
        part = [row[name] for row in values[rows]]
        return sum(part) / len(part)

    assert mean("image", slice(-20, None)) < 0.75 * mean("image", slice(0, 5))
    assert mean("text", slice(-20, None)) < 0.3 * mean("text", slice(0, 5))
    assert mean("alignment", slice(-20, None)) < 0.3 * mean("alignment", slice(0, 5))


def test_a_run_trains_with_the_text_encoder_in_8_bit_at_nearly_the_same_losses(joint: DualRun) -> None:
    joint = replace(joint, max_steps=2, train_mask_embedding=True)

    def losses(config: DualRun) -> list[float]:
        return [event["total"] for event in read_log(train(config) / "log.jsonl") if "total" in event]

    full = losses(joint)
    int8 = losses(
        replace(joint, out=f"{joint.out}-int8", parallel=replace(joint.parallel, text_encoder="int8"))
    )
    assert int8 == pytest.approx(full, rel=1e-2)
    assert int8 != full


def test_adapters_are_trained_without_an_explicit_dtype_and_resumed(plain: DualRun) -> None:
    pytest.importorskip("peft")
    config = replace(plain, compute_dtype="auto", lora=replace(plain.lora, rank=2))
    trainer = make_trainer(config)
    frozen = {p.dtype for p in trainer.learner.parameters() if not p.requires_grad}
    assert frozen == {compute_dtype("auto", trainer.ranks.device)}
    train(config, stop_at=1)
    assert (train(config) / "adapters" / "adapter_model.safetensors").exists()


def test_a_checkpoint_of_version_0_1_is_resumed(plain: DualRun) -> None:
    out = train(plain, stop_at=1)
    (manifest,) = out.glob("ckpt-*/manifest.json")
    stored = json.loads(manifest.read_text())
    stored["broken"] = stored.pop("corrupt") | {"no file": 3}
    config = json.loads(stored["config"])
    config["data"]["draw"], config["data"]["read"] = config["data"].pop("t2i"), config["data"].pop("i2t")
    stored["config"] = json.dumps(config)
    manifest.write_text(json.dumps(stored))
    train(plain, stop_at=2)
    checkpoint = find_newest(out)
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert checkpoint.description["corrupt"] == {"no file": 3}
