"""Options of the command line, made from the strict dataclasses that declare them."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic.dataclasses import is_pydantic_dataclass

from ddit.commands import completion
from ddit.commands.completion import Complete
from ddit.commands.progress import hide_progress
from ddit.schema import Option, list_options, override
from ddit.settings import ImageSampling, ImageSize, TextSampling

Options = TypeVar("Options")

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="mini (packaged), a model folder, or a hub id", autocompletion=completion.models
    ),
]
SeedOption = Annotated[int, typer.Option(help="of the first sample; the next ones count on from it")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object a line")]

MODELS_OWN = {
    "length",
    *(option.name for cls in (ImageSampling, TextSampling, ImageSize) for option in list_options(cls)),
}
"""Options whose default is the model's."""
SHORT = {"output": "-o", "num_images": "-n"}
VARIABLES = {"api_key": "DDIT_API_KEY"}
COMPLETIONS: dict[str, Complete] = {
    "device": completion.among(*completion.DEVICES),
    "dtype": completion.among(*completion.DTYPES),
}


class Given(dict[str, Any], Generic[Options]):
    """Those options of a strict dataclass that were given, by name."""


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """Shows typer the fields of strict dataclasses as options of a verb, and --quiet.

    A parameter annotated with a strict dataclass gets one made of the options given; a parameter annotated
    `Given[SomeDataclass]` gets the options themselves.
    """
    hints = typing.get_type_hints(verb, include_extras=True)
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        is_given = typing.get_origin(hint) is Given
        cls = typing.get_args(hint)[0] if is_given else hint
        if is_pydantic_dataclass(cls):
            options = list_options(cls)
            make = Given if is_given else functools.partial(override, cls())
            groups[parameter.name] = make, [option.name for option in options]
            shown += [_parameter(option) for option in options]
        else:
            shown.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hint))

    shown.append(
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption)
    )

    @functools.wraps(verb)
    def call(**values: Any) -> None:
        if values.pop("quiet"):
            hide_progress()
        for parameter, (make, names) in groups.items():
            found = {name: values.pop(name) for name in names}
            values[parameter] = make(
                {name: _plain(value) for name, value in found.items() if _is_given(value)}
            )
        verb(**values)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    typing.cast(Any, call).__signature__ = inspect.Signature(shown)
    return call


def _parameter(option: Option) -> inspect.Parameter:
    """The option as typer reads it; None where it is not given."""
    flag = f"--{option.name.replace('_', '-')}"
    is_own = option.name in MODELS_OWN
    kind, item = option.kind, typing.get_args(option.kind)
    is_list = typing.get_origin(kind) is tuple and Ellipsis in item
    if option.choices:
        kind = str
    elif is_list:
        kind = list[item[0]]
    elif kind is bool and is_own:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    shown = typer.Option(
        None,
        flag,
        *([SHORT[option.name]] if option.name in SHORT else []),
        help=_help(option),
        min=option.bounds.get("ge"),
        max=option.bounds.get("le"),
        envvar=VARIABLES.get(option.name),
        autocompletion=completion.among(*option.choices) if option.choices else COMPLETIONS.get(option.name),
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kind | None
    )


def _is_given(value: Any) -> bool:
    return value is not None and value != []  # a list that may be given several times


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _help(option: Option) -> str:
    default = "the model's" if option.name in MODELS_OWN else option.default
    bound = f"; above {option.bounds['gt']:g}" if "gt" in option.bounds else ""
    if "[default: " in option.help or default in (None, ()) or default is False:
        return f"{option.help}{bound}"
    return f"{option.help}{bound} [default: {default}]"
