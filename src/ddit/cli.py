"""The command line: one verb a job. Results on stdout, progress and faults on stderr.

A user's mistake gets one line and exit code 1 (2 for wrong usage); DDIT_DEBUG=1 shows the traceback. Nothing heavy is
imported before it is needed, so that `ddit --help` answers at once and a bad path is reported before a model is loaded.
"""

import os
import sys
import warnings
from typing import Annotated, Any

import typer

import ddit
from ddit.commands import chat, data, demo, edit, evaluate, generate, info, rank, read, serve, train, verify

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One diffusion transformer that draws pictures from text and reads text from pictures.",
)


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


for verbs in (generate, edit, read, rank, chat, info, demo, serve, data, train, evaluate, verify):
    verbs.register(app)
