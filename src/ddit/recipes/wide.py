"""The `mini` of version 0.1 on the wide world: asked in many wordings, it draws anywhere and writes long texts.

Half of the scenes are such as it knows, spoken of as in the wide world or as in the small one; the others have new
classes, a third style, other grounds, and half of these free places. Texts have three lengths: questions and captions,
conversations, and detailed descriptions.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ddit.config.data import SourceConfig, WideData, WorldData
from ddit.config.runs import (
    CHECK_FILE,
    TEACHER_FILE,
    DistillationConfig,
    DualRun,
    LatentsRun,
    RewardConfig,
    RunConfig,
    TeacherRun,
    TextEncoderRun,
)
from ddit.recipes.mini import SCENE_WEIGHTS, TEXT_DIM, mini_isolated
from ddit.recipes.small import Chain, image_run, joint_run, latents_run
from ddit.world import PRESETS
from ddit.world.wide import WIDE_PRESETS, WIDE_QUESTION_KINDS

NUM_PIECES = 1280
PROMPT_LENGTH, TEXT_LENGTH, SHORTER_LENGTHS = 24, 160, (32, 64)
"""Of 100 prompts 99 have at most 21 tokens; of descriptions 154, of questions with answers 22, of conversations 110."""
BLOCK_SIZE, BLOCK_LENGTHS = 16, (32, 64, 80, 96, 112, 128)
NUM_SCENES = {"free": 200_000, "fixed": 100_000, "known": 100_000, "small": 60_000}
NUM_TEXT_SCENES = 2**31
"""Of each pool of images, and of the texts that the text encoder learns from."""
SHARES = {"free": 0.25, "fixed": 0.25, "known": 0.3, "small": 0.2}
LATER_SHARES = {"free": 0.15, "fixed": 0.2, "known": 0.4, "small": 0.25}
"""Of the samples in `wide-joint`, and after it: free scenes, those in fixed places, scenes such as `mini` knows
in the wide world's wordings, and the small world with its own."""
LATER_READ_FRACTION = 0.375
BLOCK_SHARES = {"free": 0.1, "fixed": 0.1, "known": 0.65, "small": 0.15}
"""Of the samples that are read in `wide-blocks`."""
PRACTISED = {
    "style": 3.0, "ground_kind": 3.0, "binding": 1.0, "side_check": 1.0, "side": 0.5, "same_color": 0.5,
    "count_color": 0.5, "relation": 0.3, "exists_count": 0.2, "place": 0.3, "where": 0.2,
}  # fmt: skip
"""Kinds of questions that were still answered at chance, and those close to them: the only ones in `wide-practice`."""
ALL_DRAWN_SHARES = {"free": 0.15, "fixed": 0.15, "known": 0.45, "small": 0.25}
ALL_READ_SHARES = {"free": 0.1, "fixed": 0.15, "known": 0.6, "small": 0.15}
"""Of the samples in `wide-all`."""
ALL_READ_FRACTION = 0.3125
ALL_EMPHASIS = {
    "style": 6.0, "ground_kind": 6.0, "binding": 3.0, "same_color": 2.0, "side_check": 3.0, "side": 2.0,
    "relation": 2.0, "count_color": 2.0, "color_check": 1.5, "exists_count": 1.5, "place": 1.5, "where": 1.5,
    "exists": 0.5, "what": 0.5, "color_choice": 0.5, "count_all": 0.5,
}  # fmt: skip
"""Kinds of questions that were still answered at chance are asked more often than those that are known."""
LAST_DRAWN_SHARES = {"free": 0.1, "fixed": 0.1, "known": 0.45, "small": 0.35}
LAST_READ_SHARES = {"free": 0.1, "fixed": 0.1, "known": 0.55, "small": 0.25}
LAST_READ_FRACTION = 0.375
"""Of the samples in `wide-last`."""
DISTILLED_EMPHASIS = {
    "binding": 3.0, "negation": 2.0, "sides": 2.0, "position": 2.0, "three_kinds": 2.0,
    "single_object": 0.5, "colors": 0.5, "bare": 0.5,
}  # fmt: skip
"""Categories of prompts whose wordings are drawn least like the plain one are more often among `wide-distilled`'s."""
WORLDS = {
    "free": WIDE_PRESETS["wide"],
    "fixed": WIDE_PRESETS["wide-fixed"],
    "known": WIDE_PRESETS["wide-easy"],
}
BATCH_SIZE, TEXTS_PER_IMAGE = 256, 4
"""Half of a step's samples are drawn; of the other half four share an image."""
ALL_MASKED_SHARE = 0.5


