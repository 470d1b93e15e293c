"""The verb `ddit chat`: many questions about one image, which is encoded once."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddit.commands.loading import load
from ddit.commands.options import Given, JsonOption, ModelOption, SeedOption, spread
from ddit.commands.output import print_result
from ddit.commands.partial_text import CLEAR_LINE, rewrite_line
from ddit.errors import near_misses
from ddit.settings import LoadOptions, ModelSettings, TextOptions

if TYPE_CHECKING:
    from ddit.inference.batching import StepCallback
    from ddit.pipeline import Pipeline

PROMPT = "> "
HELP = """A line is a question; blanks (___) are filled in instead, one token each.
/caption       describe the image
/image PATH    take another image
/seed N        seed of the answers from now on
/help          print these lines
/quit          leave, as Ctrl-D and Ctrl-C do"""
COMMANDS = ("/caption", "/image", "/seed", "/help", "/quit")


class Quit(Exception):
    """The user wants to leave."""


class Chat:
    """An image, what was set for the answers about it and, for a model that writes in blocks, the earlier turns."""

    def __init__(self, pipeline: "Pipeline", image: Path, *, seed: int, options: Mapping[str, Any]) -> None:
        self.pipeline, self.options, self.seed = pipeline, options, seed
        self.open_image(image)

    def open_image(self, image: Path) -> None:
        """Takes another image; the old one stays if that cannot be read."""
        size = {side: self.options.get(side) for side in ("height", "width")}
        self.encoded = self.pipeline.encode_image(image, **size)
        self.image = image
        self.turns: list[tuple[str, str]] = []

    def run_command(self, line: str) -> str | None:
        """Obeys a line that begins with a slash; what there is to print, if anything.

        Raises ValueError for an unknown command or a bad argument.
        """
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name not in COMMANDS:
            raise ValueError(
                f"unknown command '{name}': use {', '.join(COMMANDS)}{near_misses(name, COMMANDS)}"
            )
        if name == "/quit":
            raise Quit
        if name == "/help":
            return HELP
        if name == "/image":
            if not argument:
                raise ValueError("/image needs the path of an image")
            self.open_image(Path(argument.strip("'\"")).expanduser())
        if name == "/seed":
            if not argument.isdecimal():
                raise ValueError(f"/seed needs a whole number of at least 0, got '{argument}'")
            self.seed = int(argument)
        return None

    def show_steps(self, line: str) -> "StepCallback":
        """Shows the reply to a line on the terminal while it is sampled."""
        from ddit.prompts import BLANK

        prefix = self.pipeline.style.caption_prefix if BLANK.search(line) else None
        return rewrite_line(self.pipeline.text_codec, sys.stdout, prefix)

    def reply(self, line: str, on_step: "StepCallback | None" = None) -> dict[str, str]:
        """A caption for "/caption", the whole text for one with blanks, else an answer; under the key of its kind."""
        from ddit.prompts import BLANK

        options = {**self.options, "seed": self.seed, "on_step": on_step}
        if line.split()[0] == "/caption":
            return {"caption": self.pipeline.caption(self.encoded, **options)[0]}
        if BLANK.search(line):
            return {"text": line, "filled": self.pipeline.infill(self.encoded, line, **options)[0]}
        answer = self.pipeline.answer(self.encoded, line, history=[self.turns], **options)[0]
        if self.pipeline.transformer.config.text_block_size:
            self.turns.append((line, answer))
        return {"question": line, "answer": answer}


@spread
def chat(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="image to talk about")],
    *,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    options: Given[TextOptions],
    loading: LoadOptions,
) -> None:
    """Answer questions about IMAGE as they are typed.

    Or a line each from a pipe. Every answer is that of `ddit ask`; a model that writes in blocks also sees the earlier
    turns about the image. /help lists the commands.

    Examples:
        ddit chat car.png
        printf '%s\\n' "what color is the car?" /caption | ddit chat car.png
    """
    from ddit.images import read_image

    read_image(image)  # a fault is found before a model is loaded
    ModelSettings().text_options("answer", options)
    session = Chat(load(model, loading), image, seed=seed, options=options)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        typer.echo(f"{image} - /help for more, Ctrl-D to leave", err=True)
    failed = _answer_lines(session, _typed_lines() if is_terminal else sys.stdin, as_json, is_terminal)
    if failed and not is_terminal:
        raise typer.Exit(1)


def _answer_lines(session: Chat, lines: Iterable[str], as_json: bool, is_terminal: bool) -> int:
    """Answers line by line; the number of lines that could not be answered.

    Faults go to stderr and end nothing. From a pipe every question gets one line, an empty one if it has no answer.
    """
    failed = 0
    try:
        for line in map(str.strip, lines):
            if not line:
                continue
            try:
                _answer(session, line, as_json, is_terminal)
            except ValueError as error:
                failed += 1
                fault = str(error).splitlines()[0]
                typer.echo(f"ddit: {fault}", err=True)
                if not is_terminal and (line.startswith("/caption") or not line.startswith("/")):
                    print_result(as_json, "", image=str(session.image), asked=line, error=fault)
    except (Quit, KeyboardInterrupt):
        if is_terminal:
            typer.echo(err=True)
    return failed


def _answer(session: Chat, line: str, as_json: bool, is_terminal: bool) -> None:
    if line.startswith("/") and (line.split()[0] != "/caption"):
        message = session.run_command(line)
        if message:
            typer.echo(message, err=True)
        return
    is_live = is_terminal and not as_json and sys.stdout.isatty()
    on_step = session.show_steps(line) if is_live else None
    try:
        reply = session.reply(line, on_step)
    finally:
        if is_live:
            sys.stdout.write(CLEAR_LINE)
    print_result(as_json, list(reply.values())[-1], image=str(session.image), seed=session.seed, **reply)
    sys.stdout.flush()


def _typed_lines() -> Iterator[str]:
    """Lines typed at a terminal, with readline's editing and history where Python has it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # `input` uses it once it is there
    while True:
        try:
            if sys.stdout.isatty():
                yield input(PROMPT)
            else:  # where `input` would write its prompt among the answers
                typer.echo(PROMPT, nl=False, err=True)
                yield input()
        except EOFError:
            raise Quit from None
