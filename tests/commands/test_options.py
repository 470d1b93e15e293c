"""Options of the command line follow from the dataclasses that declare them."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

import ddit
from ddit.cli import APPS, USE, VERBS
from ddit.commands.options import Given, spread
from ddit.schema import list_options, strict
from ddit.serve.options import ServeConfig
from ddit.settings import ImageOptions, LoadOptions, ScoreOptions, TextOptions

PACKAGE = Path(ddit.__file__).parent


@strict
class Size:
    width: Annotated[int | None, Field(ge=1, description="in pixels")] = None


@strict
class Plan:
    """With an option of every kind."""

    size: Size = Size()
    color: Annotated[Literal["red", "blue"], Field(description="of the car")] = "red"
    corners: Annotated[tuple[float, float], Field(strict=False, description="two")] = (0.0, 1.0)
    names: Annotated[tuple[str, ...], Field(description="any number")] = ()
    is_fast: Annotated[bool, Field(description="a flag")] = False
    folder: Annotated[Path | None, Field(description="a folder [default: here]")] = None
    amount: Annotated[float, Field(ge=0, le=2, description="how much")] = 0.0

    def __post_init__(self) -> None:
        if self.color == "blue" and self.is_fast:
            raise ValueError("blue cars are slow")


seen: list[Any] = []


@spread
def whole(plan: Plan, word: str = "w") -> None:
    seen.append((plan, word))


@spread
def given(options: Given[Plan]) -> None:
    seen.append(options)


def run(verb: Any, *arguments: str) -> tuple[int, str]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(verb)
    seen.clear()
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, f"{result.output}{result.exception or ''}"


EVERYTHING = (
    "--width", "3", "--color", "blue", "--corners", "0.5", "2", "--names", "a", "--names", "b", "--folder", "f",
    "--amount", "1",
)  # fmt: skip


def test_a_verb_gets_the_dataclass_made_of_what_is_given() -> None:
    assert run(whole) == (0, "")
    assert seen == [(Plan(), "w")]
    assert run(whole, *EVERYTHING, "--word", "x") == (0, "")
    plan = Plan(
        size=Size(width=3), color="blue", corners=(0.5, 2.0), names=("a", "b"), folder=Path("f"), amount=1
    )
    assert seen == [(plan, "x")]
    run(whole, "--is-fast")
    assert seen[0][0].is_fast is True


def test_or_the_options_that_are_given() -> None:
    run(given)
    assert seen == [{}]
    run(given, *EVERYTHING)
    assert seen == [
        {"width": 3, "color": "blue", "corners": (0.5, 2.0), "names": ("a", "b"), "folder": Path("f"), "amount": 1}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--color", "green"), "color must be red or blue, got 'green'"),
        (("--color", "blue", "--is-fast"), "blue cars are slow"),
        (("--width", "0"), "--width must be at least 1, got 0"),
        (("--amount", "3"), "--amount must be 0 to 2, got 3"),
        (("--corners", "1"), "--corners"),
    ],
)
def test_a_bad_value_is_refused(arguments: tuple[str, ...], fault: str) -> None:
    code, output = run(whole, *arguments)
    assert code != 0
    assert fault in " ".join(output.split())
    assert not seen


def test_the_help_has_each_options_help_and_default() -> None:
    _, output = run(whole, "--help")
    text = " ".join(output.split())
    for shown in ("of the car [default: red]", "in pixels [default: the model's; at least 1]",
        "a folder [default: here]", "how much [default: 0; 0 to 2]", "two [default: 0 1]"):  # fmt: skip
        assert shown in text
    assert "a flag [default" not in text
    assert "any number [default" not in text


# --- the verbs ---


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_line_is_the_first_of_its_docstring(name: str) -> None:
    verb = VERBS[name].load()
    text = verb.info.help if isinstance(verb, typer.Typer) else inspect.getdoc(verb)
    assert VERBS[name].help == text.splitlines()[0]
    assert len(VERBS[name].help) <= 65  # fits beside the name


@pytest.mark.parametrize(
    ("verbs", "options"),
    [
        (("generate", "inpaint", "vary"), ImageOptions),
        (("caption", "ask", "infill", "chat"), TextOptions),
        (("rank",), ScoreOptions),
        (("serve",), ServeConfig),
        (("eval", *(name for name, verb in VERBS.items() if verb.panel in (USE, APPS))), LoadOptions),
    ],
)
def test_a_verb_has_all_options_of_what_it_calls(verbs: tuple[str, ...], options: Any) -> None:
    names = {option.name for option in list_options(options)}
    for verb in verbs:
        assert names <= set(inspect.signature(VERBS[verb].load()).parameters), verb


IN_A_COPY = """
import inspect
from typer.testing import CliRunner
import ddit
from ddit.cli import app
from ddit.config.overrides import override_run
from ddit.pipeline import Pipeline
from ddit.recipes import build
from ddit.schema import parse, to_data
from ddit.serve.schemas import ChatRequest, EditForm, GenerationRequest
from ddit.settings import ModelSettings

def has_help(option, verb):
    text = CliRunner().invoke(app, [verb, "--help"]).output
    return f"--{option}" in text and f"of {option}" in text

def is_argument(option, method):
    return option in inspect.signature(method).parameters and f"of {option}" in method.__doc__

def is_field(option, request):
    return f"of {option}" in request.model_json_schema()["properties"].get(option, {}).get("description", "")

assert all(has_help("warmth", verb) for verb in ("caption", "ask", "infill", "chat", "eval"))
assert all(has_help("grain", verb) for verb in ("generate", "inpaint", "vary"))
assert not has_help("warmth", "generate") and not has_help("grain", "caption")
assert all(is_argument("warmth", method) for method in (Pipeline.caption, Pipeline.answer, Pipeline.infill))
assert all(is_argument("grain", method) for method in (Pipeline.generate, Pipeline.inpaint, Pipeline.vary))
assert is_field("warmth", ChatRequest) and is_field("grain", GenerationRequest) and is_field("grain", EditForm)
run = override_run(build("mini-stage1", "runs"), ["report.grid_sampling.grain=2"])
assert run.report.grid_sampling.grain == 2
data = to_data(ModelSettings())
assert (data["text_sampling"]["rule"]["warmth"], data["image_sampling"]["grain"]) == (0.5, 0.5)
data["text_sampling"]["rule"]["warmth"] = 1.5
own = parse(ModelSettings, data)
assert own.caption_options({}).sampling.rule.warmth == own.text_options("answer", {}).sampling.rule.warmth == 1.5
assert own.caption_options({"warmth": 2.0}).sampling.rule.warmth == 2.0
assert own.image_options({"grain": 2.0}).sampling.grain == 2.0
print(ddit.__file__)
"""


def test_a_new_sampling_option_is_one_line_in_one_file(tmp_path: Path) -> None:
    """In a copy of the package it gets to the command line, to Python, to the HTTP API, to --set and to ddit.json."""
    package = tmp_path / "ddit"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (package / "assets").symlink_to(PACKAGE / "assets")
    settings = (package / "settings.py").read_text()
    for cls, name in {"UnmaskingRule": "warmth", "ImageSampling": "grain"}.items():
        line = f'    {name}: Annotated[float, Field(ge=0, description="of {name}")] = 0.5\n'
        settings, count = re.subn(
            rf"(class {cls}:\n.*?\n\n)", rf"\1{line}", settings, count=1, flags=re.DOTALL
        )
        assert count == 1
    (package / "settings.py").write_text(settings)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_COPY], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(package))
