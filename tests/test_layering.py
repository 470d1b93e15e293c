"""The house: packages in layers, each of which knows only those below it; no circle; what needs no torch needs none."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ddit

ROOT = Path(ddit.__file__).parent
LAYERS = (
    "errors",
    "schema files images habits fail_fast",
    "settings objectives devices",
    "world diffusion",
    "model",
    "prompts config",
    "inference data recipes",
    "pipeline",
    "hub",
    "train eval serve diffusers_pipeline",
    "doctor fit",
    "commands",
    "cli",
    "__main__",
)
LAYER = {room: number for number, layer in enumerate(LAYERS) for room in layer.split()}
APART = {
    "data": {"model", "inference", "pipeline", "train"},
    "world": {"model", "config", "data"},
    "diffusion": {"model"},
}
"""Rooms that must not know others, even if these stand below them."""


def imports() -> list[tuple[str, str]]:
    """(importing module, imported module) for every import of the package, wherever it stands, as "train.loop"."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module, package = ".".join(parts).removesuffix(".__init__"), [*parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else []
                origin = ".".join(
                    [*(["ddit", *above] if node.level else []), *([node.module] if node.module else [])]
                )
                names = [f"{origin}.{alias.name}" for alias in node.names]
            found += [(module, name.removeprefix("ddit.")) for name in names if name.startswith("ddit.")]
    return found


def test_a_room_knows_only_those_below_it() -> None:
    rooms = {path.stem for path in ROOT.glob("[a-z]*") if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"assets"} <= set(LAYER)
    wrong = set()
    for module, imported in imports():
        room, other = module.split(".")[0], imported.split(".")[0]
        if other not in LAYER or room in (other, "__init__") or module.endswith("__main__"):
            continue
        if LAYER[other] >= LAYER[room] or other in APART.get(room, set()):
            wrong.add(f"{module} imports {imported}")
    assert not wrong


def test_no_circle_of_modules() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in ROOT.rglob("*.py")
    }
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, imported in imports():
        target = imported if imported in modules else imported.rpartition(".")[0]
        if target in modules and target != module:
            graph[module].add(target)
    list(TopologicalSorter(graph).static_order())


def test_the_processes_need_torch_and_their_settings_alone() -> None:
    allowed = {"torch", "ddit.settings", "ddit.objectives", "ddit.diffusion", *sys.stdlib_module_names}
    for path in (ROOT / "diffusion").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert any(name == one or name.startswith(f"{one}.") for one in allowed), (
                    f"{path.name}: {name}"
                )


@pytest.mark.parametrize(
    "modules",
    ["ddit.settings, ddit.model.folders", "ddit.config.overrides, ddit.recipes, ddit.world", "ddit.cli"],
)
def test_settings_recipes_and_the_command_need_no_torch(modules: str) -> None:
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
