"""The verb `ddit chat`: many questions about one picture, which is encoded once."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Unpack

import typer

from ddit.commands.live import CLEAR_LINE, rewrite_line
from ddit.commands.shared import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaskOption,
    ModelOption,
    SeedOption,
    StepsOption,
    WritingFlags,
    emit,
    load,
    spread_flags,
)
from ddit.errors import near_misses

if TYPE_CHECKING:
    from ddit.inference.batching import StepCallback
    from ddit.pipeline import Pipeline

PROMPT = "> "
HELP = """A line is a question; blanks (___) are filled in instead, one token each.
/caption       describe the picture
/image PATH    look at another picture
/seed N        of the draws from now on
/help          these lines
/quit          leave, as Ctrl-D and Ctrl-C do"""
COMMANDS = ("/caption", "/image", "/seed", "/help", "/quit")


class Leave(Exception):
    """The user has had enough."""


class Chat:
    """A picture, and what was set for the answers about it."""

    def __init__(self, pipeline: "Pipeline", image: Path, *, seed: int, options: dict[str, Any]) -> None:
        self.pipeline, self.options, self.seed = pipeline, options, seed
        self.look(image)

    def look(self, image: Path) -> None:
        """Takes another picture; the old one stays if that cannot be read."""
        self.picture = self.pipeline.look(image)
        self.image = image

    def command(self, line: str) -> str | None:
        """Obeys a line that begins with a slash; what there is to say, if anything.

        Raises ValueError for a command or an argument that makes no sense.
        """
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name not in COMMANDS:
            raise ValueError(
                f"unknown command '{name}': use {', '.join(COMMANDS)}{near_misses(name, COMMANDS)}"
            )
        if name == "/quit":
            raise Leave
        if name == "/help":
            return HELP
        if name == "/image":
            if not argument:
                raise ValueError("/image needs the path of a picture")
            self.look(Path(argument.strip("'\"")).expanduser())
        if name == "/seed":
            if not argument.isdecimal():
                raise ValueError(f"/seed needs a whole number of at least 0, got '{argument}'")
            self.seed = int(argument)
        return None

    def show_passes(self, line: str) -> "StepCallback":
        """Shows the reply to a line on the terminal while it is written."""
        from ddit.prompts import BLANK

        prefix = self.pipeline.style.caption_prefix if BLANK.search(line) else None
        return rewrite_line(self.pipeline.text_codec, sys.stdout, prefix)

    def reply(self, line: str, on_step: "StepCallback | None" = None) -> dict[str, str]:
        """A caption for "/caption", the whole text for one with blanks, else an answer; under the key of its kind."""
        from ddit.prompts import BLANK

        options = {**self.options, "seed": self.seed, "on_step": on_step}
        if line.split()[0] == "/caption":
            return {"caption": self.pipeline.caption(self.picture, **options)[0]}
        if BLANK.search(line):
            return {"text": line, "filled": self.pipeline.infill(self.picture, line, **options)[0]}
        return {"question": line, "answer": self.pipeline.answer(self.picture, line, **options)[0]}


def register(app: typer.Typer) -> None:
    app.command()(spread_flags(chat))


def chat(
    image: Annotated[Path, typer.Argument(help="picture to talk about")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    **flags: Unpack[WritingFlags],
) -> None:
    """Answer questions about IMAGE as they are typed, or a line each from a pipe.

    Every answer is that of `ddit ask`. /help lists what else can be said.
    """
    from ddit.images import read_image

    read_image(image)  # a fault is told before a model is loaded
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    session = Chat(pipeline, image, seed=seed, options={"num_steps": num_steps, **flags})
    by_hand = sys.stdin.isatty()
    if by_hand:
        typer.echo(f"{image} - /help for more, Ctrl-D to leave", err=True)
    failed = _talk(session, _typed() if by_hand else sys.stdin, as_json, by_hand)
    if failed and not by_hand:
        raise typer.Exit(1)


def _talk(session: Chat, lines: "Iterator[str] | IO[str]", as_json: bool, by_hand: bool) -> int:
    """Answers line by line; the number of lines that could not be answered.

    Faults go to stderr and end nothing. From a pipe every question gets one line, an empty one if it has no answer.
    """
    failed = 0
    try:
        for line in map(str.strip, lines):
            if not line:
                continue
            try:
                _answer(session, line, as_json, by_hand)
            except ValueError as error:
                failed += 1
                typer.echo(f"ddit: {str(error).splitlines()[0]}", err=True)
                if not by_hand and (line.startswith("/caption") or not line.startswith("/")):
                    emit(as_json, "", image=str(session.image), asked=line, error=str(error).splitlines()[0])
    except (Leave, KeyboardInterrupt):
        if by_hand:
            typer.echo(err=True)
    return failed


def _answer(session: Chat, line: str, as_json: bool, by_hand: bool) -> None:
    if line.startswith("/") and (line.split()[0] != "/caption"):
        said = session.command(line)
        if said:
            typer.echo(said, err=True)
        return
    is_live = by_hand and not as_json and sys.stdout.isatty()
    on_step = session.show_passes(line) if is_live else None
    try:
        reply = session.reply(line, on_step)
    finally:
        if is_live:
            sys.stdout.write(CLEAR_LINE)
    emit(as_json, list(reply.values())[-1], image=str(session.image), seed=session.seed, **reply)
    sys.stdout.flush()


def _typed() -> Iterator[str]:
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
            raise Leave from None
