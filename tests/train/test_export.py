"""Model folders of a run's checkpoints: whole and adapted, averaged and not, with the frozen parts as links."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stepping import make_trainer, take_steps
from torch import Tensor

from ddit.config.runs import DualRun, LoraConfig
from ddit.model.adapters import load_adapters, merge_adapters
from ddit.pipeline import Pipeline
from ddit.train.checkpoint import GROUP_BYTES, StoredTensors, find_newest
from ddit.train.export import export_checkpoint
from ddit.train.loop import train


def exported(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("averaged", [True, False])
def test_a_folder_holds_the_trained_weights_in_bfloat16(
    plain: DualRun, tmp_path: Path, averaged: bool
) -> None:
    trainer = make_trainer(plain)
    take_steps(trainer, 2)
    trainer.export({"folder": averaged})
    found = exported(Path(plain.out) / "folder")
    tensors = trainer.ema.tensors if averaged else trainer.trained
    assert found.keys() == trainer.learner.transformer.state_dict().keys()
    for name, tensor in found.items():
        if name != "pos_embed.pos_embed":
            assert torch.equal(tensor, tensors[f"transformer.{name}"].detach().full_tensor().bfloat16()), name
    assert torch.equal(
        found["pos_embed.pos_embed"],
        trainer.learner.transformer.state_dict()["pos_embed.pos_embed"].bfloat16(),
    )


def test_frozen_parts_are_links_and_copies_where_there_can_be_none(
    plain: DualRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(plain)
    trainer.save()
    checkpoint = find_newest(Path(plain.out))
    assert checkpoint is not None
    parts = {
        "text_encoder/model.safetensors": Path(plain.text or "") / "text_encoder" / "model.safetensors",
        "vae/diffusion_pytorch_model.safetensors": Path(plain.vae or "")
        / "diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer.json": Path(plain.text or "") / "tokenizer" / "tokenizer.json",
    }
    export_checkpoint(plain, checkpoint.folder, tmp_path / "linked")
    for part, source in parts.items():
        assert (tmp_path / "linked" / part).samefile(source), part

    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    export_checkpoint(plain, checkpoint.folder, tmp_path / "copied")
    for part, source in parts.items():
        copy = tmp_path / "copied" / part
        assert not copy.samefile(source)
        assert copy.read_bytes() == source.read_bytes()


def test_a_trained_mask_embedding_leaves_the_encoder_it_came_from_as_it_was(plain: DualRun) -> None:
    config = replace(plain, train_mask_embedding=True, optimizer=replace(plain.optimizer, lr=1e-2))
    source = Path(config.text or "") / "text_encoder" / "model.safetensors"
    before = source.read_bytes()
    trainer = make_trainer(config)
    take_steps(trainer, 2)
    trainer.export({"folder": True})
    codec = Pipeline.from_pretrained(Path(config.out) / "folder").text_codec
    row = codec.encoder.get_input_embeddings().weight[codec.mask_token_id]
    assert torch.equal(row, trainer.ema.tensors["mask_embedding"].full_tensor())
    assert source.read_bytes() == before


def test_adapters_are_merged_into_what_the_run_started_from(plain: DualRun, tmp_path: Path) -> None:
    base = train(plain, stop_at=1) / "export"
    config = replace(
        plain, out=str(tmp_path / "lora"), init=str(base), vae=None, text=None, lora=LoraConfig(rank=2),
        optimizer=replace(plain.optimizer, lr=1e-2),
    )  # fmt: skip
    out = train(config)
    transformer = Pipeline.from_pretrained(base, dtype="float32").transformer
    load_adapters(transformer, out / "adapters")  # rounded to bfloat16
    merge_adapters(transformer)
    start, found = exported(base), exported(out / "export")
    name = "transformer_blocks.0.attn.to_q.weight"
    assert not torch.equal(found[name], start[name])
    for name, tensor in transformer.state_dict().items():
        torch.testing.assert_close(found[name].float(), tensor, atol=2e-3, rtol=1e-2)


def test_averaged_models_are_exported_on_the_way(plain: DualRun) -> None:
    report = replace(plain.report, export_steps=2, checkpoint_steps=100)
    out = train(replace(plain, report=report), stop_at=3)
    assert sorted(path.name for path in out.glob("export*")) == ["export", "export-00000002", "export_raw"]
    assert (out / "ckpt-00000002").is_dir()
    first, last = exported(out / "export-00000002"), exported(out / "export")
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_tensors_are_read_whole_and_a_few_at_a_time(plain: DualRun, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(plain)
    trainer.save()
    checkpoint = find_newest(Path(plain.out))
    assert checkpoint is not None
    stored = StoredTensors(checkpoint.folder, "model.")
    read, sizes = stored.read, []

    def counted(names: list[str], dtype: torch.dtype) -> dict[str, Tensor]:
        found = read(names, dtype)
        sizes.append(sum(tensor.nbytes for tensor in found.values()))
        return found

    monkeypatch.setattr(stored, "read", counted)
    monkeypatch.setattr("ddit.train.checkpoint.GROUP_BYTES", 50_000)
    assert GROUP_BYTES > 50_000
    found = dict(stored.stream(stored.shapes, torch.float32))
    assert found.keys() == trainer.trained.keys()
    assert all(torch.equal(t, trainer.trained[name].full_tensor()) for name, t in found.items())
    assert len(sizes) > 3
    assert max(sizes[:-1]) < 50_000 + max(tensor.nbytes for tensor in found.values())
    with pytest.raises(ValueError, match=r"has no model\.nothing"):
        stored.read(["nothing"], torch.float32)


def test_a_run_whose_encoders_are_gone_says_so(plain: DualRun, tmp_path: Path) -> None:
    trainer = make_trainer(plain)
    trainer.save()
    checkpoint = find_newest(Path(plain.out))
    assert checkpoint is not None
    (tmp_path / "empty" / "text_encoder").mkdir(parents=True)
    gone = replace(plain, text=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"text_encoder' is incomplete: it has no model\.safetensors"):
        export_checkpoint(gone, checkpoint.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
