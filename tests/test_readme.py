"""What the documentation says is so: its commands run, and the files, targets, functions and tests it names exist."""

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<exempt><!-- not run by the tests[^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL
)


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page, in order, without those marked "not run by the tests" above or in their first line."""
    found = [match for match in BLOCK.finditer(page.read_text()) if match["language"] == language]
    return [m["code"] for m in found if not (m["exempt"] or m["code"].startswith("# not run by the tests"))]


def tree_entries() -> list[str]:
    """Paths in the README's file tree; an entry is under the less indented folder above it."""
    (tree,) = blocks(ROOT / "README.md", "text")
    folder, entries = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else ""
        entries.append(folder + name)
        if name.endswith("/") and not line.startswith(" "):
            folder = name
    return entries


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        ROOT / "docs/cli.md",
        ROOT / "docs/training.md",
        ROOT / "docs/data.md",
        ROOT / "docs/evaluation.md",
        ROOT / "docs/editing.md",
        ROOT / "docs/scoring.md",
    ],
    ids=lambda page: page.name,
)
def test_commands_run_in_order(page: Path, tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    scripts = [["bash", "-euo", "pipefail", "-c", code] for code in blocks(page, "sh")]
    scripts += [[sys.executable, "-c", code] for code in blocks(page, "python")]
    assert scripts
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


def test_the_readmes_file_tree_is_true_and_complete() -> None:
    entries = tree_entries()
    assert [entry for entry in entries if not (ROOT / entry).exists()] == []
    package = {
        f"src/ddit/{path.name}{'/' if path.is_dir() else ''}" for path in (ROOT / "src/ddit").glob("[a-z_]*")
    }
    assert package - {"src/ddit/__init__.py", "src/ddit/__pycache__/"} <= set(entries)
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} <= set(entries)


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
