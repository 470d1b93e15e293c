"""The verb `ddit generate`."""

from pathlib import Path
from typing import Annotated, Unpack

import typer

from ddit.commands.draw import Drawing, DrawingFlags, NumImagesOption, OutputOption
from ddit.commands.shared import JsonOption, ModelOption, SeedOption, spread_flags


def register(app: typer.Typer) -> None:
    app.command()(generate)


@spread_flags
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="what to draw, one picture each")],
    output: OutputOption = Path(),
    num_images: NumImagesOption = 1,
    best_of: Annotated[
        int, typer.Option(min=1, help="draw N for each picture, keep the one that the model reads best")
    ] = 1,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    **flags: Unpack[DrawingFlags],
) -> None:
    """Draw a picture of each PROMPT and print where it is."""
    drawing = Drawing.of(prompts, output, seed, flags, num_images=num_images)
    drawing.run(
        model,
        lambda pipeline, options: pipeline.generate(drawing.texts, best_of=best_of, **options),
        as_json=as_json,
    )
