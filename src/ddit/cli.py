"""The command line: one verb a job. Results on stdout, progress and faults on stderr.

A user's mistake gets one line and exit code 1 (2 for wrong usage); DDIT_DEBUG=1 shows the traceback. Nothing heavy is
imported before it is needed, so that `ddit --help` answers at once and a bad path is reported before a model is loaded.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

import ddit
from ddit import chat_cli, data_cli, demo_cli, edit_cli, eval_cli, info_cli, score_cli, serve_cli, train_cli
from ddit.command import (
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
    claim_picture,
    emit,
    load,
    passes,
    spread_flags,
)
from ddit.draw_command import IMAGE_SUFFIXES, Drawing, DrawingFlags, NumImagesOption, OutputOption

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One diffusion transformer that draws pictures from text and reads text from pictures.",
)

ImageArgument = Annotated[Path, typer.Argument(help="picture to read")]


def main() -> None:
    """Entry point of `ddit`."""
    warnings.showwarning = _show_warning
    try:
        app()
    except Exception as error:  # the command's edge: every fault becomes one line
        if os.environ.get("DDIT_DEBUG"):
            raise
        typer.echo(f"ddit: {_one_line(error)}", err=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: '{error.filename}'" if error.filename else error.strerror
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text} (DDIT_DEBUG=1 shows where)"


def _show_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"ddit: warning: {' '.join(str(message).split())}", err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ddit {ddit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="show the version")
    ] = False,
) -> None:
    pass


train_cli.register(app)
data_cli.register(app)
eval_cli.register(app)
serve_cli.register(app)
demo_cli.register(app)


# --- shared by the verbs ---


def _read_images(paths: list[Path]) -> "list[Image.Image]":
    from ddit.images import read_image

    return [read_image(path) for path in paths]


def _options(flags: WritingFlags) -> Any:
    """The flags as keywords of the pipeline, which checks the values."""
    return flags


# --- the verbs ---


@app.command()
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


edit_cli.register(app)


@app.command()
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
    from ddit.sheets import contact_sheet

    pictures = _read_images(images)
    claim_picture(sheet, IMAGE_SUFFIXES)
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with passes(pipeline, watch) as step:
        texts = pipeline.caption(pictures, seed=seed, num_steps=num_steps, on_step=step, **_options(flags))
    if sheet is not None:
        contact_sheet(pictures, texts).save(sheet)
    for path, text in zip(images, texts, strict=True):
        emit(as_json, text if len(images) == 1 else f"{path}\t{text}", image=str(path), caption=text)


@app.command()
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


@app.command()
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


score_cli.register(app)
chat_cli.register(app)
info_cli.register(app)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="reference tensors with the model that made them")
    ],
    atol: Annotated[float, typer.Option(min=0, help="absolute tolerance")] = 1e-4,
    rtol: Annotated[float, typer.Option(min=0, help="relative tolerance")] = 1e-4,
    device: DeviceOption = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Recompute every tensor of DIR.

    Prints the largest absolute error of each; the exit code is 1 if one is out of tolerance.
    """
    from safetensors import SafetensorError

    from ddit.devices import find_device, find_dtype
    from ddit.verify import verify as compare

    torch_device, torch_dtype = find_device(device), find_dtype(dtype)
    total, failed = 0, 0
    try:
        for result in compare(folder, atol=atol, rtol=rtol, dtype=torch_dtype, device=torch_device):
            total, failed = total + 1, failed + (not result.within)
            line = f"{'ok  ' if result.within else 'FAIL'} {result.name:<24} {result.max_error:.2e}"
            emit(as_json, line, name=result.name, max_error=result.max_error, within=result.within)
    except SafetensorError as error:
        raise ValueError(f"'{folder}' cannot be read: {error}") from None
    outcome = f"{failed} of {total} tensors are not" if failed else f"all {total} tensors are"
    typer.echo(f"ddit: {outcome} within {atol:g} + {rtol:g} x reference", err=True)
    if failed or not total:
        raise typer.Exit(1)
