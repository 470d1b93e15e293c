"""What the verbs of the command line share: options, loading, progress, output. Imports nothing heavy."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ddit.pipeline import Pipeline, StepCallback

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
AdapterOption = Annotated[Path | None, typer.Option(help="folder of LoRA adapters to put on the model")]


def load(
    model: str,
    device: str | None,
    dtype: str | None,
    *,
    mask_embedding: Path | None = None,
    adapter: Path | None = None,
) -> "Pipeline":
    """The model of the options --model, --device, --dtype, --mask-embedding and --adapter."""
    from ddit.devices import find_device, find_dtype, limit_threads
    from ddit.folders import resolve

    found = find_device(device)
    torch_dtype, folder = find_dtype(dtype, found), resolve(model)
    limit_threads(folder)
    from ddit.pipeline import Pipeline

    return Pipeline.from_pretrained(
        folder, device=found, dtype=torch_dtype, mask_embedding=mask_embedding, adapter=adapter
    )


@contextmanager
def progress(what: str) -> Iterator["StepCallback"]:
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


def emit(as_json: bool, line: str, **values: object) -> None:
    """Prints the line, or with --json the values as one JSON object."""
    typer.echo(json.dumps(values, ensure_ascii=False) if as_json else line)


def claim(folder: Path) -> None:
    """Makes a folder and tries to write there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to '{folder}': {error.strerror}") from None
