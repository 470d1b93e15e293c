"""The verbs `ddit caption`, `ddit ask` and `ddit infill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddit.commands.loading import load
from ddit.commands.options import Given, JsonOption, ModelOption, SeedOption, spread
from ddit.commands.output import IMAGE_SUFFIXES, check_free, check_image_path, print_result
from ddit.commands.progress import text_progress
from ddit.settings import CaptionOptions, LoadOptions, ModelSettings, TextOptions

if TYPE_CHECKING:
    from PIL import Image

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="image to look at")]
WatchOption = Annotated[
    bool,
    typer.Option("--watch", rich_help_panel="Output", help="print the text on stderr after every step"),
]


@spread
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="image to describe")],
    *,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Output",
            help="also write all images into one file, each above its caption",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", rich_help_panel="Output", help="replace the file of --grid if it exists"),
    ] = False,
    watch: WatchOption = False,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[CaptionOptions],
    loading: LoadOptions,
) -> None:
    """Describe each IMAGE.

    With several, every line begins with the image's path and a tab, and one that cannot be read is left out.

    Examples:
        ddit caption car.png
        ddit caption images/*.png --json --grid captions.png
    """
    from ddit.inference.image_grid import image_grid

    ModelSettings().caption_options(options)
    check_image_path(grid, IMAGE_SUFFIXES)
    if grid is not None and not overwrite:
        check_free([grid])
    read, faults = _read_images(images, as_json)
    texts: list[str] = []
    if read:
        pipeline = load(model, loading)
        with text_progress(pipeline, watch) as on_step:
            texts = pipeline.caption(list(read.values()), seed=seed, on_step=on_step, **options)
        if grid is not None:
            image_grid(list(read.values()), texts).save(grid)
    captions = dict(zip(read, texts, strict=True))
    for number, path in enumerate(images):
        if number in captions:
            text = captions[number]
            line = text if len(images) == 1 else f"{path}\t{text}"
            print_result(as_json, line, image=str(path), caption=text)
        elif as_json:
            print_result(as_json, "", image=str(path), error=faults[number])
    if faults:
        raise typer.Exit(1)


def _read_images(paths: list[Path], as_json: bool) -> "tuple[dict[int, Image.Image], dict[int, str]]":
    """The images by their places, and what is wrong with the others, which is said on stderr too.

    Raises ValueError if there is a single image, which cannot be read, and its error is not wanted as JSON.
    """
    from ddit.images import read_image

    read, faults = {}, {}
    for number, path in enumerate(paths):
        try:
            read[number] = read_image(path)
        except ValueError as error:
            if len(paths) == 1 and not as_json:
                raise
            faults[number] = str(error)
            typer.echo(f"ddit: {error}", err=True)
    return read, faults


@spread
def ask(
    image: ImageArgument,
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION", help="what to ask; each gets an answer")
    ],
    *,
    watch: WatchOption = False,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[TextOptions],
    loading: LoadOptions,
) -> None:
    """Answer each QUESTION about IMAGE.

    Examples:
        ddit ask car.png "what color is the car?" "is there a dog?"
        ddit ask car.png "how many cars are there?" --json
    """
    from ddit.images import read_image

    source = read_image(image)
    ModelSettings().text_options("answer", options)
    pipeline = load(model, loading)
    with text_progress(pipeline, watch) as on_step:
        answers = pipeline.answer(source, questions, seed=seed, on_step=on_step, **options)
    for question, text in zip(questions, answers, strict=True):
        print_result(as_json, text, image=str(image), question=question, answer=text)


@spread
def infill(
    image: ImageArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='a text with blanks: "a ___ dog"')],
    *,
    watch: WatchOption = False,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[TextOptions],
    loading: LoadOptions,
) -> None:
    """Fill the blanks of a TEXT about IMAGE.

    Two or more underscores are a blank, for one token. The whole text is printed.

    Examples:
        ddit infill car.png "a photo of a ___ car"
        ddit infill car.png "a ___ ___ ___ car" --watch
    """
    from ddit.images import read_image

    source = read_image(image)
    ModelSettings().text_options("infill", options)
    pipeline = load(model, loading)
    with text_progress(pipeline, watch, with_prompt=True) as on_step:
        filled = pipeline.infill(source, text, seed=seed, on_step=on_step, **options)[0]
    print_result(as_json, filled, image=str(image), text=text, filled=filled)
