"""Options of the command line, made from the strict dataclasses that declare them."""

import copy
import functools
import inspect
import operator
import secrets
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic.dataclasses import is_pydantic_dataclass
from typer.models import ArgumentInfo, OptionInfo

from ddit.commands import completion
from ddit.commands.completion import Complete
from ddit.commands.progress import hide_progress
from ddit.schema import Option, list_options, override
from ddit.settings import ImageSampling, ImageSize, TextSampling

Options = TypeVar("Options")


def parse_seed(given: int | str) -> int:
    """A seed; for "random" a new one, which is printed."""
    if given == "random":
        seed = secrets.randbelow(10**6)
        typer.echo(f"ddit: seed {seed}", err=True)
        return seed
    try:
        return int(given)
    except ValueError:
        raise typer.BadParameter(f"'{given}' is neither a whole number nor random") from None


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="mini (packaged), a model folder, or a hub id",
        autocompletion=completion.models,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        parser=parse_seed,
        metavar="N",
        rich_help_panel="Sampling",
        help="seed of the first image or text; each further one adds 1. random picks a seed and prints it",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel="Output", help="no progress bars, no notes")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel="Performance",
        help="cpu, cuda, ... [default: CUDA if there is one]",
        autocompletion=completion.among(*completion.DEVICES),
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", rich_help_panel="Output", help="print one JSON object per line")
]

MODELS_OWN = {
    "length",
    *(option.name for cls in (ImageSampling, TextSampling, ImageSize) for option in list_options(cls)),
}
"""Options whose default is the model's."""
SHORT = {"output": "-o", "num_images": "-n"}
VARIABLES = {"api_key": "DDIT_API_KEY"}
NAMES: dict[type, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
"""What stands for a value of a type in the help."""
METAVARS = {"guidance_interval": "LOW HIGH"}
FLAGS = {"style": "detailed"}
"""Options of two choices that are a flag here, named after the second."""
COMPLETIONS: dict[str, Complete] = {
    "device": completion.among(*completion.DEVICES),
    "dtype": completion.among(*completion.DTYPES),
}


class Given(dict[str, Any], Generic[Options]):
    """Those options of a strict dataclass that were given, by name."""


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """Shows typer the fields of strict dataclasses as options of a verb, and --quiet.

    A parameter annotated with a strict dataclass gets one made of the options given; a parameter annotated
    `Given[SomeDataclass]` gets the options themselves. To the help of the verb's own options it adds range and default.
    """
    hints = typing.get_type_hints(verb, include_extras=True)
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    bounds: dict[str, dict[str, float]] = {}
    shown: list[inspect.Parameter] = []
    quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption)
    for parameter in (*inspect.signature(verb).parameters.values(), quiet):
        hint = hints.get(parameter.name, QuietOption)
        is_given = typing.get_origin(hint) is Given
        cls = typing.get_args(hint)[0] if is_given else hint
        if is_pydantic_dataclass(cls):
            options = list_options(cls)
            make = Given if is_given else functools.partial(override, cls())
            groups[parameter.name] = make, [option.name for option in options]
            shown += [_parameter(option) for option in options]
            bounds |= {option.name: option.bounds for option in options}
        else:
            own, bounds[parameter.name] = _own_parameter(parameter, hint)
            shown.append(own)

    @functools.wraps(verb)
    def call(**values: Any) -> None:
        if values.pop("quiet"):
            hide_progress()
        for name, own in bounds.items():
            _check_bounds(name, values.get(name), own)
        for parameter, (make, names) in groups.items():
            found = {name: values.pop(name) for name in names}
            values[parameter] = make(
                {name: _plain(name, value) for name, value in found.items() if _is_given(value)}
            )
        verb(**values)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    typing.cast(Any, call).__signature__ = inspect.Signature(shown)
    return call


def _own_parameter(parameter: inspect.Parameter, hint: Any) -> tuple[inspect.Parameter, dict[str, float]]:
    """A verb's own option or argument, with all of its help, and the bounds of its values."""
    kind, *extras = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    info = next((copy.copy(item) for item in extras if isinstance(item, OptionInfo | ArgumentInfo)), None)
    if info is None:
        return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hint), {}
    bounds = {name: bound for name, bound in (("ge", info.min), ("le", info.max)) if bound is not None}
    info.min = info.max = None
    if isinstance(info, OptionInfo) and info.metavar is None:
        info.metavar = _metavar(parameter.name, _value_type(kind), info.autocompletion)
    default = None if parameter.default is parameter.empty else parameter.default
    info.help, info.show_default = _help(info.help or "", default, bounds), False
    annotation: Any = Annotated[kind, info]
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=annotation), bounds


def _value_type(kind: Any) -> Any:
    """int of `int | None` and of `list[int] | None`."""
    while typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    return kind


def _parameter(option: Option) -> inspect.Parameter:
    """The option as typer reads it; None where it is not given."""
    flag = f"--{option.name.replace('_', '-')}"
    is_own = option.name in MODELS_OWN
    if option.name in FLAGS:
        flag, option = f"--{FLAGS[option.name]}", option._replace(kind=bool, default=False, choices=())
    kind, item = option.kind, typing.get_args(option.kind)
    is_list = typing.get_origin(kind) is tuple and Ellipsis in item
    if option.choices:
        kind = str
    elif is_list:
        kind = list[item[0]]
    elif kind is bool and is_own:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    variable = VARIABLES.get(option.name)
    complete = completion.among(*option.choices) if option.choices else COMPLETIONS.get(option.name)
    shown = typer.Option(
        None,
        flag,
        *([SHORT[option.name]] if option.name in SHORT else []),
        help=_help(option.help, "the model's" if is_own else option.default, option.bounds, variable),
        metavar=_metavar(option.name, _value_type(kind), complete),
        rich_help_panel=option.panel,
        envvar=variable,
        autocompletion=complete,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind | None
    )


def _metavar(name: str, kind: Any, complete: object) -> str | None:
    """What stands for the value in the help; a name where there is a list of them."""
    if name in METAVARS:
        return METAVARS[name]
    return "NAME" if kind is str and complete is not None else NAMES.get(kind)


def _check_bounds(name: str, value: Any, bounds: Mapping[str, float]) -> None:
    if value is None:
        return
    is_within = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
    if not all(is_within[bound](value, limit) for bound, limit in bounds.items()):
        raise ValueError(f"--{name.replace('_', '-')} must be {describe_range(bounds)}, got {value:g}")


def _help(text: str, default: Any, bounds: Mapping[str, float], variable: str | None = None) -> str:
    """An option's help with its default and its range: "sampling steps [default: 28; at least 1]"."""
    text, has_own, own = text.partition(" [default: ")
    shown = own.rstrip("]") if has_own else _shown_default(default)
    shown = f"${variable}" if variable else shown
    notes = [note for note in (shown and f"default: {shown}", describe_range(bounds)) if note]
    return f"{text} [{'; '.join(notes)}]" if notes else text


def _shown_default(default: Any) -> str:
    if default is None or isinstance(default, bool) or default in ((), ""):
        return ""
    if isinstance(default, tuple):
        return " ".join(map(_shown_default, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def describe_range(bounds: Mapping[str, float]) -> str:
    """ "at least 1", "0 to 1", "above 0, at most 1"; nothing if there are no bounds."""
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']:g} to {bounds['le']:g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[bound]} {limit:g}" for bound, limit in bounds.items())


def _is_given(value: Any) -> bool:
    return value is not None and value != []  # a list that may be given several times


def _plain(name: str, value: Any) -> Any:
    if name in FLAGS:
        return FLAGS[name]
    return tuple(value) if isinstance(value, list) else value
