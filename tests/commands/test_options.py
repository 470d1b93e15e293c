"""Options of the command line follow from the dataclasses that declare them."""

import inspect
import json
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
from ddit.cli import VERBS
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
        (("--width", "0"), "'--width'"),
        (("--amount", "3"), "'--amount'"),
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
    for shown in ("of the car [default: red]", "in pixels [default: the model's]", "a folder [default: here]",
        "how much [default: 0.0]", "two [default: (0.0, 1.0)]"):  # fmt: skip
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
        (tuple(set(VERBS) - {"data", "eval-data", "info", "merge", "train", "verify", "world"}), LoadOptions),
    ],
)
def test_a_verb_has_all_options_of_what_it_calls(verbs: tuple[str, ...], options: Any) -> None:
    names = {option.name for option in list_options(options)}
    for verb in verbs:
        assert names <= set(inspect.signature(VERBS[verb].load()).parameters), verb


def test_a_new_sampling_option_is_one_line_in_one_file(tmp_path: Path) -> None:
    """In a copy of the package it gets to the command line, to Python's signatures and to the HTTP API."""
    package = tmp_path / "ddit"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (package / "assets").symlink_to(PACKAGE / "assets")
    settings = package / "settings.py"
    place = re.compile(r"(class UnmaskingRule:\n.*?\n\n)", re.DOTALL)
    line = '    warmth: Annotated[float, Field(ge=0, description="a new option")] = 0.5\n'
    changed, count = place.subn(lambda found: found[0] + line, settings.read_text())
    assert count == 1
    settings.write_text(changed)
    code = """
import inspect, json, sys
from typer.testing import CliRunner
from ddit.cli import app
from ddit.pipeline import Pipeline
from ddit.serve.schemas import ChatRequest
from ddit.settings import ModelSettings
helps = [CliRunner().invoke(app, [verb, "--help"]).output for verb in ("caption", "ask", "infill", "chat", "eval")]
assert all("--warmth" in text and "a new option" in text for text in helps)
assert "--warmth" not in CliRunner().invoke(app, ["generate", "--help"]).output
assert "warmth" in inspect.signature(Pipeline.caption).parameters
assert "a new option" in ChatRequest.model_json_schema()["properties"]["warmth"]["description"]
assert ModelSettings().text_options("caption", {"warmth": 2.0}).sampling.rule.warmth == 2.0
print(json.dumps(sys.modules["ddit"].__file__))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).startswith(str(package))
