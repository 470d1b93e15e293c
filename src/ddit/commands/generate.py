"""The verbs `ddit generate`, `ddit inpaint` and `ddit vary`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.image_files import ImageFiles, ImageJob
from ddit.commands.loading import load
from ddit.commands.options import Given, JsonOption, ModelOption, SeedOption, spread
from ddit.commands.progress import print_note
from ddit.settings import ImageOptions, LoadOptions

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="image to change")]
PromptsArgument = Annotated[
    list[str], typer.Argument(metavar="PROMPT", help="what the whole image shows; each gets an image")
]


@spread
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", help="what the image shows; - reads prompts from standard input, one per line"
        ),
    ] = None,
    *,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="file of more prompts, one per line; - is standard input"
        ),
    ] = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel="Sampling",
            help="generate N for each image, keep the one that fits its prompt best",
        ),
    ] = 1,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[ImageOptions],
    files: ImageFiles,
    loading: LoadOptions,
) -> None:
    """Generate an image for each PROMPT and print its path.

    Examples:
        ddit generate "a photo of a red car" "a photo of three apples" -o images
        ddit generate --prompts prompts.txt -n 4 --seed random -o images --grid all.png
        echo "a photo of a dog" | ddit generate - -o dog.png
    """
    job = ImageJob(_read_prompts(prompts or [], prompts_file), seed, files, options)
    pipeline = load(model, loading)
    with job.progress(pipeline) as on_step:
        images = pipeline.generate(job.texts, best_of=best_of, seed=seed, on_step=on_step, **options)
    job.save(pipeline, images, as_json=as_json)


def _read_prompts(given: list[str], file: Path | None) -> list[str]:
    """The prompts of the command line, with those of standard input in the place of "-", then those of a file."""
    sources = [*given, *([] if file is None else [file])]
    prompts: list[str] = []
    for source in sources:
        if str(source) == "-":
            if sys.stdin.isatty():
                print_note("a prompt a line, Ctrl-D ends")
            prompts += [line.strip() for line in sys.stdin if line.strip()]
        elif isinstance(source, Path):
            prompts += [line.strip() for line in _read_lines(source) if line.strip()]
        else:
            prompts.append(source)
    if not sources:
        raise typer.BadParameter("which image? give a PROMPT, --prompts FILE, or - to read standard input")
    if not prompts:
        raise ValueError("no prompts: every line is empty")
    return prompts


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"'{file}' is not a text file in UTF-8") from None


@spread
def inpaint(
    image: ImageArgument,
    prompts: PromptsArgument,
    *,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="image of IMAGE's size: white is generated, black and transparent is kept"
        ),
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(
            metavar="X0 Y0 X1 Y1",
            help="generate this box instead, in IMAGE's pixels from its upper left corner",
        ),
    ] = None,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[ImageOptions],
    files: ImageFiles,
    loading: LoadOptions,
) -> None:
    """Generate a part of IMAGE again, for each PROMPT.

    The part is the white of --mask, or --box. The prompt describes the whole image.

    Examples:
        ddit inpaint car-and-bird.png "a photo of a red car left of a dog" --box 128 0 256 256 -o changed.png
        ddit inpaint car.png "a photo of a blue car" --mask mask.png -n 4 -o images
    """
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
        float,
        typer.Option(
            rich_help_panel="Sampling",
            help="how much changes, above 0 to 1, which changes all, as generate does",
        ),
    ] = 0.7,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[ImageOptions],
    files: ImageFiles,
    loading: LoadOptions,
) -> None:
    """Generate a variation of IMAGE for each PROMPT.

    Examples:
        ddit vary car.png "a photo of a red car" -o variation.png
        ddit vary car.png "a photo of a blue car" --strength 0.9 -n 4 -o images
    """
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
