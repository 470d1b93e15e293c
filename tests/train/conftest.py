"""A tiny chain of stages under one folder, made once: what the tests of the loop train on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddit.config import DualRun
from ddit.recipes import build
from ddit.train.run import run_stage
from ddit.train.teacher import TEACHER_FILE
from ddit.world.detector import DetectorNet


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
    config = build("tiny-joint", root)
    assert isinstance(config, DualRun)
    return replace(config, out=str(tmp_path / "run"), init=None, compute_dtype="float32")
