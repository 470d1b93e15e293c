"""The other verbs, on a tiny model: `ddit info`, `world`, `verify`, `train` and `merge`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import Run
from safetensors.torch import load_file, save_file
from tiny_models import tiny_pipeline

from ddit.images import read_image
from ddit.model.adapters import add_adapters, save_adapters

REFERENCE = Path(__file__).parents[1] / "data" / "tiny"


def test_info(run: Run, model: Path):
    assert "float32 --int8 --offload" in run("info", model).out
    assert json.loads(run("info", model, "--json").out)["settings"]["image_size"] == 32


def test_world(run: Run, tmp_path: Path):
    result = run(
        "world", tmp_path / "scenes", "--num", 3, "--preset", "free", "--split", "val", "--upscale", 2
    )
    assert result.out.strip() == str(tmp_path / "scenes" / "scenes.jsonl")
    scenes = [json.loads(line) for line in Path(result.out.strip()).read_text().splitlines()]
    assert len(scenes) == 3
    for scene in scenes:
        assert read_image(tmp_path / "scenes" / scene["image"]).size == (128, 128)
        assert scene["objects"]
        assert scene["captions"]
        assert {"question", "answer", "kind"} == set(scene["questions"][0])
    first = (tmp_path / "scenes" / "scenes.jsonl").read_bytes()
    run("world", tmp_path / "again", "--num", 3, "--preset", "free", "--split", "val", "--upscale", 2)
    assert (tmp_path / "again" / "scenes.jsonl").read_bytes() == first


def test_the_wide_world_is_written_as_scenes_alone(run: Run, tmp_path: Path):
    assert run("world", tmp_path / "wide", "--num", 2, "--preset", "wide").code == 0
    assert sorted(p.name for p in (tmp_path / "wide").iterdir()) == ["0000.png", "0001.png", "scenes.jsonl"]
    fault = run("world", tmp_path / "tar", "--num", 2, "--preset", "wide", "--form", "tar").fault
    assert fault.startswith("the preset wide is written as scenes in PNG alone")


def test_verify(run: Run):
    result = run("verify", REFERENCE, "--atol", 5e-5)
    assert result.code == 0
    lines = result.out.splitlines()
    listed = json.loads((REFERENCE / "reference.json").read_text())["keys"]
    assert {line.split()[1] for line in lines} < set(listed)
    assert all(line.startswith("ok") for line in lines)


def test_verify_names_a_tampered_tensor(run: Run, tmp_path: Path):
    for item in REFERENCE.iterdir():
        (tmp_path / item.name).symlink_to(item)
    tensors = load_file(REFERENCE / "reference.safetensors")
    tensors["forward.1.velocity"][0, 0, 0, 0] += 1e-2
    (tmp_path / "reference.safetensors").unlink()
    save_file(tensors, tmp_path / "reference.safetensors")
    result = run("verify", tmp_path, "--json")
    assert result.code == 1
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["name"] for row in rows if not row["within"]] == ["forward.1.velocity"]


@pytest.mark.parametrize(
    "file", ["reference.safetensors", "text_encoder/model.safetensors", "transformer/config.json"]
)
def test_verify_of_a_broken_folder_gets_one_line(run: Run, tmp_path: Path, file: str):
    folder = shutil.copytree(REFERENCE, tmp_path / "reference")
    (folder / file).write_text("garbage")
    assert str(folder) in run("verify", folder).fault


def test_train_dry_run(run: Run, tmp_path: Path):
    result = run(
        "train",
        "mini-stage1",
        "--root",
        tmp_path / "runs",
        "--set",
        "max_steps=7",
        "--init",
        "x",
        "--dry-run",
    )
    config = json.loads(result.out)
    assert config["max_steps"] == 7
    assert config["init"] == "x"
    assert not (tmp_path / "runs").exists()


def test_a_chains_configuration_is_one_json_value(run: Run, tmp_path: Path):
    stages = json.loads(run("train", "mini", "--dry-run", "--root", tmp_path).out)
    assert len(stages) > 5
    assert stages[0]["kind"] == "autoencoder"
    assert json.loads(run("train", "mini-stage1", "--dry-run", "--root", tmp_path).out)["kind"] == "dual"


def test_train_refuses_a_change_that_nothing_would_read(run: Run):
    fault = run("train", "mini-stage1", "--set", "lora.alpha=2", "--dry-run").fault
    assert fault == "lora.alpha would never be read: lora.rank is 0"


def test_train_plots_several_runs(run: Run, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text('{"step": 1, "total": 2.0}\n{"step": 2, "total": 1.0}\n')
    result = run("train", "--plot", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both.png")
    assert result.out.strip() == str(tmp_path / "both.png")
    assert read_image(tmp_path / "both.png").size[0] > 100


def test_a_merged_model_says_what_the_base_says_with_the_adapter(
    run: Run, model: Path, image: Path, tmp_path: Path
):
    transformer = tiny_pipeline().transformer
    add_adapters(transformer, rank=2, alpha=4.0)
    with torch.no_grad():
        transformer.text_proj_out.bias += torch.randn(transformer.text_proj_out.bias.shape).mul(20)
    save_adapters(tmp_path / "adapter", transformer)
    said = run("caption", image, "--model", model, "--adapter", tmp_path / "adapter").out
    assert said != run("caption", image, "--model", model).out
    merged = run("merge", model, tmp_path / "adapter", tmp_path / "merged", "--dtype", "float32")
    assert merged.out.strip() == str(tmp_path / "merged")
    assert run("caption", image, "--model", tmp_path / "merged").out == said
    fault = run("merge", "never/loaded", tmp_path / "adapter", tmp_path / "merged").fault
    assert fault == f"'{tmp_path / 'merged'}' exists: give --overwrite"
