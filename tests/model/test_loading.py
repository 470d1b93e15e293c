"""Model folders as others wrote them: SD3 without its T5, shards under their older names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SD3_SIZES, save_sd3_folder, tiny_pipeline, tiny_text_codec

from ddit.model.folders import resolve
from ddit.model.info import inspect_model
from ddit.model.loading import load_text_codec
from ddit.model.saving import EncoderFolders
from ddit.pipeline import Pipeline


@pytest.mark.parametrize("missing", ["text_encoder_3", "tokenizer_3", "both"])
def test_sd3_without_t5_is_named_as_that(tmp_path: Path, missing: str) -> None:
    save_sd3_folder(tmp_path, SD3_SIZES)
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        (tmp_path / part).mkdir()
    for part in ("text_encoder_3", "tokenizer_3") if missing == "both" else (missing,):
        (tmp_path / part).rename(tmp_path / f"without_{part}")
    with pytest.raises(ValueError, match="is SD3 without T5, its third text encoder"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="without T5"):
        inspect_model(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "{stem}.safetensors.index.fp16.json",
        "{stem}.safetensors.fp16.index.json",
        "{stem}.fp16.safetensors.index.json",
    ],
)
@pytest.mark.parametrize("shard", ["{stem}.fp16-0000{n}-of-00002", "{stem}-0000{n}-of-00002.fp16"])
def test_sharded_variants_load_under_all_names_that_they_had(tmp_path: Path, index: str, shard: str) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        whole = tmp_path / part / f"{stem}.safetensors"
        tensors = {name: tensor.half() for name, tensor in load_file(whole).items()}
        whole.unlink()
        names = sorted(tensors)
        weight_map = {}
        for n, some in ((1, names[::2]), (2, names[1::2])):
            file = shard.format(stem=stem, n=n) + ".safetensors"
            save_file({name: tensors[name] for name in some}, tmp_path / part / file, {"format": "pt"})
            weight_map |= dict.fromkeys(some, file)
        (tmp_path / part / index.format(stem=stem)).write_text(json.dumps({"weight_map": weight_map}))
    loaded = Pipeline.from_pretrained(tmp_path, dtype="float32")
    for mine, its in (
        (pipeline.transformer, loaded.transformer),
        (pipeline.text_codec.encoder, loaded.text_codec.encoder),
    ):
        for (name, wanted), (_, found) in zip(
            mine.state_dict().items(), its.state_dict().items(), strict=True
        ):
            assert torch.equal(wanted.half().float(), found), name


def test_t5s_own_folder_holds_encoder_and_tokenizer(tmp_path: Path) -> None:
    """As on the hub: everything in one folder; a model that is written from it has a folder for each."""
    codec = tiny_text_codec()
    codec.save_pretrained(tmp_path / "t5", tmp_path / "t5")
    loaded = load_text_codec(tmp_path / "t5")
    assert loaded.token_ids("a red dog") == codec.token_ids("a red dog")
    assert EncoderFolders.find(resolve("mini"), tmp_path / "t5")[1:] == (tmp_path / "t5", tmp_path / "t5")
