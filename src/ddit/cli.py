"""The command line: one verb a job. Results on stdout, progress and faults on stderr.

A user's mistake gets one line and exit code 1 (2 for wrong usage); DDIT_DEBUG=1 shows the traceback. Nothing heavy is
imported before it is needed, so that `ddit --help` answers at once and a bad path is reported before a model is loaded.
"""

import json
import math
import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ddit

if TYPE_CHECKING:
    from PIL import Image

    from ddit.pipeline import Pipeline, StepCallback

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

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="mini (packaged), a model folder, or a hub id")
]
SeedOption = Annotated[int, typer.Option(help="of the first sample; the next ones count on from it")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="sampling steps [default: the model's]")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: CUDA if there is one]")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16 [default: bfloat16 on CUDA, float32 elsewhere]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object a line")]
MaskOption = Annotated[Path | None, typer.Option(help="file of a trained embedding of T5's mask token")]
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


# --- shared by the verbs ---


def _load(
    model: str, device: str | None, dtype: str | None, mask_embedding: Path | None = None
) -> "Pipeline":
    from ddit.devices import find_device, find_dtype, limit_threads
    from ddit.folders import resolve

    found = find_device(device)
    torch_dtype, folder = find_dtype(dtype, found), resolve(model)
    limit_threads(folder)
    from ddit.pipeline import Pipeline

    return Pipeline.from_pretrained(folder, device=found, dtype=torch_dtype, mask_embedding=mask_embedding)


@contextmanager
def _progress(what: str) -> Iterator["StepCallback"]:
    """A progress bar on stderr that appears with the first step."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bar: tqdm | None = None

        def step(done: int, total: int, _: object) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(
                    tqdm(total=total, desc=what, unit="step", file=sys.stderr, leave=False)
                )
            bar.update(done - bar.n)

        yield step


def _emit(as_json: bool, line: str, **values: object) -> None:
    typer.echo(json.dumps(values, ensure_ascii=False) if as_json else line)


def _read_images(paths: list[Path]) -> "list[Image.Image]":
    from ddit.images import read_image

    return [read_image(path) for path in paths]


def _claim(folder: Path) -> None:
    """Makes a folder and tries to write there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to '{folder}': {error.strerror}") from None


def _picture_paths(output: Path, prompts: list[str], seed: int) -> list[Path]:
    """Where the pictures go: the file itself, or `prompt-seed.png` in a folder; made sure that it can be written."""
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(prompts) > 1:
            raise ValueError(f"'{output}' is one file for {len(prompts)} pictures: give a folder")
        _claim(output.parent)
        return [output]
    _claim(output)
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
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a picture of each PROMPT and print where it is."""
    from ddit.images import upscale_image

    texts = [prompt for prompt in prompts for _ in range(num_images)]
    paths = _picture_paths(output, texts, seed)
    pipeline = _load(model, device, dtype)
    with _progress("drawing") as step:
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
        _emit(as_json, str(path), prompt=text, seed=seed + i, path=str(path))


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="pictures to describe")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe each IMAGE.

    With several, every line begins with the picture's path and a tab.
    """
    pictures = _read_images(images)
    pipeline = _load(model, device, dtype, mask_embedding)
    with _progress("reading") as step:
        texts = pipeline.caption(pictures, seed=seed, num_steps=num_steps, on_step=step)
    for path, text in zip(images, texts, strict=True):
        _emit(as_json, text if len(images) == 1 else f"{path}\t{text}", image=str(path), caption=text)