def _scenes(kind: str, *, latents: Path | None = None) -> SourceConfig:
    """Training scenes of one of `SHARES`, cached or rendered: of their texts most are questions."""
    stored = None if latents is None else str(latents)
    num, weight = NUM_SCENES[kind], SHARES[kind]
    if kind == "small":
        world = replace(PRESETS["fixed"], weights=SCENE_WEIGHTS)
        return WorldData(world, num_scenes=num, question_fraction=0.6, weight=weight, latents=stored)
    return WideData(
        WORLDS[kind],
        num_scenes=num,
        question_fraction=0.65,
        detailed_fraction=0.08,
        conversation_fraction=0.1,
        small_talk_fraction=0.01,
        detailed_prompt_fraction=0.0,  # they are longer than a prompt
        weight=weight,
        latents=stored,
    )


def _start(root: Path) -> DualRun:
    """The run whose model this chain goes on with."""
    return mini_isolated(root, PRESETS["fixed"])


def _chain(root: Path) -> Chain:
    start = _start(root)
    scenes = tuple(_scenes(kind, latents=root / f"wide-latents_{kind}") for kind in SHARES)
    return Chain(
        root=root,
        name="wide",
        model=replace(start.model, vocab_size=NUM_PIECES),
        t2i=scenes,
        i2t=scenes,
        held_out=(replace(_scenes("free"), split="val", num_scenes=2000),),
        image_size=PRESETS["fixed"].size,
        text_length=PROMPT_LENGTH,
        vae=f"{start.out}/export",
    )


def wide_text(root: Path) -> TextEncoderRun:
    """The tokenizer and the tiny T5, by masked modelling on texts of all lengths."""
    own = {"detailed_prompt_fraction": 0.1, "wordings": "paraphrased"}
    texts = replace(_scenes("free"), num_scenes=NUM_TEXT_SCENES, **own)
    return TextEncoderRun(
        out=str(root / "wide-text"),
        sources=(texts,),
        held_out=(replace(texts, split="val", num_scenes=2000),),
        num_pieces=NUM_PIECES,
        hidden_size=TEXT_DIM,
        text_length=96,
        max_steps=2000,
        compute_dtype="auto",
    )


def wide_latents(root: Path, kind: str) -> LatentsRun:
    """The pool of training scenes of one kind as latents."""
    return latents_run(_chain(root), _scenes(kind), name=f"latents_{kind}")


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
        optimizer=replace(run.optimizer, lr=5e-4, muon_lr=0.010, schedule="linear", decay_fraction=1.0),
        global_batch_size=BATCH_SIZE,
        compute_dtype="auto",
    )


def wide_later(root: Path) -> DualRun:
    """More of what `mini` knows and more images, without descriptions, which are learnt in blocks.

    From `wide-joint`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`.
    """
    joint = wide_joint(root)
    return replace(
        joint,
        out=str(root / "wide-later"),
        init=f"{joint.out}/export",
        data=replace(
            joint.data,
            t2i=_with_shares(joint.data.t2i, LATER_SHARES),
            i2t=_with_shares(joint.data.i2t, LATER_SHARES, detailed_fraction=0.0),
        ),
        objective=replace(joint.objective, i2t_fraction=LATER_READ_FRACTION),
        max_steps=1700,
        seed=joint.seed + 1,
    )


def wide_blocks(root: Path) -> DualRun:
    """Conversion: a short tuning, after which texts are written in blocks; most of them are detailed descriptions."""
    joint, later = wide_joint(root), wide_later(root)
    texts = {"detailed_fraction": 0.7, "question_fraction": 0.2, "conversation_fraction": 0.05}
    return replace(
        later,
        out=str(root / "wide-blocks"),
        init=f"{later.out}/export",
        model=replace(later.model, text_block_size=BLOCK_SIZE),
        data=replace(
            later.data, i2t=_with_shares(joint.data.i2t, BLOCK_SHARES, **texts), i2t_lengths=BLOCK_LENGTHS
        ),
        objective=replace(joint.objective, lambda_text=3.0),
        max_steps=650,
        seed=later.seed + 1,
    )


