"""A tiny chain of stages under one folder, made once: what the tests of the loop train on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddit.config.runs import TEACHER_FILE, DistillationConfig, DualRun, RewardConfig, save_config
from ddit.recipes import build
from ddit.settings import ImageSampling
from ddit.train.adamw8bit import BLOCK
from ddit.train.stages import run_stage
from ddit.world.detector import DetectorNet
from ddit.world.wide import WIDE_CLASSES


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    DetectorNet(8).save(root / "mini-teacher" / "export" / TEACHER_FILE)
    for stage in ("vae", "text", "latents"):
        run_stage(build(f"tiny-{stage}", root))
    return root


@pytest.fixture
def joint(root: Path, tmp_path: Path) -> DualRun:
    """A joint run of four steps with every loss on, in float32, from scratch."""
    config = build("tiny-stage1", root)
    assert isinstance(config, DualRun)
    report = replace(config.report, tensorboard=False, peak_tflops=1.0)
    return replace(config, out=str(tmp_path / "run"), init=None, compute_dtype="float32", report=report)


@pytest.fixture
def plain(joint: DualRun) -> DualRun:
    """The same run with AdamW at the published rate, which does not magnify rounding as Muon does; nothing shown."""
    optimizer = replace(joint.optimizer, name="adamw", lr=3e-5)
    report = replace(joint.report, evaluate_every=1000, grid_every=1000, num_held_out=0)
    return replace(joint, optimizer=optimizer, report=report)


@pytest.fixture
def wide(plain: DualRun) -> DualRun:
    """A plain run whose matrices are wide enough for 8-bit moments; its weights are in bfloat16."""
    return replace(
        plain,
        model=replace(plain.model, hidden_size=BLOCK, depth=1, num_heads=4),
        optimizer=replace(plain.optimizer, name="adamw8bit", weights="bfloat16", lr=1e-3),
    )


@pytest.fixture
def rewarded(plain: DualRun, tmp_path: Path) -> DualRun:
    """Two steps a round; the detector is as it was drawn, so that what is right is left to chance."""
    torch.manual_seed(0)
    judge = DetectorNet(8, WIDE_CLASSES)
    judge.heads.bias.data[: len(WIDE_CLASSES)] = -1.07  # it finds a few things everywhere
    judge.save(tmp_path / "judge.safetensors")
    reward = RewardConfig(
        detectors=(str(tmp_path / "judge.safetensors"),),
        num_prompts=4,
        group_size=2,
        num_steps=2,
        sampling=ImageSampling(num_steps=2, sampler="dpm", guidance_scale=1.0),
    )
    return replace(plain, reward=reward)


@pytest.fixture
def distilled(plain: DualRun) -> DualRun:
    """A step has four prompts, drawn in three steps each."""
    sampling = ImageSampling(num_steps=3, sampler="dpm", guidance_scale=2.0)
    return replace(plain, distillation=DistillationConfig(num_prompts=4, sampling=sampling))


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[DualRun], Path]:
    def write(config: DualRun) -> Path:
        folder = tmp_path / f"config-{len(list(tmp_path.iterdir()))}"
        save_config(config, folder)
        return folder / "config.json"

    return write
