"""What `ddit info` says of a model: weights to the byte, activations by the order, sizes as they are used."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SD3_SIZES, publish, save_sd3_folder, tiny_pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddit.model.folders import resolve
from ddit.model.info import Memory, ModelInfo, inspect_model, to_text
from ddit.pipeline import Pipeline


class PeakMeter(TorchDispatchMode):
    """The most bytes of tensors, made within its context, that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage(), given)
        return out

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in given or key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def memory_of(info: ModelInfo, dtype: str, text_encoder: str = "whole", offload: bool = False) -> Memory:
    wanted = (dtype, text_encoder, offload)
    return next(row for row in info.memory if (row.dtype, row.text_encoder, row.offload) == wanted)


def bytes_of(module: torch.nn.Module) -> int:
    tensors = {t.data_ptr(): t for t in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("text_encoder", ["whole", "int8"])
@pytest.mark.parametrize("name", ["mini", "tiny"])
def test_weights_are_those_of_the_loaded_model_to_the_byte(
    tiny: Path, name: str, dtype: str, text_encoder: Any
):
    folder = tiny if name == "tiny" else resolve(name)
    pipeline = Pipeline.from_pretrained(folder, dtype=dtype, int8=text_encoder == "int8")
    info = inspect_model(folder)
    codecs = [bytes_of(pipeline.text_codec.encoder), bytes_of(pipeline.image_codec.autoencoder)]
    assert memory_of(info, dtype, text_encoder).weights == bytes_of(pipeline.transformer) + sum(codecs)
    offloaded = memory_of(info, dtype, text_encoder, offload=True)
    assert offloaded.weights == bytes_of(pipeline.transformer) + max(codecs)
    assert offloaded.host == sum(codecs)
    counted = sum(p.numel() for p in pipeline.transformer.parameters())
    assert {part.name: part.parameters for part in info.parts}["transformer"] == counted


@pytest.mark.parametrize("name", ["mini", "tiny"])
def test_estimates_of_activations_are_of_the_measured_order(tiny: Path, name: str):
    folder = tiny if name == "tiny" else resolve(name)
    pipeline, row = Pipeline.from_pretrained(folder), memory_of(inspect_model(folder), "float32")
    with PeakMeter() as generating:
        (image,) = pipeline.generate("a red dog", num_steps=2)
    with PeakMeter() as captioning:
        pipeline.caption(image, num_steps=2, style="detailed" if name == "mini" else "plain")
    for measured, estimated in ((generating.peak, row.t2i), (captioning.peak, row.i2t)):
        assert 0.5 < estimated / measured < 2


def test_sizes_and_settings_are_those_that_the_pipeline_uses(tiny: Path):
    info, pipeline = inspect_model(tiny), Pipeline.from_pretrained(tiny)
    assert info.settings == pipeline.settings
    assert info.sizes.transformer == pipeline.transformer.config
    assert info.sizes.vocabulary == pipeline.text_codec.vocab_size
    assert pipeline.generate("a dog", num_steps=1, height=info.sizes.largest, width=info.sizes.unit)
    with pytest.raises(ValueError, match="is not a multiple"):
        pipeline.generate("a dog", height=info.sizes.largest + info.sizes.unit)


@pytest.mark.parametrize("attends", [True, False])
def test_it_says_whether_the_image_side_is_kept(tmp_path: Path, attends: bool):
    tiny_pipeline(image_attends_text=attends).save_pretrained(tmp_path / "model")
    assert ("computed once, exactly" in to_text(inspect_model(tmp_path / "model"))) != attends


def test_published_and_sd3_folders_are_read_as_they_load(tmp_path: Path):
    publish(tmp_path / "published")
    save_sd3_folder(tmp_path / "sd3", SD3_SIZES)
    for name, kind in (("published", "published D-DiT"), ("sd3", "SD3, to be trained")):
        info, pipeline = inspect_model(tmp_path / name), Pipeline.from_pretrained(tmp_path / name)
        assert info.kind == kind
        assert info.settings == pipeline.settings
        assert info.sizes.transformer == pipeline.transformer.config
        modules = (pipeline.transformer, pipeline.text_codec.encoder, pipeline.image_codec.autoencoder)
        assert memory_of(info, "float32").weights == sum(map(bytes_of, modules))


def test_no_weight_is_read(tiny: Path, tmp_path: Path):
    """Files cut off behind their headers would fail to load; here they keep their length and lose their data."""
    before = inspect_model(tiny).parts
    for path in tiny.rglob("*.safetensors"):
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        target = tmp_path / "model" / path.relative_to(tiny)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data[:end])
            file.truncate(len(data))
    for path in tiny.rglob("*.json"):
        target = tmp_path / "model" / path.relative_to(tiny)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert inspect_model(tmp_path / "model").parts == before


def test_what_is_missing_is_one_line(tiny: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has no transformer/"):
        inspect_model(tmp_path)
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ValueError, match=r"is incomplete: it has no config\.json"):
        inspect_model(tmp_path)


def test_a_download_is_found_and_none_is_begun(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub's own layout of its cache, made by hand."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown model 'owner/model'.* it has not been downloaded"):
        resolve("owner/model", only_stored=True)
    stored = tmp_path / "models--owner--model"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    (stored / "snapshots").mkdir()
    (stored / "snapshots" / ("0" * 40)).symlink_to(tiny)
    folder = resolve("owner/model", only_stored=True)
    assert inspect_model(folder).parts == inspect_model(tiny).parts


def test_json_has_all_of_it(tiny: Path):
    values = json.loads(json.dumps(inspect_model(tiny).to_json()))
    assert values["sizes"]["transformer"]["hidden_size"] == 32
    assert values["sizes"]["largest"] == 48
    assert [part["name"] for part in values["parts"]] == ["transformer", "text encoder", "autoencoder"]
    assert len(values["memory"]) == 10
    assert values["memory"][0]["peak"] > values["memory"][0]["weights"]
