"""The verbs `ddit inpaint` and `ddit vary`."""

from pathlib import Path
from typing import Annotated, Unpack

import typer

from ddit.commands.draw import Drawing, DrawingFlags, NumImagesOption, OutputOption
from ddit.commands.shared import JsonOption, ModelOption, SeedOption, spread_flags

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="picture to change")]


def register(app: typer.Typer) -> None:
    app.command()(inpaint)
    app.command()(vary)


@spread_flags
def inpaint(
    image: ImageArgument,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="what the whole shows then, one picture each")
    ],
    mask: Annotated[
        Path | None,
        typer.Option(help="picture of IMAGE's size: white is redrawn, black and transparent is kept"),
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="X0 Y0 X1 Y1", help="redraw a box instead: IMAGE's pixels, from the upper left"),
    ] = None,
    output: OutputOption = Path(),
    num_images: NumImagesOption = 1,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    **flags: Unpack[DrawingFlags],
) -> None:
    """Draw a part of IMAGE anew, for each PROMPT, and print where the picture is."""
    from ddit.images import read_image, read_mask
    from ddit.inference.editing import box_mask, check_mask

    picture = read_image(image)
    if mask is not None and box is None:
        cover = read_mask(mask)
    elif box is not None and mask is None:
        cover = box_mask(picture.size, box)
    else:
        raise ValueError("what is to be redrawn? give either --mask or --box")
    check_mask(cover, picture.size)
    drawing = Drawing.of(prompts, output, seed, flags, num_images=num_images)
    drawing.spare(image)
    drawing.run(
        model,
        lambda pipeline, options: pipeline.inpaint(picture, cover, drawing.texts, **options),
        as_json=as_json,
        about={"image": str(image)},
    )


@spread_flags
def vary(
    image: ImageArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="what to draw, one picture each")],
    strength: Annotated[
        float, typer.Option(help="how much of it is drawn anew: above 0; 1 is all, as in generate")
    ] = 0.7,
    output: OutputOption = Path(),
    num_images: NumImagesOption = 1,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    **flags: Unpack[DrawingFlags],
) -> None:
    """Draw a variation of IMAGE for each PROMPT and print where it is."""
    from ddit.images import read_image
    from ddit.inference.editing import check_strength

    picture = read_image(image)
    check_strength(strength)
    drawing = Drawing.of(prompts, output, seed, flags, num_images=num_images)
    drawing.spare(image)
    drawing.run(
        model,
        lambda pipeline, options: pipeline.vary(picture, drawing.texts, strength=strength, **options),
        as_json=as_json,
        strength=strength,
        about={"image": str(image), "strength": strength},
    )
