"""`small` on the small world, with its numbers: the packaged model's chain; and the same in seconds, for tests."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddit.config.data import WorldData
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
from ddit.world import WorldConfig, enlarge
from ddit.world.presets import Kind

TEXT_LENGTH, TEXT_DIM, LATENT_CHANNELS, LATENT_SIZE = 16, 192, 8, 16  # no text of the world exceeds 14 tokens
VOCAB_SIZE = 96
"""Tokens of the world's words and of the templates'."""
NUM_SCENES = 150_000
NUM_TEXT_SCENES = 2**31
"""Texts cost next to nothing: every one is of another scene."""
SCENE_WEIGHTS: dict[Kind, float] = {"single": 0.15, "two": 0.5, "count": 0.22, "mixed": 0.13}
"""Of the transformer's training scenes: more of the hard ones than a preset has."""


def _trained(world: WorldConfig, *, latents: Path | None = None, questions: float = 0.0) -> WorldData:
    """The training scenes of the transformer, cached or rendered."""
    return WorldData(
        replace(world, weights=SCENE_WEIGHTS),
        num_scenes=NUM_SCENES,
        question_fraction=questions,
        latents=None if latents is None else str(latents),
    )


def _mixed(world: WorldConfig, *, latents: Path | None = None, questions: float = 0.0) -> WorldData:
    """Scenes of two kinds with several of one."""
    usual = _trained(world, latents=latents, questions=questions)
    return replace(usual, world=replace(world, weights={"mixed": 1.0}), num_scenes=40_000, seed=1)


def _chain(root: Path, world: WorldConfig) -> Chain:
    """The small model on the world."""
    pool = root / "mini-latents"
    return Chain(
        root=root,
        name="mini",
        model=DualDiTConfig(
            in_channels=LATENT_CHANNELS,
            patch_size=4,
            hidden_size=256,
            depth=6,
            num_heads=4,
            text_dim=TEXT_DIM,
            vocab_size=VOCAB_SIZE,
            sample_size=LATENT_SIZE,
            pos_embed_max_size=8,
        ),
        t2i=(_trained(world, latents=pool),),
        i2t=(_trained(world, latents=pool, questions=0.5),),
        held_out=(WorldData(world, split="val", num_scenes=2000, question_fraction=0.5),),
        image_size=world.size,
        text_length=TEXT_LENGTH,
    )


def mini_vae(root: Path, world: WorldConfig) -> AutoencoderRun:
    """The patch autoencoder, on plain renderings."""
    return AutoencoderRun(
        out=str(root / "mini-vae"),
        sources=(WorldData(world, num_scenes=12_000),),
        held_out=(WorldData(world, split="val", num_scenes=256),),
        num_images=12_000,
        max_steps=1500,
    )


def mini_text(root: Path, world: WorldConfig) -> TextEncoderRun:
    """The tiny T5, by masked modelling."""
    scenes = WorldData(world, num_scenes=NUM_TEXT_SCENES)
    texts = scenes, replace(scenes, question_fraction=1.0)
    return TextEncoderRun(
        out=str(root / "mini-text"),
        sources=texts,
        held_out=tuple(replace(source, split="val") for source in texts),
        text_length=24,
        max_steps=2000,
    )


def mini_teacher(root: Path, world: WorldConfig) -> TeacherRun:
    """The teacher of representation alignment."""
    return TeacherRun(out=str(root / "mini-teacher"), world=world, max_steps=700)


def mini_latents(root: Path, world: WorldConfig) -> LatentsRun:
    """The pool of training scenes as latents, with the teacher's features."""
    return replace(
        latents_run(_chain(root, world), _trained(world)),
        teacher=str(root / "mini-teacher/export" / TEACHER_FILE),
    )


def mini_latents_mixed(root: Path, world: WorldConfig) -> LatentsRun:
    """A second pool, of the scenes whose captions are learnt last: two kinds of object, several of one."""
    return replace(
        mini_latents(root, world), out=str(root / "mini-latents_mixed"), source=_mixed(world), teacher=None
    )


def mini_image(root: Path, world: WorldConfig) -> DualRun:
    """Images only, with representation alignment: the part that SD3 has in the paper."""
    image = image_run(_chain(root, world), max_steps=5200)
    return replace(image, objective=replace(image.objective, alignment_weight=0.5, alignment_block=2))


def mini_stage1(root: Path, world: WorldConfig) -> DualRun:
    """Both directions at once, from the image-only model; the texts are captions and questions."""
    return joint_run(_chain(root, world), mini_image(root, world), name="stage1", max_steps=1760)


def _both_pools(root: Path, world: WorldConfig, questions: float, of_mixed: float) -> tuple[WorldData, ...]:
    """The two pools as i2t sources; `questions` and `of_mixed` are the shares of questions among their texts."""
    usual = _trained(world, latents=root / "mini-latents", questions=questions)
    mixed = _mixed(world, latents=root / "mini-latents_mixed", questions=of_mixed)
    return replace(usual, weight=0.75), replace(mixed, weight=0.25)


def mini_stage2(root: Path, world: WorldConfig) -> DualRun:
    """More captions, and harder ones; the mask token's embedding is trained."""
    stage1 = mini_stage1(root, world)
    return replace(
        stage1,
        out=str(root / "mini-stage2"),
        init=str(root / "mini-stage1/export"),
        data=replace(stage1.data, i2t=_both_pools(root, world, 0.4, 0.3)),
        train_mask_embedding=True,
        max_steps=2260,
        seed=2,
    )


