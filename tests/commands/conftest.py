"""A command that is run in this process, and what it is run on."""

import sys
import warnings
from pathlib import Path

import pytest
from command_line import Result, Run
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.delenv("DDIT_DEBUG", raising=False)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ddit", *map(str, arguments)])
        capsys.readouterr()
        code = None
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            try:
                main()
            except SystemExit as end:
                code = end.code
        said = capsys.readouterr()
        return Result(code if isinstance(code, int) else 0, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path
