"""A D-DiT in diffusers' hands: its folders go both ways, and give the same images and texts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from tiny_models import SD3_SIZES, save_sd3_folder, tiny_pipeline

from ddit.diffusers_pipeline import DualDiffusionPipeline, DualDiTModel
from ddit.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:the model does not know", "ignore:the text has")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers copies the files that it runs."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


def load(folder: Path, **options: Any) -> DualDiffusionPipeline:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    assert type(pipeline).__name__ == "DualDiffusionPipeline"
    return pipeline


@pytest.fixture
def ours(tmp_path: Path) -> Pipeline:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "ours")
    return pipeline


def test_our_folder_is_a_pipeline_of_diffusers(ours: Pipeline, tmp_path: Path) -> None:
    pipeline = load(tmp_path / "ours")
    assert isinstance(pipeline.transformer, ModelMixin)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert pipeline.ddit.settings == ours.settings
    images = pipeline(["a dog", "a cat"], num_inference_steps=2).images
    assert same(images, ours.generate(["a dog", "a cat"], num_steps=2))
    assert pipeline.caption(images) == ours.caption(images)
    assert pipeline.answer(images, "is there a dog") == ours.answer(images, "is there a dog")


def test_diffusers_saves_what_ours_loads_and_the_reverse(ours: Pipeline, tmp_path: Path) -> None:
    load(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Pipeline.from_pretrained(tmp_path / "theirs")
    assert same(again.generate("a dog"), ours.generate("a dog"))
    back = load(tmp_path / "theirs")
    assert same(back("a dog").images, ours.generate("a dog"))
    for name in ("model_index.json", "ddit.json", "transformer/config.json", "pipeline.py"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()


def test_parts_are_components(ours: Pipeline, tmp_path: Path) -> None:
    alone = DualDiTModel.from_pretrained(tmp_path / "ours", subfolder="transformer", dtype=torch.bfloat16)
    assert alone.dtype == torch.bfloat16
    alone.save_pretrained(tmp_path / "alone")
    assert DualDiTModel.from_pretrained(tmp_path / "alone").config == ours.transformer.config
    pipeline = load(tmp_path / "ours", vae=ours.image_codec.autoencoder)
    assert pipeline.vae is ours.image_codec.autoencoder
    pipeline = load(tmp_path / "ours", dtype=torch.bfloat16)
    pipeline.to(torch.float32)
    assert pipeline.ddit.dtype == torch.float32


def test_mini_and_a_text_encoder_in_8_bit(tmp_path: Path) -> None:
    mini = Pipeline.from_pretrained("mini", int8=True, dtype="float32")
    mini.save_pretrained(tmp_path / "mini")
    pipeline = load(tmp_path / "mini")
    assert same(pipeline("a red dog").images, mini.generate("a red dog"))
    index = json.loads((tmp_path / "mini" / "model_index.json").read_text())
    assert index["text_encoder"] == ["ddit_part", "Int8TextEncoder"]
    pipeline.to(torch.float32)


def test_nothing_runs_unless_it_is_trusted(ours: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="without a variant"):
        load(tmp_path / "ours").save_pretrained(tmp_path / "other", variant="fp16")


def test_sd3s_own_folder_as_diffusers_saves_it_is_loaded(tmp_path: Path) -> None:
    sd3 = save_sd3_folder(tmp_path / "sd3", SD3_SIZES)
    loaded = Pipeline.from_pretrained(tmp_path / "sd3", dtype="float32").transformer
    weight = sd3.transformer_blocks[0].attn.to_q.weight
    torch.testing.assert_close(loaded.transformer_blocks[0].attn.to_q.weight, weight, check_device=True)


@pytest.mark.slow
def test_it_loads_in_a_process_that_knows_the_folder_alone(ours: Pipeline, tmp_path: Path) -> None:
    code = (
        "from diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained('ours', trust_remote_code=True)\n"
        "pipeline('a dog', num_inference_steps=2).images[0].save('dog.png')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=300)
    assert same([Image.open(tmp_path / "dog.png")], ours.generate("a dog", num_steps=2))
