"""Strict dataclasses: checked where they are made, read from JSON with one-line faults, and listed as options.

A field is declared once, with its range and its help; the command line, the HTTP API, `--set` and the signatures of
`Pipeline` are made from that declaration:

    num_steps: Annotated[int, Field(ge=1, description="sampling steps")] = 28
"""

import dataclasses
import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ddit.errors import near_misses, nearest

Strict = TypeVar("Strict")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def strict(cls: type[Strict]) -> type[Strict]:
    """Makes a frozen dataclass whose fields are checked: types without conversions, ranges, finite numbers.

    A fault is a ValueError of one line that names the field.
    """
    made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, config=STRICT)
    init = made.__init__

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except ValidationError as error:
            raise ValueError(describe_fault(made, error, values)) from None

    made.__init__ = checked_init
    return made


def parse(cls: type[Strict], data: Any, key: str = "") -> Strict:
    """A strict dataclass from JSON values. `key`: where they stand in the whole, for messages.

    Raises:
        ValueError: in one line that names the key: unknown (with near misses), missing, of another type, out of range.
    """
    try:
        return _adapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ValueError(describe_fault(cls, error, data, key)) from None


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def to_data(config: Any) -> Any:
    """A dataclass as JSON values: dictionaries, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


# --- options ---


class Panel(typing.NamedTuple):
    """The heading under which the command's help shows a field, beside its `Field`.

    Without one it is that of the dataclass, `panel: ClassVar[str]`, or Sampling.
    """

    name: str


class Option(typing.NamedTuple):
    """A field as an interface shows it.

    kind: the type without its None; of a union, the first member. choices: of a `Literal`. default: None where there is
    none. optional: whether None may be given.
    """

    name: str
    annotation: Any
    kind: Any
    help: str
    default: Any
    choices: tuple[Any, ...]
    bounds: dict[str, float]
    panel: str

    @property
    def metadata(self) -> FieldInfo:
        """Range and help, for an annotation."""
        return Field(description=self.help, **typing.cast(Any, self.bounds))


@functools.cache
def list_options(cls: Any) -> tuple[Option, ...]:
    """The fields of a strict dataclass, those of strict dataclasses within it in their place."""
    found: list[Option] = []
    for name, info in cls.__pydantic_fields__.items():
        inner = _members(info.annotation)[0]
        if pydantic.dataclasses.is_pydantic_dataclass(inner):
            found += list_options(inner)
        else:
            found.append(_option(name, info, getattr(cls, "panel", "Sampling")))
    return tuple(found)


def _option(name: str, info: FieldInfo, panel: str) -> Option:
    bounds = {
        bound: getattr(item, bound)
        for item in info.metadata
        for bound in ("ge", "gt", "le", "lt")
        if getattr(item, bound, None) is not None
    }
    kind = _members(info.annotation)[0]
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    panel = next((item.name for item in info.metadata if isinstance(item, Panel)), panel)
    return Option(name, info.annotation, kind, info.description or "", default, choices, bounds, panel)


def _members(hint: Any) -> list[Any]:
    """The members of a union but None, or the hint itself; without annotations."""
    if typing.get_origin(hint) is Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    return [part for arg in typing.get_args(hint) if arg is not type(None) for part in _members(arg)]


def override(base: Strict, given: Mapping[str, Any]) -> Strict:
    """`base` with the options that are given (None is not given), also those of dataclasses within it.

    Raises:
        ValueError: for a value out of range.
        TypeError: for an option that there is not.
    """
    cls: Any = type(base)
    known = [option.name for option in list_options(cls)]
    for name in given:
        if name not in known:
            raise TypeError(f"unknown option '{name}'{near_misses(name, known)}")
    return _override(base, {name: value for name, value in given.items() if value is not None})


def _override(base: Any, given: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for name in type(base).__pydantic_fields__:
        value = getattr(base, name)
        if pydantic.dataclasses.is_pydantic_dataclass(type(value)):
            changes[name] = _override(value, given)
        elif name in given:
            changes[name] = given[name]
    return dataclasses.replace(base, **changes) if changes else base


Method = TypeVar("Method", bound=Callable[..., Any])


def takes(options: Any, *, elsewhere: Collection[str] = ()) -> Callable[[Method], Method]:
    """Shows the options of a strict dataclass in the signature and the docstring of a function that takes `**options`.

    elsewhere: options whose default is the model's: in the signature it is None.
    """

    def show(method: Method) -> Method:
        shown: Any = method
        signature = inspect.signature(method)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        listed = list_options(options)
        spread = [_parameter(option, option.name in elsewhere) for option in listed]
        shown.__signature__ = signature.replace(parameters=[*own, *spread])
        lines = [_line(option, option.name in elsewhere) for option in listed]
        shown.__doc__ = _with_arguments(inspect.cleandoc(method.__doc__ or ""), lines)
        return method

    return show


def _parameter(option: Option, is_elsewhere: bool) -> inspect.Parameter:
    default = None if is_elsewhere else option.default
    annotation = option.annotation
    if default is None and type(None) not in typing.get_args(annotation):
        annotation = annotation | None
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _line(option: Option, is_elsewhere: bool) -> str:
    """An option in a docstring: name, help, range and default."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    rules = [f"{words[bound]} {limit:g}" for bound, limit in option.bounds.items()]
    rules += [", ".join(map(str, option.choices))] if option.choices else []
    bounds = f" ({'; '.join(rules)})" if rules else ""
    default = "the model's" if is_elsewhere else option.default
    ending = "" if "[default" in option.help else f" [default: {default}]"
    return f"{option.name}: {option.help}{bounds}{ending}"


