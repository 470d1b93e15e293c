"""What the verbs of the command line share: options, loading, progress, output. Imports nothing heavy."""

import gc
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_args, get_type_hints

import typer

from ddit.commands import completion
from ddit.commands.completion import among
from ddit.commands.live import print_passes

if TYPE_CHECKING:
    from ddit.inference.batching import Step, StepCallback
    from ddit.inference.image_grid import Film
    from ddit.pipeline import Pipeline

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="mini (packaged), a model folder, or a hub id", autocompletion=completion.models
    ),
]
SeedOption = Annotated[int, typer.Option(help="of the first sample; the next ones count on from it")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="sampling steps [default: the model's]")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, ... [default: CUDA if there is one]", autocompletion=among(*completion.DEVICES)
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 [default: bfloat16 on CUDA, float32 elsewhere]",
        autocompletion=among(*completion.DTYPES),
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object a line")]
MaskOption = Annotated[Path | None, typer.Option(help="file of a trained embedding of T5's mask token")]
GuidanceOption = Annotated[
    float | None, typer.Option(help="pull towards the prompt; 1 is none [default: the model's]")
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        help="euler, adams or dpm; or paper, with all its settings [default: the model's]",
        autocompletion=among(*completion.SAMPLERS),
    ),
]
ShiftOption = Annotated[
    float | None, typer.Option(help="above 1: more steps near noise [default: the sampler's]")
]
ShiftBySizeOption = Annotated[
    bool | None,
    typer.Option(
        "--shift-by-size/--no-shift-by-size", help="shift times the square root of the pixels' ratio"
    ),
]
IntervalOption = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="times, 0 to 1, between which there is guidance"),
]
RescaleOption = Annotated[
    float | None,
    typer.Option(help="0 to 1: take back the contrast that guidance adds [default: the sampler's]"),
]
Int8Option = Annotated[bool, typer.Option("--int8", help="the text encoder's matrices in 8 bit: less memory")]
OffloadOption = Annotated[
    bool,
    typer.Option("--offload", help="text encoder and autoencoder stay on the CPU but while they are used"),
]
SheetOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="also write all pictures on one, each above its text")
]
FilmOption = Annotated[
    Path | None,
    typer.Option(
        "--watch",
        metavar="FILE",
        help="also write the steps of drawing: a strip (.png) or an animation (.gif)",
    ),
]
PassesOption = Annotated[
    bool, typer.Option("--watch", help="print on stderr what is written after every pass")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="minutes at the start, then quicker steps")]
AdapterOption = Annotated[Path | None, typer.Option(help="folder of LoRA adapters to put on the model")]


class WritingFlags(TypedDict, total=False):
    """The options of every verb that writes: `writing.WritingOptions` and the length; by default the model's own."""

    length: Annotated[int | None, typer.Option(min=1, help="positions written after the prompt")]
    order: Annotated[
        str | None,
        typer.Option(
            help="which positions a pass writes: random, first-hitting, confidence, margin, threshold or entropy",
            autocompletion=among(*completion.ORDERS),
        ),
    ]
    temperature: Annotated[
        float | None, typer.Option(min=0, help="of the draws; 0 takes the likeliest token")
    ]
    top_p: Annotated[float | None, typer.Option(help="draw from the fewest tokens with this probability")]
    threshold: Annotated[float | None, typer.Option(help="probability above which order threshold writes")]
    entropy_bound: Annotated[
        float | None, typer.Option(min=0, help="nats that order entropy may take a pass")
    ]
    commit_above: Annotated[float | None, typer.Option(help="write all once all are so probable; 1: never")]
    block_size: Annotated[int | None, typer.Option(min=0, help="write blocks left to right; 0: one block")]
    text_guidance_scale: Annotated[float | None, typer.Option(min=0, help="away from no picture; 1 is none")]
    image_refresh: Annotated[
        int | None, typer.Option(min=0, help="passes that keep the picture's side; 1 is exact, 0: a block")
    ]
    text_refresh: Annotated[
        int | None, typer.Option(min=0, help="passes that keep the text encoder's; 1 is exact, 0: a block")
    ]


def spread_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Shows typer the options of a verb's `**flags: Unpack[SomeTypedDict]` one by one; None is their default."""
    signature = inspect.signature(verb)
    *own, flags = signature.parameters.values()
    hints = get_type_hints(get_args(flags.annotation)[0], include_extras=True)
    spread = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in hints.items()
    ]
    shown: Any = verb
    shown.__signature__ = signature.replace(parameters=[*own, *spread])
    shown.__annotations__ = {**{p.name: p.annotation for p in own}, **hints}
    return verb


def load(
    model: str,
    device: str | None,
    dtype: str | None,
    *,
    mask_embedding: Path | None = None,
    adapter: Path | None = None,
    int8: bool = False,
    offload: bool = False,
) -> "Pipeline":
    """The model of the options --model, --device, --dtype, --mask-embedding, --adapter, --int8 and --offload."""
    with uncollected():
        from ddit.devices import find_device, find_dtype, limit_threads
        from ddit.model.folders import resolve

        found = find_device(device)
        torch_dtype, folder = find_dtype(dtype, found), resolve(model)
        limit_threads(folder)
        from ddit.pipeline import Pipeline

        return Pipeline.from_pretrained(
            folder, device=found, dtype=torch_dtype, mask_embedding=mask_embedding, adapter=adapter,
            text_encoder="int8" if int8 else "whole", offload=offload,
        )  # fmt: skip


@contextmanager
def uncollected() -> Iterator[None]:
    """For what makes objects that stay, as imports do: they are not searched for cycles, now or later, which would take
    a quarter of a command's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def progress(what: str) -> Iterator["StepCallback"]:
    """A progress bar on stderr that appears with the first step."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bar: tqdm | None = None

        def step(now: "Step") -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(
                    tqdm(total=now.total, desc=what, unit="step", file=sys.stderr, leave=False)
                )
            bar.update(now.done - bar.n)

        yield step


@contextmanager
def passes(pipeline: "Pipeline", is_watched: bool, *, whole: bool = False) -> Iterator["StepCallback"]:
    """The progress of reading: a bar, or the texts as they settle, with what was given if whole, on stderr."""
    if is_watched:
        prefix = pipeline.style.caption_prefix if whole else None
        yield print_passes(pipeline.text_codec, sys.stderr, prefix)
        return
    with progress("reading") as step:
        yield step


def filmed(film: "Film", pipeline: "Pipeline", step: "StepCallback") -> "StepCallback":
    """A callback that also keeps the pictures which every step predicts."""

    def both(now: "Step") -> None:
        step(now)
        film.add(now.rows, pipeline.decode(now.state.clean))

    return both


def emit(as_json: bool, line: str, **values: object) -> None:
    """Prints the line, or with --json the values as one JSON object."""
    typer.echo(json.dumps(values, ensure_ascii=False) if as_json else line)


def check_image_path(file: Path | None, suffixes: Collection[str]) -> None:
    """Checks that a picture of one of these forms can be written there, if one is asked for."""
    if file is None:
        return
    if file.suffix.lower() not in suffixes:
        raise ValueError(f"'{file}' should end in {' or '.join(sorted(suffixes))}")
    check_writable(file.parent)


def check_writable(folder: Path) -> None:
    """Makes a folder and tries to write there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to '{folder}': {error.strerror}") from None