def mini_stage3(root: Path, world: WorldConfig) -> DualRun:
    """Question tuning with image generation kept beside it (the paper's stage 3); the learning rate falls to 0."""
    stage2 = mini_stage2(root, world)
    stage3 = final_run(_chain(root, world), stage2, name="stage3", max_steps=2800, seed=4)
    return replace(
        stage3,
        text=None,  # that of stage 2, which trained the mask token's embedding
        data=replace(stage2.data, i2t=_both_pools(root, world, 0.55, 0.4)),
        objective=replace(stage2.objective, alignment_weight=0.0),
        train_mask_embedding=False,
    )


def mini_stage4(root: Path, world: WorldConfig) -> DualRun:
    """Stage 3 once more from a lower rate, with more captions among the texts and more t2i samples."""
    stage3 = mini_stage3(root, world)
    return replace(
        stage3,
        out=str(root / "mini-stage4"),
        init=str(root / "mini-stage3/export"),
        data=replace(stage3.data, i2t=_both_pools(root, world, 0.25, 0.25)),
        objective=replace(stage3.objective, i2t_fraction=0.375),
        optimizer=replace(stage3.optimizer, lr=5e-4, muon_lr=0.01),
        max_steps=6400,
        seed=7,
    )


def mini_stage4_128(root: Path, world: WorldConfig) -> DualRun:
    """Stage 4 continued at twice the resolution: 64 image tokens. Not part of the chain `mini`."""
    stage4 = mini_stage4(root, world)
    large = enlarge(world, 2)
    return replace(
        stage4,
        out=str(root / "mini-stage4_128"),
        init=str(root / "mini-stage4/export"),
        data=replace(
            stage4.data,
            t2i=(_trained(large),),
            i2t=tuple(
                replace(source, world=enlarge(source.world, 2), latents=None)
                for source in _both_pools(root, world, 0.5, 0.4)
            ),
            held_out=(replace(stage4.data.held_out[0], world=large),),
            image_size=large.size,
        ),
        objective=replace(stage4.objective, i2t_fraction=0.5),
        max_steps=1000,
        seed=5,
    )


def mini_isolated(root: Path, world: WorldConfig) -> DualRun:
    """Conversion: a short tuning, after which the image side of an i2t sample is computed once for all steps."""
    stage4 = mini_stage4(root, world)
    return replace(
        stage4,
        out=str(root / "mini-isolated"),
        init=str(root / "mini-stage4/export"),
        vae=None,  # that of `init`
        model=replace(stage4.model, image_attends_text=False),
        data=replace(stage4.data, i2t=_both_pools(root, world, 0.5, 0.4)),
        objective=replace(stage4.objective, i2t_fraction=0.5),
        optimizer=replace(stage4.optimizer, lr=3e-4, muon_lr=0.006),
        max_steps=3200,
        seed=6,
    )


def mini_blocks(root: Path, world: WorldConfig) -> DualRun:
    """Conversion: the isolated model tuned to write texts in blocks. Not part of the chain `mini`."""
    isolated = mini_isolated(root, world)
    return replace(
        isolated,
        out=str(root / "mini-blocks"),
        init=f"{isolated.out}/export",
        model=replace(isolated.model, text_block_size=4),
        max_steps=1600,
        seed=8,
    )


MINI_STAGES: dict[str, Callable[[Path, WorldConfig], RunConfig]] = {
    "vae": mini_vae,
    "text": mini_text,
    "teacher": mini_teacher,
    "latents": mini_latents,
    "latents_mixed": mini_latents_mixed,
    "image": mini_image,
    "stage1": mini_stage1,
    "stage2": mini_stage2,
    "stage3": mini_stage3,
    "stage4": mini_stage4,
    "isolated": mini_isolated,
    "stage4_128": mini_stage4_128,
    "blocks": mini_blocks,
}
EXTRA_STAGES = {"stage4_128", "blocks"}
"""Stages that are not part of the whole chain."""


def make_tiny(config: RunConfig) -> RunConfig:
    """The same stage at a size that takes seconds, for tests and for trying a machine out."""
    if isinstance(config, AutoencoderRun):
        (source,), (held_out,) = config.sources, config.held_out
        return replace(
            config, sources=(replace(source, num_scenes=64),), held_out=(replace(held_out, num_scenes=16),),
            num_images=64, num_pca_images=64, num_held_out=16, batch_size=8, max_steps=4,
        )  # fmt: skip
    if isinstance(config, TextEncoderRun):
        return replace(config, batch_size=6, max_steps=3, num_held_out=9, warmup_steps=1)
    if isinstance(config, TeacherRun):
        return replace(config, width=8, max_steps=2, check_steps=0)  # it finds nothing that could be checked
    if isinstance(config, LatentsRun):
        return replace(config, source=replace(config.source, num_scenes=48), shard_size=16, batch_size=16)
    assert isinstance(config, DualRun)
    data = config.data
    return replace(
        config,
        model=replace(config.model, hidden_size=32, depth=2, num_heads=2),
        data=replace(
            data,
            t2i=tuple(replace(source, num_scenes=48) for source in data.t2i),
            i2t=tuple(replace(source, num_scenes=48) for source in data.i2t),
        ),
        objective=replace(config.objective, alignment_block=0),
        reward=config.reward
        and replace(config.reward, check="", num_prompts=4, group_size=2, num_steps=2),
        distillation=config.distillation and replace(config.distillation, num_prompts=4),
        optimizer=replace(config.optimizer, warmup_steps=2),
        report=replace(
            config.report, log_every=1, evaluate_every=2, grid_every=4, num_held_out=8, num_grid=4,
            grid_sampling=replace(config.report.grid_sampling, num_steps=2),
        ),
        global_batch_size=8,
        max_steps=4,
    )  # fmt: skip
