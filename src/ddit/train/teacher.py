"""Recipe stages: the teacher of representation alignment, and the latents with the teacher's features."""

from __future__ import annotations

from pathlib import Path

from ddit.config.runs import LatentsRun, TeacherRun, save_config
from ddit.train.precompute import precompute
from ddit.world.train_detector import train_detector

TEACHER_FILE = "teacher.safetensors"


def train_teacher(cfg: TeacherRun) -> Path:
    """Trains a small net on the world's truth, without held-out pairs, and leaves `export/teacher.safetensors`.

    It has the judge's architecture at another width, and its own seed, data and weights.
    """
    out = Path(cfg.out)
    save_config(cfg, out)
    net = train_detector(cfg.world, seed=cfg.seed, width=cfg.width, num_steps=cfg.max_steps, split="train")
    net.save(out / "export" / TEACHER_FILE)
    return out


def make_pool(cfg: LatentsRun) -> Path:
    """Precomputes the latents of the stage's source; goes on where an interrupted run stopped."""
    return precompute(cfg)
