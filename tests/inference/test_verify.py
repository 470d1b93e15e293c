"""`verify`: our own fixture holds; a tampered or incomplete folder does not, and says which tensor it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddit.inference.verify import GROUPS, verify

TINY = Path(__file__).parents[1] / "data" / "tiny"
INPUTS_OF_A_GROUP = {
    "forward.0.latents": {"forward.0.velocity", "forward.0.logits"},
    "masked.xt": {"masked.token_nll", "masked.loss"},
    "t2i.noise": {"t2i.latents"},
}
OUTPUTS = [
    f"{group}.{name}"
    for group in ("forward.0", "forward.1", "null_image", "masked", "flow", "t2i", "i2t")
    for name in GROUPS[group.split(".")[0]][1]
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


def tamper(folder: Path, name: str) -> None:
    """Changes the last element of one tensor."""
    tensors = load_file(folder / "reference.safetensors")
    flat = tensors[name].flatten()
    flat[-1] += 1 if flat.dtype == torch.int64 else 0.01
    save_file(tensors, folder / "reference.safetensors")


def failing(folder: Path, **tolerances: float) -> set[str]:
    return {comparison.name for comparison in verify(folder, **tolerances) if not comparison.within}


def test_every_group_is_recomputed_within_5e_5() -> None:
    comparisons = list(verify(TINY, atol=5e-5, rtol=0))
    assert [comparison.name for comparison in comparisons if not comparison.within] == []
    assert {comparison.name for comparison in comparisons} == set(OUTPUTS)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_tampered_output_is_the_one_that_is_named(folder: Path, name: str) -> None:
    tamper(folder, name)
    assert failing(folder) == {name}


@pytest.mark.parametrize("name", INPUTS_OF_A_GROUP)
def test_a_tampered_input_fails_what_is_computed_from_it(folder: Path, name: str) -> None:
    tensors = load_file(folder / "reference.safetensors")
    changed = tensors[name]
    tensors[name] = changed.flip(0) if changed.dtype == torch.int64 else changed + 0.1
    save_file(tensors, folder / "reference.safetensors")
    assert failing(folder) == INPUTS_OF_A_GROUP[name]


def test_a_tampered_weight_fails(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["transformer_blocks.1.attn.to_k.weight"][0, 0] += 0.5
    save_file(weights, path)
    assert "forward.0.velocity" in failing(folder)


def test_a_value_that_is_not_a_number_fails(folder: Path) -> None:
    tensors = load_file(folder / "reference.safetensors")
    tensors["forward.1.logits"][0, 0, 0] = float("nan")
    save_file(tensors, folder / "reference.safetensors")
    assert failing(folder) == {"forward.1.logits"}


def test_tolerances_are_the_caller_s(folder: Path) -> None:
    tamper(folder, "t2i.latents")
    assert failing(folder, atol=0.02) == set()


def test_bfloat16_agrees_loosely() -> None:
    comparisons = {c.name: c for c in verify(TINY, atol=0.1, rtol=0.1, dtype=torch.bfloat16)}
    assert comparisons["forward.0.velocity"].within
    assert comparisons["forward.0.velocity"].max_error > 1e-4


def test_incomplete_and_inconsistent_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a reference folder: it has no reference\.json"):
        list(verify(tmp_path / "nowhere"))
    listing = json.loads((folder / "reference.json").read_text())
    listing["keys"]["flow.extra"] = ["float32", [1]]
    (folder / "reference.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=r"differ in flow\.extra"):
        list(verify(folder))
    tensors = load_file(folder / "reference.safetensors")
    del tensors["flow.noise"]
    del listing["keys"]["flow.noise"], listing["keys"]["flow.extra"]
    save_file(tensors, folder / "reference.safetensors")
    (folder / "reference.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match="group flow has no tensor 'noise'"):
        list(verify(folder))
