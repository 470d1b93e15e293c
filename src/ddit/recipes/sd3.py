"""The paper's stages at its sizes, with the published values.

Where paper and published code differ, the paper's: the loss regresses the velocity (the code's, x0, is
`objective.flow.weighting="x0"`), and the average decays by 0.9995 (the code never reads its key and runs 0.9999). Each
stage starts from the averaged weights of the one before it, and its own average forgets that start in its first steps.

What a stage is watched by is ours: captions in `data/held_out`, which are shards of `data/pretrain` set aside, and from
stage 3 on questions of VQAv2's validation set too.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ddit.config.data import DataConfig, JsonData, LlavaData, QuestionsData, TarData
from ddit.config.runs import DualRun, LoraConfig, OptimizerConfig, ParallelConfig, ReportConfig
from ddit.model.config import DualDiTConfig
from ddit.settings import ImageSampling


class Size(NamedTuple):
    """A published image-only model: its name here, the sizes of ours made from it, and where its weights are."""

    name: str
    model: DualDiTConfig
    start: str


SIZES = {
    "sd3-medium": Size("sd3-medium", DualDiTConfig(), "stabilityai/stable-diffusion-3-medium-diffusers"),
    "sd3.5-medium": Size(
        "sd3.5-medium",
        DualDiTConfig(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        "stabilityai/stable-diffusion-3.5-medium",
    ),
}
PUBLISHED_TUNED = "JleeOfficial/dual_diff_sd3_512_sft"


def sd3_stage1(root: Path, size: Size) -> DualRun:
    """Joint pre-training from SD3 at 256 px, with the published values."""
    return DualRun(
        out=str(root / f"{size.name}-stage1"),
        init=size.start,
        model=size.model,
        data=DataConfig(
            t2i=(TarData(str(root / "data/pretrain"), caption_key="re_caption", original_key="org_caption"),),
            held_out=(TarData(str(root / "data/held_out"), caption_key="re_caption"),),
            image_size=256,
            t2i_length=64,
            i2t_length=64,
        ),
        optimizer=OptimizerConfig(decay="all"),
        parallel=ParallelConfig(
            num_replicas="auto",
            checkpoint_activations="auto",
            accumulate="auto",
            compile_blocks=True,
            text_encoder="auto",
        ),
        report=ReportConfig(checkpoint_minutes=30.0, grid_sampling=ImageSampling(), num_grid=16),
        global_batch_size=512,
        micro_batch_size="auto",
        max_steps=60_000,
        compute_dtype="bfloat16",
    )


def sd3_stage2(root: Path, size: Size) -> DualRun:
    """Captions of higher quality, longer; the mask token's embedding is trained, nothing else of T5."""
    stage1 = sd3_stage1(root, size)
    data = root / "data"
    return replace(
        stage1,
        out=str(root / f"{size.name}-stage2"),
        init=f"{stage1.out}/export",
        data=replace(
            stage1.data,
            i2t=(
                JsonData(
                    str(data / "sharegpt4v_pretrain.json"), images=str(data / "images"), original_share=0.0
                ),
                TarData(str(data / "openimages"), caption_key="re_caption"),
            ),
            t2i_length=256,
            i2t_length=256,
        ),
        train_mask_embedding=True,
        max_steps=200_000,
        seed=1,
    )


def sd3_stage2_512(root: Path, size: Size) -> DualRun:
    """Stage 2 at 512 px: the position table's central crop grows with the image."""
    stage2 = sd3_stage2(root, size)
    return replace(
        stage2,
        out=str(root / f"{size.name}-stage2_512"),
        init=f"{stage2.out}/export",
        data=replace(stage2.data, image_size=512),
        max_steps=80_000,
        seed=2,
    )


def sd3_stage3(root: Path, size: Size) -> DualRun:
    """Visual instruction tuning, with image generation kept beside it."""
    stage2 = sd3_stage2_512(root, size)
    data, images = root / "data", str(root / "data/images")
    return replace(
        stage2,
        out=str(root / f"{size.name}-stage3"),
        init=f"{stage2.out}/export",
        data=replace(
            stage2.data,
            i2t=(
                LlavaData(str(data / "llava_v1_5_mix665k.json"), images=images, weight=0.7),
                QuestionsData(
                    str(data / "v2_OpenEnded_mscoco_train2014_questions.json"),
                    str(data / "v2_mscoco_train2014_annotations.json"),
                    images=str(data / "images/train2014"),
                    weight=0.3,
                ),
            ),
            held_out=(
                *stage2.data.held_out,
                QuestionsData(
                    str(data / "v2_OpenEnded_mscoco_val2014_questions.json"),
                    str(data / "v2_mscoco_val2014_annotations.json"),
                    images=str(data / "images/val2014"),
                    image_pattern="COCO_val2014_{image_id:012d}.jpg",
                ),
            ),
            i2t_length=128,
        ),
        objective=replace(stage2.objective, lambda_text=1.0),
        train_mask_embedding=False,
        max_steps=50_000,
        seed=3,
    )


def sd3_lora(root: Path, size: Size) -> DualRun:
    """Tuning of the published checkpoint on one card: adapters, small batches. Not in the paper."""
    stage3 = sd3_stage3(root, size)
    return replace(
        stage3,
        out=str(root / f"{size.name}-lora"),
        init=PUBLISHED_TUNED if size.name == "sd3-medium" else stage3.init,
        lora=LoraConfig(rank=32, alpha=32.0),
        optimizer=replace(stage3.optimizer, lr=1e-4, warmup_steps=200),
        global_batch_size=16,
        max_steps=5_000,
    )


def sd3_full(root: Path, size: Size) -> DualRun:
    """Tuning of all weights on one card of 24 to 48 GB: 8-bit moments, weights and average in bfloat16. Not in the
    paper."""
    lora = sd3_lora(root, size)
    return replace(
        lora,
        out=str(root / f"{size.name}-full"),
        lora=LoraConfig(),
        optimizer=replace(lora.optimizer, name="adamw8bit", weights="bfloat16", lr=1e-5),
    )


def sd3_blocks(root: Path, size: Size) -> DualRun:
    """Conversion: a short tuning after which texts are written in blocks, of any length. Not in the paper.

    Long captions and conversations in equal parts: the texts of stage 2 and stage 3.
    """
    stage3, stage2 = sd3_stage3(root, size), sd3_stage2_512(root, size)
    captions = tuple(replace(source, weight=0.5) for source in stage2.data.i2t)
    return replace(
        stage3,
        out=str(root / f"{size.name}-blocks"),
        init=PUBLISHED_TUNED if size.name == "sd3-medium" else f"{stage3.out}/export",
        model=replace(size.model, image_attends_text=False, text_block_size=16),
        data=replace(stage3.data, i2t=(*stage3.data.i2t, *captions), i2t_length=stage2.data.i2t_length),
        optimizer=replace(stage3.optimizer, warmup_steps=200),
        max_steps=5_000,
        seed=4,
    )


SD3_STAGES: dict[str, Callable[[Path, Size], DualRun]] = {
    "stage1": sd3_stage1,
    "stage2": sd3_stage2,
    "stage2_512": sd3_stage2_512,
    "stage3": sd3_stage3,
    "lora": sd3_lora,
    "full": sd3_full,
    "blocks": sd3_blocks,
}
