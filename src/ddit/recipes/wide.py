"""`small` on the wide world: a model that is asked in many wordings, draws anywhere in an image, and writes long texts.

Its texts have three lengths: questions and captions, conversations, and detailed descriptions.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddit.config.data import WideData
from ddit.config.runs import (
    TEACHER_FILE,
    AutoencoderRun,
    DualRun,
    LatentsRun,
    RunConfig,
    TeacherRun,
    TextEncoderRun,
)
from ddit.model.config import DualDiTConfig
from ddit.recipes.small import Chain, final_run, image_run, joint_run, latents_run

TEXT_DIM, LATENT_CHANNELS, LATENT_SIZE, NUM_PIECES = 192, 8, 16, 1280
PROMPT_LENGTH, TEXT_LENGTH, SHORTER_LENGTHS = 24, 160, (32, 64)
"""Of 100 prompts 99 have at most 21 tokens; of descriptions 154, of questions with answers 22, of conversations 110."""
BLOCK_SIZE = 16
NUM_SCENES, NUM_TEXT_SCENES = 200_000, 2**31
ROWS = {"drawn": 128, "read": 64}
"""Samples of a step."""


def _scenes(*, latents: Path | None = None) -> WideData:
    """The training scenes of the transformer, cached or rendered: of their texts more than half are questions."""
    return WideData(
        num_scenes=NUM_SCENES,
        question_fraction=0.55,
        detailed_fraction=0.15,
        conversation_fraction=0.15,
        small_talk_fraction=0.01,
        detailed_prompt_fraction=0.0,  # they are longer than a prompt
        latents=None if latents is None else str(latents),
    )


def _held_out(source: WideData) -> WideData:
    return replace(source, split="val", num_scenes=2000, latents=None)


def _chain(root: Path) -> Chain:
    cached = _scenes(latents=root / "wide-latents")
    return Chain(
        root=root,
        name="wide",
        model=DualDiTConfig(
            in_channels=LATENT_CHANNELS,
            patch_size=2,
            hidden_size=256,
            depth=6,
            num_heads=4,
            text_dim=TEXT_DIM,
            vocab_size=NUM_PIECES,
            sample_size=LATENT_SIZE,
            pos_embed_max_size=16,
            image_attends_text=False,
            stem=(64, 128),
        ),
        t2i=(cached,),
        i2t=(cached,),
        held_out=(_held_out(cached),),
        image_size=cached.world.size,
        text_length=PROMPT_LENGTH,
        batch_size=ROWS["drawn"],
    )


def wide_vae(root: Path) -> AutoencoderRun:
    """The patch autoencoder."""
    scenes = replace(_scenes(), num_scenes=24_000)
    return AutoencoderRun(
        out=str(root / "wide-vae"),
        sources=(scenes,),
        held_out=(_held_out(scenes),),
        latent_channels=LATENT_CHANNELS,
        target_psnr=28.0,
        num_images=24_000,
        max_steps=7000,
        lr=1e-3,
    )


def wide_text(root: Path) -> TextEncoderRun:
    """The tokenizer and the tiny T5, by masked modelling on texts of all lengths."""
    texts = replace(_scenes(), num_scenes=NUM_TEXT_SCENES, detailed_prompt_fraction=0.1)
    return TextEncoderRun(
        out=str(root / "wide-text"),
        sources=(texts,),
        held_out=(_held_out(texts),),
        num_pieces=NUM_PIECES,
        hidden_size=TEXT_DIM,
        text_length=96,
        max_steps=3000,
        compute_dtype="auto",
    )


def wide_teacher(root: Path) -> TeacherRun:
    """The teacher of representation alignment, which saves two thirds of the images (LOG.md)."""
    return TeacherRun(out=str(root / "wide-teacher"), world=_scenes().world, max_steps=2000)


def wide_latents(root: Path) -> LatentsRun:
    """The pool of training scenes as latents, with the teacher's features."""
    chain = _chain(root)
    return replace(
        latents_run(chain, _scenes()),
        teacher=f"{wide_teacher(root).out}/export/{TEACHER_FILE}",
        feature_side=chain.model.sample_size // chain.model.patch_size,
    )


def wide_image(root: Path) -> DualRun:
    """Images only, with representation alignment."""
    run = image_run(_chain(root), max_steps=8000)
    return replace(
        run,
        data=replace(run.data, i2t_length=TEXT_LENGTH, i2t_lengths=SHORTER_LENGTHS),
        objective=replace(run.objective, alignment_weight=0.5, alignment_block=2),
    )


def wide_joint(root: Path) -> DualRun:
    """Both directions at once."""
    run = joint_run(_chain(root), wide_image(root), name="joint", max_steps=12_000)
    size = sum(ROWS.values())
    objective = replace(run.objective, i2t_fraction=ROWS["read"] / size)
    return replace(run, objective=objective, global_batch_size=size)


def wide_final(root: Path) -> DualRun:
    """The same without alignment, while the learning rate falls to 0."""
    run = final_run(_chain(root), wide_joint(root), name="final", max_steps=6000, seed=2)
    return replace(run, objective=replace(run.objective, alignment_weight=0.0))


def wide_blocks(root: Path) -> DualRun:
    """Conversion: a short tuning, after which texts are written in blocks."""
    final = wide_final(root)
    return replace(
        final,
        out=str(root / "wide-blocks"),
        init=f"{final.out}/export",
        model=replace(final.model, text_block_size=BLOCK_SIZE),
        optimizer=replace(final.optimizer, lr=3e-4, muon_lr=0.006),
        max_steps=1500,
        seed=3,
    )


WIDE_STAGES: dict[str, Callable[[Path], RunConfig]] = {
    "vae": wide_vae,
    "text": wide_text,
    "teacher": wide_teacher,
    "latents": wide_latents,
    "image": wide_image,
    "joint": wide_joint,
    "final": wide_final,
    "blocks": wide_blocks,
}
