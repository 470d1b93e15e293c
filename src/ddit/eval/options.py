"""Options of an evaluation: its tasks, how much of each is run, with how many steps. Without torch."""

from typing import Annotated

from pydantic import Field

from ddit.schema import Panel, strict
from ddit.settings import BatchSize

TASKS = ("geneval", "vqav2", "vizwiz", "gqa", "pope", "mme", "caption")


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
            description="geneval: also generate for prompts beyond the small world, for the official script to score"
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