def wide_practice(root: Path) -> DualRun:
    """For minutes little but what is still answered at chance. What ships went through it; it did not pay (LOG.md).

    From `wide-blocks`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`.
    """
    blocks = wide_blocks(root)
    emphasis = {kind: PRACTISED.get(kind, 0.0) for kind in WIDE_QUESTION_KINDS}
    texts = {
        "detailed_fraction": 0.25,
        "plain_descriptions": True,
        "question_fraction": 0.74,
        "question_emphasis": emphasis,
        "conversation_fraction": 0.0,
    }
    text = replace(blocks.objective.text, normalizer="unpadded")
    pools = dict(zip(SHARES, _with_shares(blocks.data.i2t, BLOCK_SHARES, **texts), strict=True))
    return replace(
        blocks,
        out=str(root / "wide-practice"),
        init=f"{blocks.out}/export",
        data=replace(blocks.data, i2t=(pools["known"],)),
        objective=replace(blocks.objective, i2t_fraction=0.75, lambda_text=1.0, text=text),
        optimizer=replace(blocks.optimizer, schedule="constant", warmup_steps=10),
        global_batch_size=128,
        max_steps=92,
        seed=blocks.seed + 2,
    )


def wide_all(root: Path) -> DualRun:
    """Everything at once, in blocks, and most of it drawn: wins back what the conversion took from answers and images.

    From `wide-practice`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`.
    """
    blocks, practice = wide_blocks(root), wide_practice(root)
    texts = {
        "detailed_fraction": 0.3,
        "plain_descriptions": True,
        "question_fraction": 0.5,
        "question_emphasis": ALL_EMPHASIS,
        "conversation_fraction": 0.06,
    }
    return replace(
        blocks,
        out=str(root / "wide-all"),
        init=f"{practice.out}/export",
        data=replace(
            blocks.data,
            t2i=_with_shares(blocks.data.t2i, ALL_DRAWN_SHARES),
            i2t=_with_shares(blocks.data.i2t, ALL_READ_SHARES, **texts),
        ),
        objective=replace(practice.objective, i2t_fraction=ALL_READ_FRACTION),
        max_steps=400,
        seed=blocks.seed + 1,
    )


def wide_last(root: Path) -> DualRun:
    """The same at half the rate, which falls to 0: more descriptions, their right predictions sharpened.

    From `wide-all`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`.
    """
    before = wide_all(root)
    text = replace(before.objective.text, sharpen=0.2)
    shares = {"detailed_fraction": 0.5, "question_fraction": 0.35, "conversation_fraction": 0.04}
    return replace(
        before,
        out=str(root / "wide-last"),
        init=f"{before.out}/export",
        data=replace(
            before.data,
            t2i=_with_shares(before.data.t2i, LAST_DRAWN_SHARES),
            i2t=_with_shares(before.data.i2t, LAST_READ_SHARES, **shares),
        ),
        objective=replace(before.objective, i2t_fraction=LAST_READ_FRACTION, text=text),
        optimizer=replace(before.optimizer, lr=2.5e-4, muon_lr=0.005, warmup_steps=10),
        max_steps=400,
        seed=before.seed + 2,
    )


def wide_paraphrased(root: Path) -> DualRun:
    """Half of what is asked and of the prompts in wordings that patterns make, of which there are 300,000.

    From `wide-last`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`.
    """
    last = wide_last(root)
    texts = {"detailed_fraction": 0.3, "question_fraction": 0.5, "wordings": "paraphrased"}
    return replace(
        last,
        out=str(root / "wide-paraphrased"),
        init=f"{last.out}/export",
        data=replace(
            last.data,
            t2i=_with_shares(last.data.t2i, LAST_DRAWN_SHARES, wordings="paraphrased"),
            i2t=_with_shares(last.data.i2t, LAST_READ_SHARES, **texts),
        ),
        objective=replace(last.objective, i2t_fraction=0.5),
        optimizer=replace(last.optimizer, lr=3.5e-4, muon_lr=0.007),
        max_steps=800,
        seed=last.seed + 1,
    )


