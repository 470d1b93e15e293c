"""The verb `ddit info`."""

from typing import Annotated

import typer

from ddit.commands import completion
from ddit.commands.options import JsonOption, spread


@spread
def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="mini, a model folder, or a hub id that was downloaded",
            autocompletion=completion.models,
        ),
    ] = "mini",
    as_json: JsonOption = False,
) -> None:
    """Print MODEL's sizes, settings and memory.

    From its configuration files and the headers of its weights: nothing is loaded or downloaded.

    Examples:
        ddit info
        ddit info runs/mini-stage3/export --json
    """
    from ddit.model.folders import resolve
    from ddit.model.info import inspect_model, to_json_line, to_text

    found = inspect_model(resolve(model, only_stored=True))
    typer.echo(to_json_line(found) if as_json else to_text(found))
