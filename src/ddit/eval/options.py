"""Options of an evaluation: its tasks, how much of each is run, with how many steps. Without torch."""

from typing import Annotated

from pydantic import Field

from ddit.schema import Panel, strict
from ddit.settings import BatchSize

TASKS = ("geneval", "vqav2", "vizwiz", "gqa", "pope", "mme", "caption")
WIDE_TASKS = ("geneval", "reading", "description")
"""What there is of the wide world."""


@strict
class EvalOptions:
    """How much of each benchmark is run. All other options of sampling are those of the model's settings."""

    seed: Annotated[int, Field(description="seed of the first sample; each further one adds 1")] = 0
    limit: Annotated[
        int | None,
        Field(ge=1, description="at most N prompts, questions or captions per task, for a quick look"),
        Panel("Input"),
    ] = None
    batch_size: BatchSize = 32
    num_samples: Annotated[int, Field(ge=1, description="images per prompt")] = 4
    all_prompts: Annotated[
        bool,
        Field(
            description="geneval: also generate for prompts that the detector cannot judge, for the official script"
        ),
    ] = False
    save_grids: Annotated[
        bool, Field(description="also save a prompt's images as one, grid.png"), Panel("Output")
    ] = False
    text_steps: Annotated[
        int | None, Field(ge=1, description="sampling steps of answers and captions [default: the model's]")
    ] = None
    size: Annotated[
        int | None,
        Field(ge=1, description="side of images in pixels, generated and read [default: the model's]"),
    ] = None


@strict
class DetectorOptions:
    """What finds objects and colours in GenEval's images; the thresholds are the official scorer's."""

    detector: Annotated[
        str | None,
        Field(
            description="geneval: what finds objects: a folder or hub id of transformers' Mask2Former for COCO, such "
            "as facebook/mask2former-swin-small-coco-instance, a detector's .onnx file, or world or wide, the worlds' "
            "own [default: the world's]"
        ),
        Panel("GenEval's detector"),
    ] = None
    color_model: Annotated[
        str, Field(description="folder or hub id of a CLIP, for colours"), Panel("GenEval's detector")
    ] = "openai/clip-vit-large-patch14"
    detector_threshold: Annotated[
        float,
        Field(ge=0, le=1, description="score above which an object counts"),
        Panel("GenEval's detector"),
    ] = 0.3
    counting_threshold: Annotated[
        float,
        Field(ge=0, le=1, description="the same, where objects are counted"),
        Panel("GenEval's detector"),
    ] = 0.9
    max_objects: Annotated[
        int, Field(ge=1, description="objects of a class that count"), Panel("GenEval's detector")
    ] = 16
    max_overlap: Annotated[
        float,
        Field(ge=0, le=1, description="overlap of two objects of a class that count; 1 allows any"),
        Panel("GenEval's detector"),
    ] = 1.0
