"""The shell completes names that exist, and without PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddit.commands import completion
from ddit.data.world_files import FORMS
from ddit.devices import find_dtype
from ddit.recipes import build


def test_the_names_are_those_of_the_program(tmp_path: Path):
    assert set(completion.FORMS) == set(FORMS)
    assert len({find_dtype(name) for name in completion.DTYPES}) == 3
    for name in set(completion.recipes("")) - {"mini", "tiny", "wide"}:
        build(name, tmp_path)


def test_models_are_the_packaged_ones_downloads_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models--owner--some-model").mkdir(parents=True)
    for name in ("mine", "minor"):
        (tmp_path / name / "transformer").mkdir(parents=True)
    (tmp_path / "mixed").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completion.models("mi") == ["mini", "mine", "minor"]
    assert completion.models("ow") == ["owner/some-model"]
    assert completion.models(f"{tmp_path}/min") == [f"{tmp_path}/mine", f"{tmp_path}/minor"]
    assert completion.models("nowhere/x") == []


def completed(shell: str, line: str) -> list[str]:
    """What the installed script would get for a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_DDIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = (
        "import sys; from ddit.cli import main; sys.argv = ['ddit']\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "AssertionError" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ddit gen", "generate"),
        ("ddit ask a.png what --order en", "entropy"),
        ("ddit generate x --sampler d", "dpm"),
        ("ddit caption a.png --model mi", "mini"),
        ("ddit chat a.png --dtype b", "bfloat16"),
        ("ddit train mini-stage2", "mini-stage2"),
        ("ddit eval vqa", "vqav2"),
        ("ddit world w --preset gr", "grid"),
        ("ddit world w --preset wide-h", "wide-half-hidden"),
        ("ddit eval --split hel", "heldout"),
        ("ddit data pre", "precompute"),
    ],
)
def test_bash_completes_verbs_and_names(line: str, expected: str):
    assert completed("bash", line) == [expected]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_too(shell: str):
    assert any("entropy" in word for word in completed(shell, "ddit ask a.png what --order en"))


def test_bash_itself_completes(tmp_path: Path):
    """The script that `--show-completion` prints, sourced in a real shell."""
    script = f"""
    PATH={Path(sys.executable).parent}:$PATH
    eval "$(_DDIT_COMPLETE=source_bash ddit)"
    COMP_WORDS=(ddit ask a.png what --order ent); COMP_CWORD=5
    _ddit_completion ddit; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["entropy"]
