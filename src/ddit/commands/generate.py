"""The verbs `ddit generate`, `ddit inpaint` and `ddit vary`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.image_files import ImageFiles, ImageJob
from ddit.commands.loading import load
from ddit.commands.options import Given, JsonOption, ModelOption, SeedOption, spread
from ddit.settings import ImageOptions, LoadOptions

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="image to change")]
PromptsArgument = Annotated[
    list[str], typer.Argument(metavar="PROMPT", help="what each image shows, the whole of it")
]


@spread
def generate(
    prompts: PromptsArgument,
    *,
    best_of: Annotated[
        int, typer.Option(min=1, help="generate N for each image, keep the one that fits its prompt best")
    ] = 1,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[ImageOptions],
    files: ImageFiles,
    loading: LoadOptions,
) -> None:
    """Generate an image for each PROMPT and print its path."""
    job = ImageJob(prompts, seed, files, options)
    pipeline = load(model, loading)
    with job.progress(pipeline) as on_step:
        images = pipeline.generate(job.texts, best_of=best_of, seed=seed, on_step=on_step, **options)
    job.save(pipeline, images, as_json=as_json)


@spread
def inpaint(
    image: ImageArgument,
    prompts: PromptsArgument,
    *,
    mask: Annotated[
        Path | None,
        typer.Option(help="image of IMAGE's size: white is generated, black and transparent is kept"),
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(
            metavar="X0 Y0 X1 Y1", help="generate a box instead: IMAGE's pixels, from the upper left"
        ),
    ] = None,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[ImageOptions],
    files: ImageFiles,
    loading: LoadOptions,
) -> None:
    """Generate a part of IMAGE again, for each PROMPT."""
    from ddit.images import read_image, read_mask
    from ddit.inference.editing import box_mask, check_mask

    original = read_image(image)
    if mask is not None and box is None:
        area = read_mask(mask)
    elif box is not None and mask is None:
        area = box_mask(original.size, box)
    else:
        raise ValueError("which part is to be generated? give either --mask or --box")
    check_mask(area, original.size)
    job = ImageJob(prompts, seed, files, options, original=image)
    pipeline = load(model, loading)
    with job.progress(pipeline) as on_step:
        images = pipeline.inpaint(original, area, job.texts, seed=seed, on_step=on_step, **options)
    job.save(pipeline, images, as_json=as_json, about={"image": str(image)})


@spread
def vary(
    image: ImageArgument,
    prompts: PromptsArgument,
    *,
    strength: Annotated[
        float, typer.Option(help="how much changes: above 0; 1 is all, as in generate")
    ] = 0.7,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[ImageOptions],
    files: ImageFiles,
    loading: LoadOptions,
) -> None:
    """Generate a variation of IMAGE for each PROMPT."""
    from ddit.images import read_image
    from ddit.inference.editing import check_strength

    original = read_image(image)
    check_strength(strength)
    job = ImageJob(prompts, seed, files, options, original=image)
    pipeline = load(model, loading)
    with job.progress(pipeline) as on_step:
        images = pipeline.vary(original, job.texts, strength=strength, seed=seed, on_step=on_step, **options)
    about = {"image": str(image), "strength": strength}
    job.save(pipeline, images, as_json=as_json, strength=strength, about=about)
