"""Transformers on disk: published names, SD3 and SD3.5 as a start, incomplete and hostile folders."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SD3_SIZES, SD35_SIZES, randomize, save_sd3_folder

from ddit.files import find_variant
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.weights import (
    config_from_dict,
    config_to_dict,
    from_sd3,
    load_mask_embedding,
    load_transformer,
    save_transformer,
)

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "state_dict_shapes.json").read_text())
TINY = DualDiTConfig(
    in_channels=4,
    hidden_size=32,
    depth=2,
    num_heads=4,
    text_dim=24,
    vocab_size=40,
    sample_size=8,
    pos_embed_max_size=6,
)
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def tiny() -> DualDiT:
    model = DualDiT(TINY)
    randomize(model, 0)
    return model


@pytest.fixture
def folder(tiny: DualDiT, tmp_path: Path) -> Path:
    folder = tmp_path / "transformer"
    folder.mkdir()
    save_transformer(folder, tiny.config, tiny.state_dict().items())
    return folder


def assert_same_weights(model: DualDiT, expected: DualDiT) -> None:
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_names_and_shapes_are_the_published_ones_at_full_size():
    with torch.device("meta"):
        model = DualDiT(DualDiTConfig(vocab_size=32100))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == SHAPES["d_dit"]


def test_sd3_medium_covers_all_but_the_new_parts_at_full_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """`from_sd3` on SD3-medium's own names and shapes, with tensors that hold no data."""
    config = {
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "pos_embed_max_size": 192,
        "sample_size": 128,
    }
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))

    class Stored:
        def __init__(self, *_: object) -> None:
            self.shapes = {name: tuple(shape) for name, shape in SHAPES["sd3_medium"].items()}

        def read(self, names: list[str], *_: object) -> dict[str, torch.Tensor]:
            return {name: torch.empty(self.shapes[name], device="meta") for name in names}

    monkeypatch.setattr("ddit.model.weights.SafetensorsFiles", Stored)
    monkeypatch.setattr(
        "ddit.model.weights._fresh", lambda name, shape, generator: torch.empty(shape, device="meta")
    )
    model, report = from_sd3(tmp_path, vocab_size=32100, device="meta")
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == SHAPES["d_dit"]
    ours = {*report.copied, *report.adapted, *report.new}
    assert ours == set(SHAPES["d_dit"])
    agreeing = {name for name, shape in SHAPES["sd3_medium"].items() if SHAPES["d_dit"].get(name) == shape}
    assert set(report.copied) == agreeing | {
        f"image_{name}" for name in SHAPES["sd3_medium"] if name.startswith(("norm_out.", "proj_out."))
    }
    assert all(name.startswith("time_text_embed.text_embedder.") for name in report.dropped)


def test_configuration_round_trip():
    config = replace(TINY, qk_norm="rms_norm", dual_attention_layers=(0,), image_attends_text=False)
    assert config_from_dict(config_to_dict(config)) == config
    assert config_from_dict(config_to_dict(replace(config, stem=(8, 16)))).stem == (8, 16)
    assert "stem" not in config_to_dict(config)  # which 0.1 could not read


def test_published_configuration_with_the_keys_of_sd3():
    values = config_to_dict(TINY) | {"_class_name": "SD3JointModelFlexible", "pooled_projection_dim": 2048}
    assert config_from_dict(values) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layer": 3}, "unknown key num_layer"),
        ({"caption_projection_dim": 7}, "caption_projection_dim is 7, but this model needs 32"),
        ({"out_channels": 8}, "out_channels is 8"),
        ({"qk_norm": "layer_norm"}, "qk_norm must be rms_norm, got 'layer_norm'"),
    ],
)
def test_a_wrong_configuration_is_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config_from_dict(config_to_dict(TINY) | change)


def test_a_missing_configuration_key_is_named():
    values = config_to_dict(TINY)
    del values["vocab_size"]
    with pytest.raises(ValueError, match="missing key vocab_size"):
        config_from_dict(values)