def _with_arguments(doc: str, lines: Sequence[str]) -> str:
    """A docstring with more lines at the end of its section Args, which is made if there is none."""
    head, args, rest = doc.partition("\n\nArgs:\n")
    if not args:
        head, raises, rest = doc.partition("\n\nRaises:\n")
        own, rest = "", raises + rest
    else:
        own, gap, rest = rest.partition("\n\n")
        own, rest = f"{own}\n", gap + rest
    listed = "\n".join(f"    {line}" for line in lines)
    return f"{head}\n\nArgs:\n{own}{listed}{rest}\n"


# --- faults ---

_RULES = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "finite_number": "finite",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "tuple_type": "a list (in Python a tuple)",
    "dataclass_type": "an object with keys",
    "dict_type": "an object with keys",
    "model_attributes_type": "an object with keys",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "list_type": "a list",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
}
LONGEST_VALUE = 80
"""Characters of a wrong value that a fault quotes."""


def broken_rule(fault: Any) -> str | None:
    """What one of pydantic's faults says of the value, "must be at least 1, got 0"; None for one of another kind."""
    value, context = repr(fault["input"]), fault.get("ctx", {})
    shown = value if len(value) <= LONGEST_VALUE else value[:LONGEST_VALUE] + " ..."
    rule = _RULES.get(fault["type"])
    return None if rule is None else f"must be {rule.format(**context)}, got {shown}"


def describe_fault(cls: Any, error: ValidationError, data: Any, key: str = "") -> str:
    """One of pydantic's faults in one line: "optimizer.lr must be above 0, got -1"."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "unexpected_keyword_argument"), faults[0])
    place, owner, hints = _locate(cls, first["loc"], data, key)
    value, context = first["input"], first.get("ctx", {})
    match first["type"]:
        case "unexpected_keyword_argument":
            path, _, name = place.rpartition(".")
            near = [
                f"{path}.{field}" if path else field for field in nearest(name, owner.__pydantic_fields__)
            ]
            return f"unknown key '{place}'" + (f"; did you mean {' or '.join(near)}?" if near else "")
        case "missing":
            return f"missing key '{place}'"
        case "value_error":
            reason = str(context["error"])
            return f"{place}: {reason}" if place else reason
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = [hint.kind for hint in hints]
            place, known = f"{place}.kind" if place else "kind", f"; known: {', '.join(kinds)}"
            if "kind" not in value:
                return f"missing key '{place}'{known}"
            return f"{place} is {value['kind']!r}{known}{near_misses(str(value['kind']), kinds)}"
        case "literal_error":
            choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
            listed = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
            return f"{place} must be {listed}, got {value!r}{near_misses(str(value), choices)}"
    rule = broken_rule(first)
    return f"bad value for {place}: {value!r} ({first['msg']})" if rule is None else f"{place} {rule}"


def _locate(cls: Any, loc: Sequence[str | int], data: Any, key: str) -> tuple[str, Any, list[Any]]:
    """The dotted key of a fault, the innermost dataclass that holds it, and what may stand there.

    What pydantic puts in between to name the member of a union is left out.
    """
    parts, hints, owner = [key] if key else [], _members(cls), None
    node: Any = data
    for number, part in enumerate(loc):
        owners: list[Any] = [hint for hint in hints if pydantic.dataclasses.is_pydantic_dataclass(hint)]
        if len(owners) > 1:  # of several dataclasses the one of this kind
            hints = [hint for hint in owners if hint.kind == part]
            continue
        inner: list[Any] = []
        if owners:
            owner = owners[0]
            fields = owner.__pydantic_fields__
            part = list(fields)[part] if isinstance(part, int) else part  # an argument without its name
            inner = [fields[part].annotation] if part in fields else []
        elif isinstance(part, int):
            inner = [arg for hint in hints for arg in typing.get_args(hint) if arg is not Ellipsis]
        elif isinstance(part, str) and len(hints) > 1 and not isinstance(node, Mapping):
            continue  # the name of a plain member, such as "literal['auto']"
        child = _child(node, part)
        if part == "[key]" or not (inner or child is not _NONE or number == len(loc) - 1):
            continue
        node = child
        hints = [member for hint in inner for member in _members(hint)]
        parts.append(str(part))
    return ".".join(parts), owner, hints


_NONE = object()


def _child(node: Any, part: str | int) -> Any:
    try:
        return node[part]
    except (LookupError, TypeError):
        return _NONE
