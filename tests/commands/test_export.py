"""`ddit export` on a run of two steps."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Run
from safetensors.torch import load_file
from tiny_models import tiny_pipeline

from ddit.config.data import DataConfig, WorldData
from ddit.config.runs import DualRun, to_json
from ddit.devices import join_ranks
from ddit.model.folders import load_settings
from ddit.train.checkpoint import save_checkpoint
from ddit.world.presets import PRESETS


@pytest.fixture
def trained(model: Path, tmp_path: Path) -> Path:
    """A run's folder with checkpoints of steps 2 and 4, whose weights are their step, and its negative on average."""
    transformer = tiny_pipeline().transformer
    source = WorldData(PRESETS["fixed"], num_scenes=8)
    run = tmp_path / "run"
    config = DualRun(
        str(run),
        transformer.config,
        DataConfig(t2i=(source,), i2t=(source,)),
        init=str(model),
        prompts="mini",
    )
    for step in (2, 4):
        state = {}
        for name, parameter in transformer.named_parameters():
            state[f"model.transformer.{name}"] = torch.full_like(parameter.data, step)
            state[f"ema.transformer.{name}"] = torch.full_like(parameter.data, -step)
        save_checkpoint(run, step, state, {"config": to_json(replace(config))}, keep=2, ranks=join_ranks())
    return run


def bias(folder: Path) -> float:
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return tensors["text_proj_out.bias"].float().mean().item()


def test_any_checkpoint_becomes_a_model_folder(run: Run, trained: Path, tmp_path: Path) -> None:
    for arguments, folder, value in (
        ((), trained / "export", -4),
        (("--no-average",), trained / "export_raw", 4),
        (("--step", 2), trained / "export-00000002", -2),
        ((tmp_path / "out", "--step", 2, "--no-average"), tmp_path / "out", 2),
    ):
        assert run("export", trained, *arguments).out.strip() == str(folder)
        assert bias(folder) == value
    assert load_settings(tmp_path / "out").prompt_style["question_template"].startswith("Q:")
    assert run("export", trained).fault == f"'{trained / 'export'}' exists: give --overwrite"
    run("export", trained, "--overwrite", "--int8")
    stored = load_file(trained / "export" / "text_encoder" / "model.safetensors")
    assert torch.int8 in {tensor.dtype for tensor in stored.values()}


def test_what_is_not_there_is_one_line(run: Run, trained: Path, tmp_path: Path) -> None:
    fault = run("export", trained, "--step", 3).fault
    assert fault == f"'{trained}' has no complete checkpoint of step 3: there are those of 2, 4"
    assert run("export", tmp_path / "nowhere").fault == f"there is no folder '{tmp_path / 'nowhere'}'"
    shutil.rmtree(trained / "ckpt-00000002")
    shutil.rmtree(trained / "ckpt-00000004")
    assert run("export", trained).fault == f"'{trained}' has no complete checkpoint"
