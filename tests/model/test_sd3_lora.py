"""LoRA files for SD3, in diffusers' and kohya's names: with them our image path gives what diffusers' own SD3 gives."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders import SD3LoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import SD3_SIZES, SD35_SIZES, save_sd3_folder, tiny_pipeline
from torch import Tensor

from ddit.model import DualDiT
from ddit.model.adapters import add_adapters, merge_stored, save_adapters, trained_names
from ddit.model.saving import merge_adapter
from ddit.model.sd3_lora import WEIGHTS_FILE
from ddit.model.weights import from_sd3
from ddit.pipeline import Pipeline

ALL_LINEARS = (
    r"(transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)"
    r"|norm1(_context)?\.linear)|context_embedder|pos_embed\.proj|norm_out\.linear|proj_out|time_text_embed\..*linear_\d)"
)
SIZES = pytest.mark.parametrize("sizes", [SD3_SIZES, SD35_SIZES], ids=["sd3", "sd3.5"])
left_out = pytest.mark.filterwarnings("ignore:.*modules are left out")


def noise(*shape: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def without_clip(sd3: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The pooled CLIP text is what D-DiT drops."""
    with torch.no_grad():
        sd3.time_text_embed.text_embedder.linear_2.weight.zero_()
        sd3.time_text_embed.text_embedder.linear_2.bias.zero_()
    return sd3


def start(folder: Path) -> DualDiT:
    return from_sd3(folder, vocab_size=40, generator=torch.Generator().manual_seed(0)).transformer


def assert_same_images(model: DualDiT, sd3: SD3Transformer2DModel, before: Tensor | None = None) -> Tensor:
    latents, states, t = (
        noise(3, 4, 8, 8, seed=1) * 10,
        noise(3, 5, 24, seed=2) * 10,
        torch.tensor([0.0, 0.3, 1.0]),
    )
    with torch.no_grad():
        expected = sd3(latents, states, torch.zeros(3, 16), 1000 * t).sample
        velocity = model(latents, t, states, num_t2i=3).velocity
    assert velocity is not None
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)
    if before is not None:
        assert (velocity - before).abs().mean() > 0.05 * before.abs().mean()
    return velocity


@left_out
@SIZES
@pytest.mark.parametrize("said", ["metadata", "nothing", "peft"])
def test_diffusers_files_draw_what_they_draw_there(tmp_path: Path, sizes: dict[str, Any], said: str) -> None:
    sd3 = without_clip(save_sd3_folder(tmp_path, sizes))
    before = assert_same_images(start(tmp_path), sd3)
    alpha = 8 if said != "nothing" else 4
    pattern = {} if said == "nothing" else {"attn.to_q": 2}
    config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=ALL_LINEARS, alpha_pattern=pattern)
    sd3.add_adapter(config)
    for index, (name, parameter) in enumerate(sd3.named_parameters()):
        if ".lora_" in name and "text_embedder" not in name:
            parameter.data = noise(*parameter.shape, seed=100 + index)
    if said == "peft":
        (tmp_path / "lora").mkdir()
        state = peft.get_peft_model_state_dict(sd3)
        stored = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
        save_file(stored, tmp_path / "lora" / "adapter_model.safetensors")
        config.save_pretrained(tmp_path / "lora")
    else:
        layers = peft.get_peft_model_state_dict(sd3)
        about = {"transformer_lora_adapter_metadata": config.to_dict()} if said == "metadata" else {}
        StableDiffusion3Pipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers, **about)
        assert (tmp_path / "lora" / WEIGHTS_FILE).is_file()
    model = start(tmp_path)
    merge_stored(model, tmp_path / "lora")
    assert_same_images(model, sd3, before)