def wide_judge(root: Path, *, second: bool = False) -> TeacherRun:
    """The detectors that tell `wide-rewarded` which of its drawings are right, and the net that checks what the first
    one finds: none is evaluation's.
    """
    first = TeacherRun(
        out=str(root / "wide-judge"),
        world=WIDE_PRESETS["wide"],
        width=64,
        max_steps=3600,
        decoys=True,
        check_steps=4000,
        seed=4242,
    )
    if not second:
        return first
    return replace(first, out=str(root / "wide-second-judge"), width=72, check_steps=0, seed=777)


def wide_rewarded(root: Path) -> DualRun:
    """The model draws, the judges tell what is right, and it moves towards that; beside it the reading goes on.

    From `wide-paraphrased`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`. Chance moves
    a run further than what it learns: the mean of several, a seed each, is better than any (`tools/mix_models.py`).
    """
    before, judge, second = wide_paraphrased(root), wide_judge(root), wide_judge(root, second=True)
    reward = RewardConfig(
        (f"{judge.out}/export/{TEACHER_FILE}", f"{second.out}/export/{TEACHER_FILE}"),
        check=f"{judge.out}/export/{CHECK_FILE}",
        likeness=True,
        presets={"fixed": 0.2, "wide-easy": 0.45, "wide": 0.35},
        paraphrased_share=0.7,
    )
    return replace(
        before,
        out=str(root / "wide-rewarded"),
        init=f"{before.out}/export",
        objective=replace(before.objective, i2t_fraction=0.75, image_weight=0.04),
        reward=reward,
        optimizer=replace(
            before.optimizer, lr=1.4e-4, muon_lr=0.0028, warmup_steps=10, decay_fraction=0.4, ema_decay=0.99
        ),
        global_batch_size=96,
        max_steps=160,
        seed=before.seed + 1,
    )


def wide_distilled(root: Path) -> DualRun:
    """A prompt is drawn in other words as it is in the plainest; beside it the reading goes on, more of it in detail.

    From `wide-rewarded`, or from what is packaged by `--set init=mini --set vae=mini --set text=mini`.
    """
    before = wide_rewarded(root)
    texts = {"detailed_fraction": 0.4, "question_fraction": 0.45, "wordings": "paraphrased"}
    return replace(
        before,
        out=str(root / "wide-distilled"),
        init=f"{before.out}/export",
        data=replace(before.data, i2t=_with_shares(before.data.i2t, LAST_READ_SHARES, **texts)),
        objective=replace(before.objective, i2t_fraction=1.0),
        reward=None,
        distillation=DistillationConfig(
            weight=20.0, emphasis=DISTILLED_EMPHASIS, plain_share=0.15, empty_share=0.08
        ),
        optimizer=replace(before.optimizer, lr=7e-5, muon_lr=0.0014, decay_fraction=1.0),
        global_batch_size=32,
        max_steps=320,
        seed=before.seed + 1,
    )


def _with_shares(
    sources: tuple[SourceConfig, ...],
    shares: dict[str, float],
    **texts: float | bool | str | dict[str, float],
) -> tuple[SourceConfig, ...]:
    """The pools with other shares, and the wide world's with other texts."""
    scenes = []
    for kind, source in zip(SHARES, sources, strict=True):
        changed = replace(source, weight=shares[kind])
        scenes.append(replace(changed, **texts) if isinstance(changed, WideData) else changed)
    return tuple(scenes)


WIDE_STAGES: dict[str, Callable[[Path], RunConfig]] = {
    "text": wide_text,
    **{f"latents_{kind}": partial(wide_latents, kind=kind) for kind in SHARES},
    "joint": wide_joint,
    "later": wide_later,
    "blocks": wide_blocks,
    "practice": wide_practice,
    "all": wide_all,
    "last": wide_last,
    "paraphrased": wide_paraphrased,
    "judge": wide_judge,
    "second_judge": partial(wide_judge, second=True),
    "rewarded": wide_rewarded,
    "distilled": wide_distilled,
}
