"""The trained `mini` on the wide world: a model that is asked in many wordings, draws anywhere and writes long texts.

Half of the scenes are free; the others have fixed places, or are the small world's, which it knows. Texts have three
lengths: questions and captions, conversations, and detailed descriptions.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddit.config.data import WideData, WorldData
from ddit.config.runs import DualRun, LatentsRun, RunConfig, TextEncoderRun
from ddit.recipes.mini import SCENE_WEIGHTS, TEXT_DIM, mini_isolated
from ddit.recipes.small import Chain, image_run, joint_run, latents_run
from ddit.world import PRESETS
from ddit.world.wide import WIDE_PRESETS

NUM_PIECES = 1280
PROMPT_LENGTH, TEXT_LENGTH, SHORTER_LENGTHS = 24, 160, (32, 64)
"""Of 100 prompts 99 have at most 21 tokens; of descriptions 154, of questions with answers 22, of conversations 110."""
BLOCK_SIZE = 16
NUM_SCENES, NUM_FIXED_SCENES, NUM_SMALL_SCENES, NUM_TEXT_SCENES = 200_000, 100_000, 60_000, 2**31
FIXED_SHARE, SMALL_SHARE = 0.3, 0.2
"""Of the scenes, those in fixed places and those of the small world."""
BATCH_SIZE, TEXTS_PER_IMAGE = 256, 4
"""Half of a step's samples are drawn; of the other half four share an image."""
ALL_MASKED_SHARE = 0.5


def _scenes(*, latents: Path | None = None) -> WideData:
    """The training scenes of the transformer, cached or rendered: of their texts most are questions."""
    return WideData(
        num_scenes=NUM_SCENES,
        question_fraction=0.65,
        detailed_fraction=0.08,
        conversation_fraction=0.1,
        small_talk_fraction=0.01,
        detailed_prompt_fraction=0.0,  # they are longer than a prompt
        weight=1 - FIXED_SHARE - SMALL_SHARE,
        latents=None if latents is None else str(latents),
    )


def _fixed_scenes(*, latents: Path | None = None) -> WideData:
    free = _scenes(latents=latents)
    return replace(free, world=WIDE_PRESETS["wide-fixed"], num_scenes=NUM_FIXED_SCENES, weight=FIXED_SHARE)


def _small_scenes(*, latents: Path | None = None) -> WorldData:
    return WorldData(
        replace(PRESETS["fixed"], weights=SCENE_WEIGHTS),
        num_scenes=NUM_SMALL_SCENES,
        question_fraction=0.6,
        weight=SMALL_SHARE,
        latents=None if latents is None else str(latents),
    )


def _held_out(source: WideData) -> WideData:
    return replace(source, split="val", num_scenes=2000, latents=None)


def _start(root: Path) -> DualRun:
    """The run whose model this chain goes on with."""
    return mini_isolated(root, PRESETS["fixed"])


def _chain(root: Path) -> Chain:
    start, wide = _start(root), _scenes(latents=root / "wide-latents")
    fixed = _fixed_scenes(latents=root / "wide-latents_fixed")
    scenes = (wide, fixed, _small_scenes(latents=root / "wide-latents_small"))
    return Chain(
        root=root,
        name="wide",
        model=replace(start.model, vocab_size=NUM_PIECES),
        t2i=scenes,
        i2t=scenes,
        held_out=(_held_out(wide),),
        image_size=wide.world.size,
        text_length=PROMPT_LENGTH,
        vae=f"{start.out}/export",
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
        max_steps=2000,
        compute_dtype="auto",
    )


def wide_latents(root: Path) -> LatentsRun:
    """The pool of training scenes as latents."""
    return latents_run(_chain(root), _scenes())


def wide_latents_fixed(root: Path) -> LatentsRun:
    """Those in fixed places."""
    return latents_run(_chain(root), _fixed_scenes(), name="latents_fixed")


def wide_latents_small(root: Path) -> LatentsRun:
    """The small world's."""
    return latents_run(_chain(root), _small_scenes(), name="latents_small")


def wide_joint(root: Path) -> DualRun:
    """Both directions at once, from `mini` with another text encoder (`tools/wide_start.py`); the rate falls to 0."""
    chain = _chain(root)
    run = joint_run(chain, image_run(chain, max_steps=1), name="joint", max_steps=6000)
    text = replace(run.objective.text, all_masked_share=ALL_MASKED_SHARE)
    return replace(
        run,
        init=str(root / "wide-start"),
        data=replace(
            run.data,
            i2t_length=TEXT_LENGTH,
            i2t_lengths=SHORTER_LENGTHS,
            texts_per_image=TEXTS_PER_IMAGE,
        ),
        objective=replace(run.objective, text=text),
        optimizer=replace(run.optimizer, schedule="linear", decay_fraction=1.0),
        global_batch_size=BATCH_SIZE,
        compute_dtype="auto",
    )


def wide_blocks(root: Path) -> DualRun:
    """Conversion: a short tuning, after which texts are written in blocks."""
    joint = wide_joint(root)
    return replace(
        joint,
        out=str(root / "wide-blocks"),
        init=f"{joint.out}/export",
        model=replace(joint.model, text_block_size=BLOCK_SIZE),
        optimizer=replace(joint.optimizer, lr=3e-4, muon_lr=0.006),
        max_steps=1500,
        seed=joint.seed + 1,
    )


WIDE_STAGES: dict[str, Callable[[Path], RunConfig]] = {
    "text": wide_text,
    "latents": wide_latents,
    "latents_fixed": wide_latents_fixed,
    "latents_small": wide_latents_small,
    "joint": wide_joint,
    "blocks": wide_blocks,
}
