"""The documentation is true: its commands run, and the files, targets, functions and tests that it names exist."""

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import read_house

ROOT = Path(__file__).parents[1]
TOY_SIZES = {"--hours 0.5": "--hours 0.006", "--hours 0.3": "--hours 0.006", "--num 4000": "--num 120"}
"""What a page's commands have in the tests instead."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<exempt><!-- not run by the tests[^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL
)


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page, in order, without those marked "not run by the tests" above or in their first line."""
    found = [match for match in BLOCK.finditer(page.read_text()) if match["language"] == language]
    return [m["code"] for m in found if not (m["exempt"] or m["code"].startswith("# not run by the tests"))]


def rooms_on_the_page() -> list[str]:
    """Modules and packages of the tree in docs/architecture.md, in order: "errors.py", "diffusion/", ..."""
    (tree,) = blocks(ROOT / "docs/architecture.md", "text")
    folder, *lines = tree.splitlines()
    assert folder == "src/ddit/"
    return [line.split()[0] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        ROOT / "docs/cli.md",
        ROOT / "docs/training.md",
        ROOT / "docs/own_data.md",
        ROOT / "docs/data.md",
        ROOT / "docs/evaluation.md",
        ROOT / "docs/editing.md",
        ROOT / "docs/scoring.md",
        ROOT / "docs/coming_from.md",
    ],
    ids=lambda page: page.name,
)
def test_commands_run_in_order(page: Path, tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    scripts = [["bash", "-euo", "pipefail", "-c", code] for code in blocks(page, "sh")]
    scripts += [[sys.executable, "-c", code] for code in blocks(page, "python")]
    assert scripts
    for size, toy in TOY_SIZES.items():
        scripts = [[*words, code.replace(size, toy)] for *words, code in scripts]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in scripts:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command[-1]


@pytest.mark.slow
def test_the_notebook_on_own_data_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")  # of `make docs`
    notebook = nbformat.read(ROOT / "docs/notebooks/own_data.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("HOURS, NUM_SCENES = ")
    first.source = "HOURS, NUM_SCENES = 0.01, 120"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "things/model/model_index.json").is_file()


def test_the_architecture_page_has_all_rooms_in_the_order_of_their_imports() -> None:
    package = ROOT / "src/ddit"
    paths = {
        path
        for path in package.glob("[a-z_]*")
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    rooms = rooms_on_the_page()
    assert sorted(rooms) == sorted(path.name + "/" * path.is_dir() for path in paths)
    names = [f"ddit.{room.removesuffix('/').removesuffix('.py')}" for room in rooms]
    imports = read_house(package).room_graph("module", "function", "typing")
    for place, name in enumerate(names):
        assert imports.get(name, set()) <= {"ddit", *names[:place]}


def test_functions_of_the_architecture_page_exist() -> None:
    tops = "|".join(path.stem for path in (ROOT / "src/ddit").glob("[a-z]*"))
    named = re.findall(rf"`((?:{tops})\.[\w.]+)`", (ROOT / "docs/architecture.md").read_text())
    names = [name for name in named if not name.endswith(".py")]
    assert len(names) > 40
    for name in names:
        pkgutil.resolve_name(f"ddit.{name}")  # raises if there is none


def test_the_readme_links_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    pages = [page.relative_to(ROOT) for page in PAGES if page.name != "README.md"]
    assert [page for page in pages if f"]({page})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))
    assert named <= known


def test_functions_and_tests_of_the_method_exist() -> None:
    text = (ROOT / "docs/method.md").read_text()
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    names = re.findall(r"`ddit\.([\w.]+)`", text)
    assert len(tests) > 20
    assert [test for file, test in tests if f"def {test}(" not in (ROOT / file).read_text()] == []
    assert len(names) > 20
    for name in names:
        pkgutil.resolve_name(f"ddit.{name}")  # raises if there is none
