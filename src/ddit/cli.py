"""The command line: a verb for each job. Results on stdout, progress and faults on stderr.

A user's mistake gets one line and exit code 1 (2 for wrong usage); DDIT_DEBUG=1 shows the traceback. A verb's module is
imported when the verb is used, and heavy libraries when they are needed, so that `ddit --help` answers at once and a
bad path is reported before a model is loaded.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import traceback
import warnings
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

import ddit
from ddit.errors import one_line

PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


class Verb(NamedTuple):
    """Where a verb is: a function or a group of verbs in a module of `ddit.commands`. help: its first line."""

    module: str
    name: str
    help: str

    def load(self) -> Any:
        return getattr(importlib.import_module(f"ddit.commands.{self.module}"), self.name)


VERBS = {
    "generate": Verb("generate", "generate", "Generate an image for each PROMPT and print its path."),
    "inpaint": Verb("generate", "inpaint", "Generate a part of IMAGE again, for each PROMPT."),
    "vary": Verb("generate", "vary", "Generate a variation of IMAGE for each PROMPT."),
    "caption": Verb("caption", "caption", "Describe each IMAGE."),
    "ask": Verb("caption", "ask", "Answer each QUESTION about IMAGE."),
    "infill": Verb("caption", "infill", "Fill the blanks of a TEXT about IMAGE."),
    "rank": Verb("rank", "rank", "Sort TEXTs by how likely they are, given IMAGE."),
    "chat": Verb("chat", "chat", "Answer questions about IMAGE as they are typed."),
    "info": Verb("info", "info", "Print MODEL's sizes, settings and memory."),
    "demo": Verb("serve", "demo", "Serve the page to this machine's browser."),
    "serve": Verb("serve", "serve", "Serve MODEL over HTTP to OpenAI's clients."),
    "data": Verb("data", "data", "Check training data, and prepare it."),
    "world": Verb("data", "world", "Write scenes of the small world as files."),
    "train": Verb("train", "train", "Run a training RECIPE, or resume it."),
    "merge": Verb("train", "merge", "Merge LoRA adapters into a model's weights."),
    "eval": Verb("evaluate", "evaluate", "Run benchmarks and print their table."),
    "eval-data": Verb("evaluate", "eval_data", "Write evaluation sets of the small world."),
    "verify": Verb("verify", "verify", "Recompute every reference tensor of DIR."),
}


class LazyGroup(TyperGroup):
    """Lists the verbs by their lines in `VERBS`, and imports the one that is used."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)) if listed else None, rest


def load_command(name: str) -> Any:
    """A verb, or a group of verbs, as what parses its arguments."""
    verb = VERBS[name].load()
    if isinstance(verb, typer.Typer):
        return typer.main.get_command(verb)
    single = typer.Typer(**PLAIN)
    single.command(name)(verb)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    **{**PLAIN, "add_completion": True},
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One diffusion transformer that generates images from text, and text from images.",
)
for _name, _verb in VERBS.items():
    app.command(_name, help=_verb.help)(lambda: None)


def main() -> None:
    """Entry point of `ddit`."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdin, sys.stdout):
        # as Python reads arguments: bytes that are no text end nothing, and a path is printed as it was given
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    try:
        app()
    except SystemExit as end:
        _leave(end.code)
    except BaseException as error:  # the command's edge: every fault becomes one line
        if os.environ.get("DDIT_DEBUG"):
            if not _is_rank():
                raise
            traceback.print_exc()
        typer.echo(f"ddit: {_rank_line(error) if _is_rank() else one_line(error)}", err=True)
        _leave(1)


def _is_rank() -> bool:
    """Whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _rank_line(error: BaseException) -> str:
    is_of_another = re.search("Connection (closed|reset) by peer|Broken pipe", str(error))
    line = "another rank has ended" if is_of_another else one_line(error)
    return f"rank {os.environ.get('RANK', '?')}: {line}"


def _leave(code: str | int | None) -> NoReturn:
    """Ends the process. After a fault a rank ends at once: at exit it would wait for the others, and they for it."""
    if code and _is_rank():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


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
