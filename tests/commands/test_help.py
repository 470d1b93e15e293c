"""Help: every verb's has its options under panels, and examples that its parser takes; wrong usage is one line."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from ddit.cli import ALIASES, VERBS, app, load_command, main
from ddit.commands.help import example_lines

NOISE = re.compile(r"<\w|range>|INTEGER|FLOAT|x>=|<=x|\[required\]|None")


def parsers() -> Iterator[tuple[str, Any]]:
    """Every verb, and every verb of a group, with what parses its arguments."""
    for name in VERBS:
        command = load_command(name)
        yield name, command
        for inner, each in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", each


PARSERS = dict(parsers())


def help_of(name: str) -> str:
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", PARSERS)
def test_every_example_is_one_that_the_verb_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = example_lines(PARSERS[name].help)
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        start = words.index("ddit")
        verb, *arguments = words[start + 1 :]
        if hasattr(load_command(verb), "commands"):
            verb, *arguments = f"{verb} {arguments[0]}", *arguments[1:]
        assert verb == name or verb.startswith(f"{name} ")
        PARSERS[verb].make_context(verb, arguments)  # raises on what it does not take
        assert f"  {line}\n" in help_of(name)


@pytest.mark.parametrize("name", PARSERS)
def test_help_is_without_the_parsers_words(name: str) -> None:
    text = help_of(name)
    assert not NOISE.search(text)
    assert max(len(line) for line in text.partition("Examples:")[0].splitlines()) <= 80


@pytest.mark.parametrize(
    "name", [name for name, parser in PARSERS.items() if not hasattr(parser, "commands")]
)
def test_every_option_has_a_panel_a_help_and_a_short_name_for_its_value(name: str) -> None:
    text = help_of(name)
    panels = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    order = [panel for panel in ("Input", "Sampling", "Performance") if panel in panels]
    assert panels[: len(order)] == order
    assert panels[-2:] == ["Output", "Examples"]
    for param in PARSERS[name].params:
        assert param.help, param.name
        if param.param_type_name == "option" and not param.is_flag:
            assert re.fullmatch(r"[A-Z][A-Z0-9= ]*", param.metavar), param.name


def test_the_panels_are_those_that_the_options_are_declared_with() -> None:
    panels = {param.name: param.rich_help_panel for param in PARSERS["generate"].params}
    expected = {
        "negative_prompt": "Input", "adapter": "Input", "seed": "Sampling", "num_steps": "Sampling",
        "height": "Sampling", "int8": "Performance", "batch_size": "Performance", "output": "Output",
        "overwrite": "Output", "quiet": "Output",
    }  # fmt: skip
    assert {name: panels[name] for name in expected} == expected


def test_the_daily_verbs_come_first() -> None:
    listed = re.findall(r"^  ([\w-]+)  +[A-Z]", CliRunner().invoke(app, ["--help"]).output, re.MULTILINE)
    assert listed[: len(VERBS)] == list(VERBS)
    assert listed[:7] == ["generate", "caption", "ask", "infill", "inpaint", "vary", "chat"]


def test_without_arguments_there_is_help() -> None:
    for arguments in ([], ["data"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.output) == (0, help_of(" ".join(arguments)))


@pytest.mark.parametrize("alias", ALIASES)
def test_an_old_name_is_not_listed_and_still_works(alias: str) -> None:
    assert f"  {alias} " not in CliRunner().invoke(app, ["--help"]).output
    assert help_of(alias) == help_of(ALIASES[alias])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("genrate x", "unknown command 'genrate'; did you mean generate?"),
        ("corgi", "unknown command 'corgi'; {help}"),
        ("answer a.png b", "unknown command 'answer'; did you mean ask?"),
        (
            "--seed 3 generate x",
            "unknown option --seed: a command's options follow it, as in ddit generate PROMPT --seed 1",
        ),
        ("data chek", "unknown command 'chek'; did you mean check?"),
        ("generate x --sed 4", "unknown option --sed; did you mean --seed?"),
        ("generate x --numsteps 4", "unknown option --numsteps; did you mean --num-steps?"),
        ("generate x --zebra", "unknown option --zebra; {help}"),
        ("caption -x", "unknown option -x; {help}"),
        ("ask", "IMAGE is missing: ddit ask [OPTIONS] IMAGE QUESTION..."),
        ("ask a.png", "QUESTION is missing: ddit ask [OPTIONS] IMAGE QUESTION..."),
        ("data precompute a b", "--vae is missing: ddit data precompute [OPTIONS] SOURCE OUT"),
        ("chat a.png b", "too many arguments: b; {help}"),
        ("generate x --num-steps", "--num-steps needs a value"),
        ("inpaint a b --box 1 2", "--box needs 4 values"),
        ("generate x --num-steps few", "bad value for --num-steps: not a whole number; {help}"),
        ("generate x --seed a", "bad value for --seed: 'a' is neither a whole number nor random; {help}"),
        ("generate", "which image? give a PROMPT, --prompts FILE, or - to read standard input; {help}"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = arguments.split()[0]
    command = f"ddit {verb}" if verb in VERBS else "ddit"
    monkeypatch.setattr(sys, "argv", ["ddit", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr() == (
        "",
        "ddit: " + line.format(help=f"'{command} --help' shows the usage") + "\n",
    )


def test_help_needs_no_heavy_library_and_a_tenth_of_a_second() -> None:
    code = (
        "import sys, time; from ddit.cli import main; sys.argv = ['ddit', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'PIL', 'pydantic', 'rich'} & set(sys.modules), time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    loaded, seconds = done.stderr.rsplit(maxsplit=1)
    assert loaded == "set()"
    assert float(seconds) < 0.3  # 0.05 on an idle core
