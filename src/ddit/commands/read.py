"""The verbs `ddit caption`, `ddit ask` and `ddit infill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from ddit.commands.draw import IMAGE_SUFFIXES
from ddit.commands.shared import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaskOption,
    ModelOption,
    PassesOption,
    SeedOption,
    SheetOption,
    StepsOption,
    WritingFlags,
    check_image_path,
    emit,
    load,
    passes,
    spread_flags,
)

if TYPE_CHECKING:
    from PIL import Image

ImageArgument = Annotated[Path, typer.Argument(help="picture to read")]


def register(app: typer.Typer) -> None:
    for verb in (caption, ask, infill):
        app.command()(verb)


@spread_flags
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="pictures to describe")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    sheet: SheetOption = None,
    watch: PassesOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    **flags: Unpack[WritingFlags],
) -> None:
    """Describe each IMAGE.

    With several, every line begins with the picture's path and a tab.
    """
    from ddit.inference.image_grid import image_grid

    pictures = _read_images(images)
    check_image_path(sheet, IMAGE_SUFFIXES)
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with passes(pipeline, watch) as step:
        texts = pipeline.caption(pictures, seed=seed, num_steps=num_steps, on_step=step, **_options(flags))
    if sheet is not None:
        image_grid(pictures, texts).save(sheet)
    for path, text in zip(images, texts, strict=True):
        emit(as_json, text if len(images) == 1 else f"{path}\t{text}", image=str(path), caption=text)


@spread_flags
def ask(
    image: ImageArgument,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="one answer each")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    watch: PassesOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    **flags: Unpack[WritingFlags],
) -> None:
    """Answer each QUESTION about IMAGE, one line each."""
    picture = _read_images([image])
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with passes(pipeline, watch) as step:
        answers = pipeline.answer(
            picture, questions, seed=seed, num_steps=num_steps, on_step=step, **_options(flags)
        )
    for question, text in zip(questions, answers, strict=True):
        emit(as_json, text, image=str(image), question=question, answer=text)


@spread_flags
def infill(
    image: ImageArgument,
    text: Annotated[str, typer.Argument(help='with blanks: "a ___ dog"; one token each')],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    watch: PassesOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    **flags: Unpack[WritingFlags],
) -> None:
    """Fill the blanks of a TEXT about IMAGE.

    Two or more underscores are a blank, for one token. The whole text is printed.
    """
    picture = _read_images([image])
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with passes(pipeline, watch, whole=True) as step:
        filled = pipeline.infill(
            picture, text, seed=seed, num_steps=num_steps, on_step=step, **_options(flags)
        )[0]
    emit(as_json, filled, image=str(image), text=text, filled=filled)


def _read_images(paths: list[Path]) -> "list[Image.Image]":
    from ddit.images import read_image

    return [read_image(path) for path in paths]


def _options(flags: WritingFlags) -> Any:
    """The flags as keywords of the pipeline, which checks the values."""
    return flags
