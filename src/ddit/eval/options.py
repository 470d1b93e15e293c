"""Options of an evaluation: its tasks, how much of each is run, with how many steps. Without torch."""

from typing import Annotated

from pydantic import Field

from ddit.schema import Panel, strict
from ddit.settings import BatchSize

TASKS = ("geneval", "vqav2", "vizwiz", "gqa", "pope", "mme", "caption")


@strict
class EvalOptions:
    """How much of each benchmark is run. All other options of sampling are those of the model's settings."""

    seed: Annotated[int, Field(description="of the first sample; the next one's is 1 more")] = 0
    limit: Annotated[
        int | None,
        Field(ge=1, description="at most N prompts, questions or captions a task, for a quick look"),
        Panel("Input"),
    ] = None
    batch_size: BatchSize = 32
    num_samples: Annotated[int, Field(ge=1, description="images a prompt")] = 4
    all_prompts: Annotated[
        bool,
        Field(
            description="geneval: also the prompts beyond the small world, to be scored by the official script"
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
