"""The command itself: its start, its version, and what ends it."""

import os
import subprocess
import sys

import pytest

import ddit
from ddit.cli import main
from ddit.errors import RESUME_CODE, Stopped


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDIT_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["ddit", "caption", "missing.png"])
    with pytest.raises(ValueError, match="no such image"):
        main()


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["ddit", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"ddit {ddit.__version__}\n"


def test_a_stopped_run_says_so_and_ends_with_the_code_of_one_that_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop() -> None:
        raise Stopped("stopped by a signal after 3 steps; saved in runs/x")

    monkeypatch.setattr("ddit.commands.info.info", stop)
    monkeypatch.setattr(sys, "argv", ["ddit", "info"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == RESUME_CODE
    assert capsys.readouterr().err == "ddit: stopped by a signal after 3 steps; saved in runs/x\n"


def test_help_imports_nothing_heavy():
    code = "import sys, ddit.cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_is_the_command():
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "ddit", "--help"], check=True, capture_output=True, text=True, env=environment
    )
    for verb in ("generate", "caption", "ask", "infill", "train", "merge", "verify", "world"):
        assert f"  {verb} " in done.stdout
