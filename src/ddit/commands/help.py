"""How the command's help looks, and what wrong usage is answered with.

Options stand under the panel that they are declared with, `Input` first and `Output` last, each with a short name for
its value. The lines below "Examples:" in a verb's docstring are printed as they are.
"""

import re
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from ddit.errors import near_misses, nearest

FIRST_PANELS = ("Input", "Sampling", "Performance")
LAST_PANEL = "Output"
EXAMPLES = "\n\nExamples:\n"
WIDEST_NAME = 28

Row = tuple[str, str]


class VerbCommand(TyperCommand):
    """A verb."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *map(_argument_name, _arguments(self))]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        write_help_text(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[Row]] = {panel: [] for panel in FIRST_PANELS}
        for param in shown_params(self, ctx):
            panel = param.rich_help_panel or (LAST_PANEL if param.name == "help" else FIRST_PANELS[0])
            panels.setdefault(panel, []).append(_row(param))
        panels[LAST_PANEL] = panels.pop(LAST_PANEL, [])
        write_panels(formatter, panels)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        write_examples(self.help or "", formatter)


class VerbGroup(TyperGroup):
    """Several verbs, each under the panel it is declared with; without arguments it shows its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"unknown command '{args[0]}'{near_misses(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        write_help_text(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[Row]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                panels.setdefault(panel, []).append((name, command.get_short_help_str(limit=80)))
        write_panels(formatter, panels)
        options = [_row(param) for param in shown_params(self, ctx)]
        write_panels(formatter, {"Options": options})

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        write_examples(self.help or "", formatter)


def shown_params(command: Any, ctx: Any) -> list[Any]:
    """Arguments and options that are not hidden."""
    return [param for param in command.get_params(ctx) if not param.hidden]


def write_help_text(command: Any, formatter: Any) -> None:
    """What a command does, without its examples."""
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text((command.help or "").partition(EXAMPLES)[0])


def write_examples(text: str, formatter: Any) -> None:
    """The examples of a docstring, a line each, as they are."""
    lines = example_lines(text)
    if lines:
        with formatter.section("Examples"):
            for line in lines:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def example_lines(text: str) -> list[str]:
    """The lines of a docstring below "Examples:"."""
    return [line.strip() for line in text.partition(EXAMPLES)[2].splitlines() if line.strip()]


def write_panels(formatter: Any, panels: dict[str, list[Row]]) -> None:
    """Lists of names with their help under headings, all with the same columns."""
    names = [name for rows in panels.values() for name, _ in rows]
    width = max((len(name) for name in names if len(name) <= WIDEST_NAME), default=0)
    for panel, rows in panels.items():
        if rows:
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width)


def _row(param: Any) -> Row:
    text = "show this help" if param.name == "help" else param.help or ""
    if param.param_type_name == "argument":
        return _argument_name(param).strip("[]"), text
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names = f"{names}, {param.secondary_opts[0]}"
    return f"{names} {param.metavar}" if param.metavar and not param.is_flag else names, text


def _arguments(command: Any) -> Iterable[Any]:
    return (param for param in command.params if param.param_type_name == "argument")


def _argument_name(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[]") + ("..." if param.nargs != 1 else "")
    return name if param.required else f"[{name}]"


def usage_fault(error: TyperException) -> str:
    """Wrong usage in one line: what is wrong, the nearest option if one is near, and where help is."""
    ctx: Any = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    if ctx is not None and hasattr(error, "possibilities"):  # an option that there is not
        options = [param for param in shown_params(ctx.command, ctx) if param.param_type_name == "option"]
        known = [name[2:] for param in options for name in (*param.opts, *param.secondary_opts)]
        given = str(getattr(error, "option_name", ""))
        near = [f"--{name}" for name in nearest(given[2:], known)] if given.startswith("--") else []
        if isinstance(ctx.command, VerbGroup) and not near:
            return (
                f"unknown option {given}: a command's options follow it, as in ddit generate PROMPT --seed 1"
            )
        message = f"unknown option {given}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    elif ctx is not None and hasattr(error, "param_type"):  # an argument that is missing
        param: Any = getattr(error, "param", None)
        missing = _argument_name(param) if param.param_type_name == "argument" else param.opts[0]
        pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
        return f"{missing.removesuffix('...')} is missing: {ctx.command_path} {pieces}"
    for pattern, plain in PLAIN_WORDS.items():
        message = re.sub(pattern, plain, message)
    if ctx is None or message.endswith("?"):
        return message
    return f"{message}; '{ctx.command_path} --help' shows the usage"


PLAIN_WORDS = {
    r"^Invalid value for '?([^':]*?)'?: ": r"bad value for \1: ",
    r"Input should be a valid integer.*": "not a whole number",
    r"Input should be a valid number.*": "not a number",
    r"^Invalid value: ": "",
    r"^Got unexpected extra argument\(s\) \((.*)\)": r"too many arguments: \1",
    r"^Option '(.*)' requires an argument": r"\1 needs a value",
    r"^Option '(.*)' requires (\d+) arguments": r"\1 needs \2 values",
}
"""Messages of typer, and ours for them."""