def original_names(sd3: SD3Transformer2DModel) -> dict[str, Tensor]:
    """The checkpoint under SD3's original names, of which diffusers' own conversion makes its transformer again."""
    state, found = sd3.state_dict(), {}
    last = len(sd3.transformer_blocks) - 1

    def take(theirs: str, *ours: str, swap: bool = False) -> None:
        for kind in ("weight", "bias"):
            if f"{ours[0]}.{kind}" in state:
                whole = torch.cat([state[f"{name}.{kind}"] for name in ours])
                found[f"{theirs}.{kind}"] = torch.cat(whole.chunk(2)[::-1]) if swap else whole

    found["pos_embed"] = state["pos_embed.pos_embed"]
    take("x_embedder.proj", "pos_embed.proj")
    take("context_embedder", "context_embedder")
    for number, index in ((1, 0), (2, 2)):
        take(f"t_embedder.mlp.{index}", f"time_text_embed.timestep_embedder.linear_{number}")
        take(f"y_embedder.mlp.{index}", f"time_text_embed.text_embedder.linear_{number}")
    take("final_layer.linear", "proj_out")
    take("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    for index in range(last + 1):
        ours, image, text = (
            f"transformer_blocks.{index}",
            f"joint_blocks.{index}.x_block",
            f"joint_blocks.{index}.context_block",
        )
        take(f"{image}.attn.qkv", *(f"{ours}.attn.to_{one}" for one in "qkv"))
        take(f"{text}.attn.qkv", *(f"{ours}.attn.add_{one}_proj" for one in "qkv"))
        take(f"{image}.attn2.qkv", *(f"{ours}.attn2.to_{one}" for one in "qkv"))
        take(f"{image}.attn2.proj", f"{ours}.attn2.to_out.0")
        take(f"{image}.attn.proj", f"{ours}.attn.to_out.0")
        take(f"{text}.attn.proj", f"{ours}.attn.to_add_out")
        for norm, name in (("ln_q", "norm_q"), ("ln_k", "norm_k")):
            take(f"{image}.attn.{norm}", f"{ours}.attn.{name}")
            take(f"{image}.attn2.{norm}", f"{ours}.attn2.{name}")
            take(f"{text}.attn.{norm}", f"{ours}.attn.norm_added_{norm[-1]}")
        take(f"{image}.adaLN_modulation.1", f"{ours}.norm1.linear")
        take(f"{text}.adaLN_modulation.1", f"{ours}.norm1_context.linear", swap=index == last)
        for theirs, part in ((image, "ff"), (text, "ff_context")):
            take(f"{theirs}.mlp.fc1", f"{ours}.{part}.net.0.proj")
            take(f"{theirs}.mlp.fc2", f"{ours}.{part}.net.2")
    return found


@left_out
@SIZES
def test_kohyas_files_draw_what_the_original_model_draws_with_them(
    tmp_path: Path, sizes: dict[str, Any]
) -> None:
    """The original checkpoint with the changes added, made diffusers' by their own conversion."""
    sd3 = without_clip(save_sd3_folder(tmp_path, sizes))
    before = assert_same_images(start(tmp_path), sd3)
    original = original_names(sd3)
    lora: dict[str, Tensor] = {}
    for index, (name, weight) in enumerate(sorted(original.items())):
        module = name.removesuffix(".weight")
        if module == name or weight.ndim < 2 or module.startswith("y_embedder"):
            continue
        down, up = noise(3, *weight.shape[1:], seed=2 * index), noise(len(weight), 3, seed=2 * index + 1)
        original[name] = weight + 6.0 / 3 * (up @ down.flatten(1)).view(weight.shape)
        key = f"lora_unet_{module.replace('.', '_')}"
        lora |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up if weight.ndim == 2 else up[:, :, None, None],
            f"{key}.alpha": torch.tensor(6.0),
        }
    lora["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(3, 8)
    lora["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(8, 3)
    save_file(lora, tmp_path / "kohya.safetensors")
    changed = SD3Transformer2DModel(**sizes).eval()
    changed.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(original)))
    model = start(tmp_path)
    with pytest.warns(UserWarning, match="1 modules are left out, since a D-DiT has none such: lora_te1_"):
        merge_stored(model, tmp_path / "kohya.safetensors")
    assert_same_images(model, changed, before)


def adapted(model: DualDiT) -> DualDiT:
    add_adapters(model, rank=4, alpha=8.0)
    for index, name in enumerate(trained_names(model)):
        if ".lora_" in name:
            parameter = model.get_parameter(name)
            parameter.data = noise(*parameter.shape, seed=index)
    return model


