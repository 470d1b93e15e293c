"""The command line: one verb a job. Results on stdout, progress and faults on stderr.

A user's mistake gets one line and exit code 1 (2 for wrong usage); DDIT_DEBUG=1 shows the traceback. Nothing heavy is
imported before it is needed, so that `ddit --help` answers at once and a bad path is reported before a model is loaded.
"""

import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ddit
from ddit import data_cli, eval_cli, train_cli
from ddit.command import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaskOption,
    ModelOption,
    SeedOption,
    StepsOption,
    claim,
    emit,
    load,
    progress,
)

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
COMFORTABLE_SIZE = 256

app = typer.Typer(
    add_completion=False,
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


# --- shared by the verbs ---


def _read_images(paths: list[Path]) -> "list[Image.Image]":
    from ddit.images import read_image

    return [read_image(path) for path in paths]


def _picture_paths(output: Path, prompts: list[str], seed: int) -> list[Path]:
    """Where the pictures go: the file itself, or `prompt-seed.png` in a folder; made sure that it can be written."""
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(prompts) > 1:
            raise ValueError(f"'{output}' is one file for {len(prompts)} pictures: give a folder")
        claim(output.parent)
        return [output]
    claim(output)
    slugs = [re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture" for prompt in prompts]
    return [output / f"{slug}-{seed + i}.png" for i, slug in enumerate(slugs)]


def _upscale_factor(image: "Image.Image", upscale: int | None) -> int:
    return math.ceil(COMFORTABLE_SIZE / max(image.size)) if upscale is None else upscale


# --- the verbs ---


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="what to draw, one picture each")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="a folder, or a .png, .jpg or .webp file for a single picture"),
    ] = Path(),
    upscale: Annotated[
        int | None,
        typer.Option(min=1, help=f"enlarge N times [default: to at least {COMFORTABLE_SIZE} pixels]"),
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="pictures a prompt")] = 1,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="pull towards the prompt; 1 is none [default: the model's]")
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="pixels, before upscaling [default: the model's]")
    ] = None,
    width: Annotated[int | None, typer.Option(help="pixels, before upscaling [default: the model's]")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what guidance leads away from")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures drawn at a time")] = 16,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a picture of each PROMPT and print where it is."""
    from ddit.images import upscale_image

    texts = [prompt for prompt in prompts for _ in range(num_images)]
    paths = _picture_paths(output, texts, seed)
    pipeline = load(model, device, dtype, adapter=adapter)
    with progress("drawing") as step:
        images = pipeline.generate(
            texts,
            seed=seed,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            negative_prompt=negative_prompt,
            batch_size=batch_size,
            on_step=step,
        )
    for i, (image, path, text) in enumerate(zip(images, paths, texts, strict=True)):
        upscale_image(image, _upscale_factor(image, upscale)).save(path)
        emit(as_json, str(path), prompt=text, seed=seed + i, path=str(path))


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="pictures to describe")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe each IMAGE.

    With several, every line begins with the picture's path and a tab.
    """
    pictures = _read_images(images)
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with progress("reading") as step:
        texts = pipeline.caption(pictures, seed=seed, num_steps=num_steps, on_step=step)
    for path, text in zip(images, texts, strict=True):
        emit(as_json, text if len(images) == 1 else f"{path}\t{text}", image=str(path), caption=text)


@app.command()
def ask(
    image: ImageArgument,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="one answer each")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer each QUESTION about IMAGE, one line each."""
    picture = _read_images([image])
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with progress("reading") as step:
        answers = pipeline.answer(picture, questions, seed=seed, num_steps=num_steps, on_step=step)
    for question, text in zip(questions, answers, strict=True):
        emit(as_json, text, image=str(image), question=question, answer=text)


@app.command()
def infill(
    image: ImageArgument,
    text: Annotated[str, typer.Argument(help='with blanks: "a ___ dog"; one token each')],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill the blanks of a TEXT about IMAGE.

    Two or more underscores are a blank, for one token. The whole text is printed.
    """
    picture = _read_images([image])
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with progress("reading") as step:
        filled = pipeline.infill(picture, text, seed=seed, num_steps=num_steps, on_step=step)[0]
    emit(as_json, filled, image=str(image), text=text, filled=filled)


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
