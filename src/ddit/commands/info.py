"""The verb `ddit info`."""

from typing import Annotated

import typer

from ddit.commands import completion
from ddit.commands.shared import JsonOption


def register(app: typer.Typer) -> None:
    app.command()(info)


def info(
    model: Annotated[
        str,
        typer.Argument(
            help="mini, a model folder, or a hub id that was downloaded", autocompletion=completion.models
        ),
    ] = "mini",
    as_json: JsonOption = False,
) -> None:
    """Print MODEL's sizes, settings and the memory that it needs.

    By its configurations and the headers of its files: nothing is loaded or downloaded.
    """
    from ddit.model.folders import resolve
    from ddit.model.info import inspect_model, to_json_line, to_text

    found = inspect_model(resolve(model, only_stored=True))
    typer.echo(to_json_line(found) if as_json else to_text(found))