@SIZES
def test_diffusers_loads_our_adapters(tmp_path: Path, sizes: dict[str, Any]) -> None:
    sd3 = without_clip(save_sd3_folder(tmp_path, sizes))
    before = assert_same_images(start(tmp_path), sd3)
    model = adapted(start(tmp_path))
    save_adapters(tmp_path / "own", model)
    state, metadata = SD3LoraLoaderMixin.lora_state_dict(str(tmp_path / "own"), return_lora_metadata=True)
    SD3LoraLoaderMixin.load_lora_into_transformer(state, sd3, metadata=metadata)
    assert_same_images(model, sd3, before)
    again = start(tmp_path)
    merge_stored(again, tmp_path / "own" / WEIGHTS_FILE)
    assert_same_images(again, sd3)


def test_a_folder_of_sd3_with_a_lora_is_loaded_and_merged(tmp_path: Path) -> None:
    save_sd3_folder(tmp_path / "sd3", SD3_SIZES)
    save_adapters(tmp_path / "own", adapted(start(tmp_path / "sd3")))
    lora = tmp_path / "own" / WEIGHTS_FILE
    loaded = Pipeline.from_pretrained(tmp_path / "sd3", adapter=lora, dtype="float32")
    merge_adapter(tmp_path / "sd3", lora, tmp_path / "merged", dtype=torch.float32)
    merged = Pipeline.from_pretrained(tmp_path / "merged", dtype="float32")
    for name, tensor in loaded.transformer.state_dict().items():
        torch.testing.assert_close(merged.transformer.state_dict()[name], tensor, msg=name)
    plain = Pipeline.from_pretrained(tmp_path / "sd3", dtype="float32")
    assert not torch.equal(
        plain.transformer.transformer_blocks[0].attn.to_q.weight,
        loaded.transformer.transformer_blocks[0].attn.to_q.weight,
    )


def test_what_does_not_fit_is_named_in_one_line(tmp_path: Path) -> None:
    model = tiny_pipeline().transformer
    path = tmp_path / "lora.safetensors"
    key = "transformer.transformer_blocks.0.attn.to_q"

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message) as caught:
            merge_stored(model, path)
        assert "\n" not in str(caught.value)

    pair = {f"{key}.lora_A.weight": torch.zeros(2, 32), f"{key}.lora_B.weight": torch.zeros(32, 2)}
    refused(
        {**pair, f"{key}.lora_A.weight": torch.zeros(2, 64)}, r"another size: .*to_q.*\[2, 64\] for 32 x 32"
    )
    refused({**pair, f"{key}.lora_B.weight": torch.zeros(32, 3)}, "another size")
    refused(
        {**pair, f"{key}.lora_magnitude_vector": torch.zeros(32)},
        "no plain LoRA: .*magnitude.* of another kind",
    )
    refused({f"{key}.lora_A.weight": torch.zeros(2, 32)}, "no plain LoRA: .*lora_A.weight is of another kind")
    refused({f"{key}.hada_w1_a": torch.zeros(2, 32)}, "no plain LoRA")
    clip = {
        name.replace("transformer.transformer_blocks.0", "text_encoder.layers.0"): t
        for name, t in pair.items()
    }
    refused(clip, r"changes nothing of an SD3 transformer: it holds text_encoder\.layers\.0\.attn\.to_q")
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_file(pair, tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(ValueError, match="name the file that is meant"):
        merge_stored(model, tmp_path / "two")


def test_the_header_of_our_file_says_rank_and_alpha(tmp_path: Path) -> None:
    save_adapters(tmp_path, adapted(tiny_pipeline().transformer))
    with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (about["transformer.r"], about["transformer.lora_alpha"]) == (4, 8.0)
    names = load_file(tmp_path / WEIGHTS_FILE)
    assert not any("transformer_blocks.1.ff_context" in name or "text_proj_out" in name for name in names)
    assert any("transformer_blocks.0.ff_context" in name for name in names)