def test_save_and_load_round_trip(tiny: DualDiT, folder: Path):
    model = load_transformer(folder)
    assert model.config == tiny.config
    assert_same_weights(model, tiny)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loading_in_another_dtype(folder: Path):
    model = load_transformer(folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_shards(tiny: DualDiT, folder: Path):
    tensors = load_file(folder / FILE)
    names, weight_map = sorted(tensors), {}
    for index, part in enumerate((names[:20], names[20:])):
        shard = f"diffusion_pytorch_model-0000{index + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / FILE).unlink()
    (folder / f"{FILE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_weights(load_transformer(folder), tiny)

    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing diffusion_pytorch_model-00002-of-00002\.safetensors"):
        load_transformer(folder)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_variant_is_found(folder: Path, variant: str):
    (folder / FILE).rename(folder / f"diffusion_pytorch_model.{variant}.safetensors")
    assert find_variant(folder, "diffusion_pytorch_model") == variant
    assert load_transformer(folder).config == TINY


def test_the_variant_of_the_wanted_dtype_is_preferred(folder: Path):
    shutil.copy(folder / FILE, folder / "diffusion_pytorch_model.bf16.safetensors")
    assert find_variant(folder, "diffusion_pytorch_model", torch.bfloat16) == "bf16"
    assert find_variant(folder, "diffusion_pytorch_model", torch.float32) is None


def test_an_incomplete_checkpoint_names_what_is_missing(folder: Path):
    tensors = load_file(folder / FILE)
    for name in ("null_image_embd", "context_embedder.bias"):
        del tensors[name]
    tensors["extra"] = torch.zeros(1)
    tensors["text_proj_out.bias"] = torch.zeros(3)
    save_file(tensors, folder / FILE)
    with pytest.raises(ValueError, match=r"2 missing \(.*null_image_embd") as caught:
        load_transformer(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "context_embedder.bias" in message
    assert "1 unexpected (extra)" in message
    assert "text_proj_out.bias [3] instead of [40]" in message


class Explosive:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_unread(folder: Path, tmp_path: Path, name: str):
    (folder / FILE).unlink()
    (folder / name).write_bytes(pickle.dumps(Explosive(tmp_path / "exploded")))
    with pytest.raises(ValueError, match=f"pickled weights only \\({name}\\).*convert them to safetensors"):
        load_transformer(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / FILE).write_bytes(b"not safetensors"), "cannot be read as safetensors"),
        (lambda f: (f / FILE).unlink(), "it has no diffusion_pytorch_model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "should hold a JSON object"),
    ],
)
def test_a_broken_folder_gets_one_line(folder: Path, damage, message: str):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_transformer(folder)
    assert "\n" not in str(caught.value)


def test_mask_embedding_from_the_published_kind_of_file(tmp_path: Path):
    vector = torch.arange(24.0)
    torch.save(vector[None], tmp_path / "mask_emb.pth")
    save_file({"embedding": vector}, tmp_path / "mask_emb.safetensors")
    for name in ("mask_emb.pth", "mask_emb.safetensors"):
        torch.testing.assert_close(load_mask_embedding(tmp_path / name), vector)


def test_a_hostile_mask_embedding_is_not_executed(tmp_path: Path):
    path = tmp_path / "mask_emb.pth"
    torch.save(Explosive(tmp_path / "exploded"), path)
    with pytest.raises(ValueError, match="cannot be read as a lone tensor"):
        load_mask_embedding(path)
    assert not (tmp_path / "exploded").exists()


def test_a_mask_embedding_of_two_tensors_is_refused(tmp_path: Path):
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "mask_emb.pth")
    with pytest.raises(ValueError, match="should hold one tensor"):
        load_mask_embedding(tmp_path / "mask_emb.pth")


@pytest.mark.parametrize("sizes", [SD3_SIZES, SD35_SIZES], ids=["sd3", "sd3.5"])
@pytest.mark.parametrize("size", [(8, 8), (4, 12)], ids=["square", "wide"])
def test_the_image_path_started_from_sd3_is_sd3s(tmp_path: Path, sizes: dict, size: tuple[int, int]):
    sd3 = save_sd3_folder(tmp_path, sizes)
    with torch.no_grad():  # the pooled CLIP text is what D-DiT drops
        sd3.time_text_embed.text_embedder.linear_2.weight.zero_()
        sd3.time_text_embed.text_embedder.linear_2.bias.zero_()
    model, _ = from_sd3(tmp_path, vocab_size=40, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, *size, generator=generator)
    states = torch.randn(3, 5, 24, generator=generator)
    t = torch.tensor([0.0, 0.3, 1.0])
    with torch.no_grad():
        expected = sd3(latents, states, torch.zeros(3, 16), 1000 * t).sample
        velocity = model(latents, t, states, num_t2i=3).velocity
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [SD3_SIZES, SD35_SIZES], ids=["sd3", "sd3.5"])
def test_what_is_new_beside_sd3(tmp_path: Path, sizes: dict):
    save_sd3_folder(tmp_path, sizes)
    model, report = from_sd3(tmp_path, vocab_size=40, generator=torch.Generator().manual_seed(0))
    last = "transformer_blocks.2."
    assert set(report.new) == {
        "null_image_embd",
        "text_proj_out.weight",
        "text_proj_out.bias",
        f"{last}attn.to_add_out.weight",
        f"{last}attn.to_add_out.bias",
        f"{last}ff_context.net.0.proj.weight",
        f"{last}ff_context.net.0.proj.bias",
        f"{last}ff_context.net.2.weight",
        f"{last}ff_context.net.2.bias",
    }
    assert len(report.dropped) == 4
    assert {*report.copied, *report.adapted, *report.new} == set(model.state_dict())
    logits = model(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.randn(1, 5, 24), num_t2i=0).logits
    assert logits is not None
    assert 0.01 < logits.std() < 10


def test_new_weights_come_from_the_generator(tmp_path: Path):
    save_sd3_folder(tmp_path, SD3_SIZES)
    first, again, other = (
        from_sd3(tmp_path, vocab_size=40, generator=torch.Generator().manual_seed(seed)).transformer
        for seed in (0, 0, 1)
    )
    assert_same_weights(first, again)
    assert not torch.equal(first.text_proj_out.weight, other.text_proj_out.weight)


def test_another_model_is_not_taken_for_sd3(tmp_path: Path):
    save_sd3_folder(tmp_path, SD3_SIZES)
    file = tmp_path / "transformer" / FILE
    tensors = load_file(file)
    del tensors["proj_out.weight"], tensors["transformer_blocks.0.attn.to_add_out.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"2 missing \(.*to_add_out.weight, image_proj_out.weight"):
        from_sd3(tmp_path, vocab_size=40)
