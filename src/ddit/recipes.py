"""Named runs: functions that return the configuration of one stage. A stage differs from another in numbers only.

The small chain, `mini`, plays the paper's stages on the small world: autoencoder and text encoder, the teacher, the
pool of latents, then image-only training (SD3's part), joint training, and question tuning, each from its
predecessor's export.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddit.config import (
    AutoencoderRun,
    DualRun,
    LatentsRun,
    ObjectiveConfig,
    OptimizerConfig,
    ReportConfig,
    RunConfig,
    TeacherRun,
    TextEncoderRun,
)
from ddit.encoders import build_tokenizer
from ddit.flow import FlowConfig
from ddit.masked import MaskedConfig
from ddit.model import DualDiTConfig
from ddit.prompts import MINI
from ddit.train.teacher import TEACHER_FILE
from ddit.world import PRESETS, WorldConfig, vocabulary

TEXT_LENGTH, TEXT_DIM, LATENT_CHANNELS, LATENT_SIZE = 16, 192, 8, 16  # no text of the world exceeds 14 tokens


def mini_vae(root: Path, world: WorldConfig) -> AutoencoderRun:
    """The patch autoencoder, on plain renderings."""
    return AutoencoderRun(out=str(root / "mini-vae"), world=world, num_scenes=12_000, max_steps=1500)


def mini_text(root: Path, world: WorldConfig) -> TextEncoderRun:
    """The tiny T5, by masked modelling."""
    return TextEncoderRun(out=str(root / "mini-text"), world=world, text_length=24, max_steps=600)


def mini_teacher(root: Path, world: WorldConfig) -> TeacherRun:
    """The teacher of representation alignment."""
    return TeacherRun(out=str(root / "mini-teacher"), world=world, max_steps=700)


def mini_latents(root: Path, world: WorldConfig) -> LatentsRun:
    """The pool of training scenes as latents, with the teacher's features."""
    return LatentsRun(
        out=str(root / "mini-latents"),
        world=world,
        vae=str(root / "mini-vae/export/vae"),
        teacher=str(root / "mini-teacher/export" / TEACHER_FILE),
        num_scenes=100_000,
    )


def mini_image(root: Path, world: WorldConfig) -> DualRun:
    """Image only, with representation alignment: what SD3 is to the paper."""
    return DualRun(
        out=str(root / "mini-image"),
        world=world,
        vae=str(root / "mini-vae/export/vae"),
        text=str(root / "mini-text/export"),
        pool=str(root / "mini-latents"),
        model=DualDiTConfig(
            in_channels=LATENT_CHANNELS,
            patch_size=4,
            hidden_size=256,
            depth=6,
            num_heads=4,
            text_dim=TEXT_DIM,
            vocab_size=len(build_tokenizer([*vocabulary(), *MINI.words])),
            sample_size=LATENT_SIZE,
            pos_embed_max_size=8,
        ),
        objective=ObjectiveConfig(
            read_fraction=0.0,
            flow=FlowConfig(logit_mean=0.6, logit_std=1.1),
            text=MaskedConfig(normalizer="answer", max_weight=10.0),
            alignment_weight=0.5,
            alignment_block=2,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            lr=1e-3,
            muon_lr=0.02,
            betas=(0.9, 0.95),
            max_grad_norm=1.0,
            warmup_steps=60,
            schedule="constant",
            ema_decay=0.999,
        ),
        report=ReportConfig(evaluate_every=500, sheet_every=1000, checkpoint_minutes=5.0),
        text_length=TEXT_LENGTH,
        global_batch_size=128,
        max_steps=1500,
    )


def mini_joint(root: Path, world: WorldConfig) -> DualRun:
    """Both directions at once, from the image-only model; captions and questions are read."""
    image = mini_image(root, world)
    return replace(
        image,
        out=str(root / "mini-joint"),
        init=str(root / "mini-image/export"),
        objective=replace(image.objective, read_fraction=0.5, question_fraction=0.6, lambda_text=1.0),
        optimizer=replace(image.optimizer, lr=7e-4, muon_lr=0.014),
        max_steps=2500,
        seed=1,
    )


def mini_questions(root: Path, world: WorldConfig) -> DualRun:
    """Question tuning with image generation kept beside it (the paper's stage 3)."""
    joint = mini_joint(root, world)
    return replace(
        joint,
        out=str(root / "mini-questions"),
        init=str(root / "mini-joint/export"),
        objective=replace(
            joint.objective, read_fraction=0.625, question_fraction=0.8, lambda_text=3.0, alignment_weight=0.0
        ),
        optimizer=replace(joint.optimizer, schedule="linear", decay_fraction=0.5),
        max_steps=1400,
        seed=2,
    )


MINI_CHAIN: dict[str, Callable[[Path, WorldConfig], RunConfig]] = {
    "mini-vae": mini_vae,
    "mini-text": mini_text,
    "mini-teacher": mini_teacher,
    "mini-latents": mini_latents,
    "mini-image": mini_image,
    "mini-joint": mini_joint,
    "mini-questions": mini_questions,
}
"""The stages of `mini`, in order."""


def make_tiny(config: RunConfig) -> RunConfig:
    """The same stage at a size that takes seconds, for tests and for trying a machine out."""
    if isinstance(config, AutoencoderRun):
        return replace(config, num_scenes=64, num_pca_scenes=64, num_held_out=16, batch_size=8, max_steps=4)
    if isinstance(config, TextEncoderRun):
        return replace(config, batch_size=6, max_steps=3, num_held_out=9, warmup_steps=1)
    if isinstance(config, TeacherRun):
        return replace(config, width=8, max_steps=2)
    if isinstance(config, LatentsRun):
        return replace(config, num_scenes=48, chunk_size=16, num_workers=1)
    return replace(
        config,
        model=replace(config.model, hidden_size=32, depth=2, num_heads=2),
        objective=replace(config.objective, alignment_block=0),
        optimizer=replace(config.optimizer, warmup_steps=2),
        report=replace(
            config.report, log_every=1, evaluate_every=2, sheet_every=4, num_held_out=8, sheet_steps=2
        ),
        global_batch_size=8,
        max_steps=4,
    )


def build(name: str, root: str | Path, *, world: str = "fixed") -> RunConfig:
    """The configuration of stage `name` ("mini-...", or "tiny-..." for its seconds-long variant) under folder `root`.

    Raises `ValueError` for an unknown stage or an unknown preset of the world.
    """
    family, _, stage = name.partition("-")
    make = MINI_CHAIN.get(f"mini-{stage}")
    if family not in ("mini", "tiny") or make is None:
        raise ValueError(
            f"unknown recipe {name!r}; known: mini, tiny, {', '.join(MINI_CHAIN)} (and tiny-... of each)"
        )
    if world not in PRESETS:
        raise ValueError(f"unknown world {world!r}; known: {', '.join(PRESETS)}")
    config = make(Path(root), PRESETS[world])
    return make_tiny(config) if family == "tiny" else config


def stages(name: str) -> list[str]:
    """The stages that `name` stands for: "mini" and "tiny" are whole chains, anything else is one stage."""
    if name in ("mini", "tiny"):
        return [stage.replace("mini", name, 1) for stage in MINI_CHAIN]
    return [name]
