"""The verb `ddit fit`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands import completion
from ddit.commands.loading import paused_gc
from ddit.commands.options import Given, spread
from ddit.commands.output import check_writable
from ddit.commands.progress import print_line
from ddit.fit.plan import FitOptions, Request
from ddit.schema import override


@spread
def fit(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="a folder of images in class folders or with text files beside them; a JSON, tar or parquet file; or "
            "a source's configuration",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            rich_help_panel="Output",
            help="folder of the model, its card and its runs",
        ),
    ],
    options: Given[FitOptions],
    base: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            rich_help_panel="Training",
            help="mini, a model folder or a hub id to start from [default: nothing]",
            autocompletion=completion.models,
        ),
    ] = None,
) -> None:
    """Train a model on images and texts of your own, or go on with it.

    The data is read first, and what was found is printed with the plan. The model is in DIR/model. The same command
    goes on where it was stopped.

    Examples:
        ddit fit photos --out pets --hours 1
        ddit fit captions.json --questions questions.json --out mine
    """
    request = Request(tuple(sources), str(out), base, override(FitOptions(), options))
    check_writable(out.absolute().parent)
    with paused_gc():
        from ddit.fit.run import run_fit
    typer.echo(run_fit(request, print_line))


@spread
def report(
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="the --out of a finished fit", rich_help_panel="Input")
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            rich_help_panel="Performance",
            help="time for it: the more, the more held-out samples are used [default: as the fit had]",
        ),
    ] = None,
) -> None:
    """Measure a fitted model again, and write its card.

    Prints the headlines. DIR/model gets README.md and samples.png, DIR gets report.json and images of held-out data.

    Examples:
        ddit report pets
        ddit report pets --minutes 30
    """
    with paused_gc():
        from ddit.fit.run import redo_report
    typer.echo(redo_report(out, lambda line: typer.echo(line, err=True), minutes=minutes))
