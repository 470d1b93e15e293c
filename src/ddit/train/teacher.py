"""Recipe stages: the teacher of representation alignment, and the pool of latents with the teacher's features."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddit.config import LatentsRun, TeacherRun, save_config
from ddit.data.pool import LatentPool, fill_pool, num_chunks, prepare_pool
from ddit.data.scenes import SceneSource
from ddit.encoders import ImageCodec
from ddit.train.log import RunLog
from ddit.world.detector import DetectorNet, load_detector
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


@torch.no_grad()
def teacher_features(net: DetectorNet, pixels: Tensor, side: int) -> Tensor:
    """The teacher's view of clean pixels (B, 3, H, W), averaged to one vector an image token: (B, F, side, side)."""
    return F.adaptive_avg_pool2d(net.features(pixels), side).float()


def make_pool(cfg: LatentsRun) -> Path:
    """Precomputes the pool with `num_workers` processes; goes on where an interrupted one stopped."""
    out = Path(cfg.out)
    save_config(cfg, out)
    latents, features = _Encoder(cfg)(0, 1)
    description = {
        "num_scenes": cfg.num_scenes,
        "chunk_size": cfg.chunk_size,
        "latents_shape": list(latents.shape[1:]),
        "features_shape": None if features is None else list(features.shape[1:]),
        "made_from": {
            key: value for key, value in dataclasses.asdict(cfg).items() if key not in ("out", "num_workers")
        },
    }
    prepare_pool(out, description)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(cfg, worker)) for worker in range(1, cfg.num_workers)]
    for worker in workers:
        worker.start()
    try:
        _fill(cfg, 0)
    finally:
        for worker in workers:
            worker.join()
    LatentPool(out)  # complains if a worker failed
    return out


def _fill(cfg: LatentsRun, worker: int) -> None:
    if cfg.num_workers > 1:
        torch.set_num_threads(1)
    out, encode = Path(cfg.out), _Encoder(cfg)
    if worker > 0:
        fill_pool(out, encode, worker=worker, num_workers=cfg.num_workers)
        return
    total = -(-num_chunks({"num_scenes": cfg.num_scenes, "chunk_size": cfg.chunk_size}) // cfg.num_workers)
    with RunLog(out, total, unit="chunk") as log:
        fill_pool(out, encode, worker=0, num_workers=cfg.num_workers, on_chunk=log.advance)


class _Encoder:
    """(first, end) -> latents and features of those training scenes."""

    def __init__(self, cfg: LatentsRun) -> None:
        self.cfg, self.source = cfg, SceneSource(cfg.world)
        self.codec = ImageCodec.from_pretrained(cfg.vae)
        self.teacher = load_detector(Path(cfg.teacher)) if cfg.teacher else None

    def __call__(self, first: int, end: int) -> tuple[Tensor, Tensor | None]:
        pixels = self.source.pixels(first, end)
        parts = pixels.split(100)
        latents = torch.cat([self.codec.encode(part) for part in parts])
        if self.teacher is None:
            return latents, None
        side = self.cfg.feature_side
        return latents, torch.cat([teacher_features(self.teacher, part, side) for part in parts])
