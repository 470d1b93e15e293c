"""The command line: a verb for each job. Results on stdout, progress and faults on stderr.

A user's mistake gets one line and exit code 1 (2 for wrong usage); DDIT_DEBUG=1 shows the traceback. A verb's module is
imported when the verb is used, and heavy libraries when they are needed, so that `ddit --help` answers at once and a
bad path is reported before a model is loaded.
"""

import contextlib
import importlib
import io
import os
import sys
import traceback
import warnings
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.exceptions import TyperException

import ddit
from ddit import fail_fast
from ddit.commands.help import VerbCommand, VerbGroup, usage_fault
from ddit.errors import RESUME_CODE, Stopped, one_line

PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
USE, APPS, MODELS, DATA = "Images and texts", "Page and server", "Models", "Data and benchmarks"


class Verb(NamedTuple):
    """Where a verb is: a function or a group of verbs in a module of `ddit.commands`. help: its first line."""

    panel: str
    module: str
    name: str
    help: str

    def load(self) -> Any:
        return getattr(importlib.import_module(f"ddit.commands.{self.module}"), self.name)


VERBS = {
    "generate": Verb(USE, "generate", "generate", "Generate an image for each PROMPT and print its path."),
    "caption": Verb(USE, "caption", "caption", "Describe each IMAGE."),
    "ask": Verb(USE, "caption", "ask", "Answer each QUESTION about IMAGE."),
    "infill": Verb(USE, "caption", "infill", "Fill the blanks of a TEXT about IMAGE."),
    "inpaint": Verb(USE, "generate", "inpaint", "Generate a part of IMAGE again, for each PROMPT."),
    "vary": Verb(USE, "generate", "vary", "Generate a variation of IMAGE for each PROMPT."),
    "chat": Verb(USE, "chat", "chat", "Answer questions about IMAGE as they are typed."),
    "rank": Verb(USE, "rank", "rank", "Sort TEXTs by how likely they are, given IMAGE."),
    "page": Verb(APPS, "serve", "page", "Open the page: images and texts in a browser."),
    "serve": Verb(APPS, "serve", "serve", "Serve MODEL over HTTP to OpenAI's clients."),
    "info": Verb(MODELS, "info", "info", "Print MODEL's sizes, settings and memory."),
    "verify": Verb(MODELS, "verify", "verify", "Recompute every reference tensor of DIR."),
    "doctor": Verb(
        MODELS,
        "doctor",
        "doctor",
        "Check what this machine can do, and print a report.",
    ),
    "fit": Verb(MODELS, "fit", "fit", "Train a model on images and texts of your own, or go on with it."),
    "report": Verb(MODELS, "fit", "report", "Measure a fitted model again, and write its card."),
    "train": Verb(MODELS, "train", "train", "Run a training RECIPE, or resume it."),
    "export": Verb(MODELS, "export", "export", "Make a model folder of a training run's checkpoint."),
    "merge": Verb(MODELS, "train", "merge", "Merge LoRA adapters into a model's weights."),
    "push": Verb(MODELS, "push", "push", "Upload a model FOLDER to the hub, with a model card."),
    "data": Verb(DATA, "data", "data", "Check training data, and prepare it."),
    "world": Verb(DATA, "data", "world", "Write scenes of the small world, or of the wide one, as files."),
    "eval": Verb(DATA, "evaluate", "evaluate", "Run benchmarks and print their table."),
    "score-images": Verb(DATA, "score_images", "score_images", "Score images that any model made."),
    "eval-data": Verb(DATA, "evaluate", "eval_data", "Write evaluation sets of a world."),
}
ALIASES = {"demo": "page"}
"""Names of 0.1, which still work."""
OTHER_NAMES = {
    "answer": "ask",
    "vqa": "ask",
    "choose": "rank",
    "score": "rank",
    "describe": "caption",
    "draw": "generate",
}
"""What else a verb may be called, in Python or elsewhere."""


class LazyGroup(VerbGroup):
    """Lists the verbs by their lines in `VERBS`, and imports the one that is used."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verb = ALIASES.get(args[0], args[0])
        if verb in OTHER_NAMES and not ctx.resilient_parsing:
            ctx.fail(f"unknown command '{verb}'; did you mean {OTHER_NAMES[verb]}?")
        name, listed, rest = super().resolve_command(ctx, [verb, *args[1:]])
        return name, load_command(str(name)) if listed else None, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stop:  # here: typer takes it for any interrupt
            if _is_rank():
                fail_fast.stop_rank(stop)
            typer.echo(f"ddit: {stop}", err=True)
            _leave(RESUME_CODE)


def load_command(name: str) -> Any:
    """A verb, or a group of verbs, as what parses its arguments."""
    verb = VERBS[name].load()
    if isinstance(verb, typer.Typer):
        return typer.main.get_command(verb)
    single = typer.Typer(**PLAIN)
    single.command(name, cls=VerbCommand)(verb)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    **{**PLAIN, "add_completion": True},
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Generate images from texts, and texts from images, with one diffusion transformer.

    `ddit COMMAND --help` lists a command's options, with examples.

    Examples:
        ddit generate "a photo of a red car" -o car.png
        ddit ask car.png "what color is the car?"
    """,
)
for _name, _verb in VERBS.items():
    app.command(_name, help=_verb.help, rich_help_panel=_verb.panel)(lambda: None)


def main() -> None:
    """Entry point of `ddit`."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdin, sys.stdout):
        # as Python reads arguments: bytes that are no text end nothing, and a path is printed as it was given
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    try:
        _leave(app(prog_name="ddit", standalone_mode=False))
    except SystemExit as end:
        _leave(end.code)
    except TyperException as error:  # wrong usage
        typer.echo(f"ddit: {usage_fault(error)}", err=True)
        _leave(error.exit_code)
    except BaseException as error:  # the command's edge: every fault becomes one line
        if os.environ.get("DDIT_DEBUG"):
            if not _is_rank():
                raise
            traceback.print_exc()
        if _is_rank():
            fail_fast.end_rank(error)
        typer.echo(f"ddit: {one_line(error)}", err=True)
        _leave(1)


def _is_rank() -> bool:
    """Whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