@app.command()
def ask(
    image: ImageArgument,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="one answer each")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer each QUESTION about IMAGE, one line each."""
    picture = _read_images([image])
    pipeline = _load(model, device, dtype, mask_embedding)
    with _progress("reading") as step:
        answers = pipeline.answer(picture, questions, seed=seed, num_steps=num_steps, on_step=step)
    for question, text in zip(questions, answers, strict=True):
        _emit(as_json, text, image=str(image), question=question, answer=text)


@app.command()
def infill(
    image: ImageArgument,
    text: Annotated[str, typer.Argument(help='with blanks: "a ___ dog"; one token each')],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill the blanks of a TEXT about IMAGE.

    Two or more underscores are a blank, for one token. The whole text is printed.
    """
    picture = _read_images([image])
    pipeline = _load(model, device, dtype, mask_embedding)
    with _progress("reading") as step:
        filled = pipeline.infill(picture, text, seed=seed, num_steps=num_steps, on_step=step)[0]
    _emit(as_json, filled, image=str(image), text=text, filled=filled)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a stage, or mini for the whole chain; see docs/training.md")],
    root: Annotated[Path, typer.Option(help="folder that holds the runs, one folder a stage")] = Path(
        "runs/mini"
    ),
    world: Annotated[str, typer.Option(help="preset of the small world")] = "fixed",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a setting: optimizer.lr=1e-4"),
    ] = None,
    init: Annotated[Path | None, typer.Option(help="model folder to start from")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the configuration as JSON and stop")
    ] = False,
) -> None:
    """Run a training RECIPE, or go on where it stopped."""
    from ddit.train.run import run_recipe

    changes = [*(overrides or []), *([] if init is None else [f"init={init}"])]
    if not dry_run:
        _claim(root)
    run_recipe(recipe, root, world=world, overrides=changes, dry_run=dry_run)


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
            _emit(as_json, line, name=result.name, max_error=result.max_error, within=result.within)
    except SafetensorError as error:
        raise ValueError(f"'{folder}' cannot be read: {error}") from None
    outcome = f"{failed} of {total} tensors are not" if failed else f"all {total} tensors are"
    typer.echo(f"ddit: {outcome} within {atol:g} + {rtol:g} x reference", err=True)
    if failed or not total:
        raise typer.Exit(1)


@app.command()
def world(
    folder: Annotated[Path, typer.Argument(help="gets the pictures and scenes.jsonl, a line of truth each")],
    preset: Annotated[str, typer.Option(help="how hard: fixed-1, fixed, fixed-3, grid, free")] = "fixed",
    split: Annotated[str, typer.Option(help="train, val, test, heldout or detector")] = "train",
    num: Annotated[int, typer.Option(min=1, help="number of scenes")] = 16,
    seed: Annotated[int, typer.Option(help="of the world")] = 0,
    upscale: Annotated[int, typer.Option(min=1, help="enlarge N times; the truth's boxes stay in 64 px")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Write scenes of the small world.

    Pictures as PNG, their ground truth, captions and questions as a line each in scenes.jsonl.
    """
    from PIL import Image
    from tqdm import tqdm

    from ddit.images import upscale_image
    from ddit.world import PRESETS, SPLITS, make_scene, render

    if preset not in PRESETS:
        raise ValueError(f"unknown preset '{preset}': use {', '.join(PRESETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}': use {', '.join(SPLITS)}")
    _claim(folder)
    digits = max(4, len(str(num - 1)))
    with (folder / "scenes.jsonl").open("w", encoding="utf-8") as truth:
        for index in tqdm(range(num), desc="drawing", unit="scene", file=sys.stderr, leave=False):
            scene = make_scene(PRESETS[preset], split, index, seed=seed)
            name = f"{index:0{digits}d}.png"
            upscale_image(Image.fromarray(render(scene)), upscale).save(folder / name)
            truth.write(json.dumps({"image": name, **_scene_truth(scene)}) + "\n")
    _emit(as_json, str(folder / "scenes.jsonl"), path=str(folder / "scenes.jsonl"), num=num)


def _scene_truth(scene: Any) -> dict[str, Any]:
    """Objects, every caption, and one question of each kind that the scene allows."""
    from ddit.world import QUESTION_KINDS, captions, question

    rng = random.Random(f"{scene.seed}/{scene.split}/{scene.index}")
    asked = [question(scene, rng, kind) for kind in QUESTION_KINDS]
    questions = [{"question": q.text, "answer": q.answer, "kind": q.kind} for q in asked if q is not None]
    return {**scene.to_json(), "captions": captions(scene), "questions": questions}
