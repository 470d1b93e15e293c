"""Model folders written part by part: shards, merged adapters, a text encoder in 8 bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import SD3_SIZES, save_sd3_folder, tiny_pipeline

from ddit.devices import find_device
from ddit.files import SafetensorsFiles, set_row, write_tensors
from ddit.model import DualDiT
from ddit.model.adapters import add_adapters, save_adapters
from ddit.model.encoders import TextCodec
from ddit.model.info import inspect_model
from ddit.model.loading import fitting_dtype
from ddit.model.saving import merge_adapter
from ddit.model.t5 import save_int8
from ddit.pipeline import Pipeline

IDS = torch.arange(3, 15)[None]


def save_adapter(folder: Path, transformer: DualDiT) -> None:
    """Random adapters of a model, which is left as it is."""
    adapted = DualDiT(transformer.config)
    add_adapters(adapted, rank=2, alpha=3.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapters(folder, adapted)


def test_tensors_come_back_from_shards_with_an_index(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(50, dtype=torch.float32) for i in range(5)}
    write_tensors(tmp_path, "model", iter(tensors.items()), shard_bytes=450)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    stored = SafetensorsFiles(tmp_path, "model", None)
    assert stored.shapes == dict.fromkeys(tensors, (50,))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in stored.stream(tensors))


def test_a_row_is_written_in_place_and_nothing_else(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5, 4).bfloat16(), "c": torch.randn(2)}
    write_tensors(tmp_path, "model", tensors.items())
    row = torch.randn(4)
    set_row(tmp_path / "model.safetensors", "b", 3, row)
    found = load_file(tmp_path / "model.safetensors")
    tensors["b"][3] = row.bfloat16()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_folder_is_the_base_with_its_adapters_and_its_own_encoders(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tiny_pipeline()
    base.save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base.transformer)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype=dtype)
    expected = Pipeline.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", dtype="float32")
    found = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, tensor in expected.transformer.state_dict().items():
        assert torch.equal(found[name], tensor.to(dtype)), name
    assert not torch.equal(found["null_image_embd"], base.transformer.null_image_embd)
    for part in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "out" / part).samefile(tmp_path / "base" / part)
    again = Pipeline.from_pretrained(tmp_path / "out")
    assert again.settings == base.settings


def test_adapters_of_sd3_are_merged_into_the_model_that_is_made_of_it(tmp_path: Path) -> None:
    save_sd3_folder(tmp_path / "sd3", SD3_SIZES)
    start = Pipeline.from_pretrained(tmp_path / "sd3", dtype="float32")
    save_adapter(tmp_path / "adapter", start.transformer)
    merge_adapter(tmp_path / "sd3", tmp_path / "adapter", tmp_path / "out", dtype=torch.float32)
    expected = Pipeline.from_pretrained(tmp_path / "sd3", adapter=tmp_path / "adapter", dtype="float32")
    found = Pipeline.from_pretrained(tmp_path / "out", dtype="float32")
    for name, tensor in expected.transformer.state_dict().items():
        assert torch.equal(found.transformer.state_dict()[name], tensor), name
    assert found.settings == expected.settings


def test_what_was_saved_in_8_bit_is_what_is_quantised_at_loading(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "full")
    quantised = Pipeline.from_pretrained(tmp_path / "full", int8=True, dtype="float32")
    quantised.save_pretrained(tmp_path / "int8")
    for options in ({}, {"int8": True}):
        loaded = Pipeline.from_pretrained(tmp_path / "int8", dtype="float32", **options)
        assert torch.equal(loaded.text_codec.states(IDS), quantised.text_codec.states(IDS))
    rows, of_full = (inspect_model(tmp_path / name).memory for name in ("int8", "full"))
    assert rows == tuple(row for row in of_full if row.text_encoder == "int8")
    full = Pipeline.from_pretrained(tmp_path / "full", dtype="float32")
    assert not torch.equal(full.text_codec.states(IDS), quantised.text_codec.states(IDS))
    assert json.loads((tmp_path / "int8" / "ddit.json").read_text())["text_encoder"] == "int8"
    assert "text_encoder" not in json.loads((tmp_path / "full" / "ddit.json").read_text())
    stored = load_file(tmp_path / "int8" / "text_encoder" / "model.safetensors")
    matrices = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    assert len(matrices) == 7  # of one block
    assert {f"{name.removesuffix('weight')}scale" for name in matrices} < stored.keys()


def test_an_encoder_is_written_in_8_bit_without_being_loaded(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "full")
    for name in ("int8", "again"):
        (tmp_path / name).mkdir()
    save_int8(tmp_path / "full" / "text_encoder", tmp_path / "int8", torch.float32)
    save_int8(tmp_path / "int8", tmp_path / "again", torch.float32)
    loaded = Pipeline.from_pretrained(tmp_path / "full", int8=True, dtype="float32").text_codec
    for name in ("int8", "again"):
        codec = TextCodec.from_pretrained(tmp_path / "full" / "tokenizer", tmp_path / name)
        assert torch.equal(codec.states(IDS), loaded.states(IDS))


def test_the_scales_stay_float32_in_another_dtype(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    pipeline = Pipeline.from_pretrained(tmp_path, int8=True, dtype="float32").to(torch.bfloat16)
    scales = [
        buffer for name, buffer in pipeline.text_codec.encoder.named_buffers() if name.endswith("scale")
    ]
    assert {scale.dtype for scale in scales} == {torch.float32}


def test_bfloat16_is_taken_where_float32_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    modules = (pipeline.transformer, pipeline.image_codec.autoencoder, pipeline.text_codec.encoder)
    numbers = sum(t.numel() for module in modules for t in (*module.parameters(), *module.buffers()))

    def with_free(free: int | None) -> torch.dtype:
        monkeypatch.setattr("ddit.model.loading.available_memory", lambda: free)
        return fitting_dtype(tmp_path, find_device("cpu"))

    assert with_free(5 * numbers) == torch.float32
    assert with_free(None) == torch.float32
    monkeypatch.setattr("ddit.model.loading.multiplies_bfloat16", lambda device: True)
    with pytest.warns(UserWarning, match=r"loaded in bfloat16: float32 needs .* GB are free$"):
        assert with_free(4 * numbers) == torch.bfloat16
    monkeypatch.setattr("ddit.model.loading.multiplies_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match="no quick products in bfloat16"):
        assert with_free(4 * numbers) == torch.bfloat16
    with pytest.warns(UserWarning, match="int8 needs less"):
        assert with_free(numbers) == torch.bfloat16
    with pytest.warns(UserWarning, match="loaded in bfloat16"):
        assert Pipeline.from_pretrained(tmp_path, device="cpu").dtype == torch.bfloat16
    assert Pipeline.from_pretrained(tmp_path, device="cpu", dtype="float32").dtype == torch.float32
