"""Imports point one way: the processes know no encoder, the data no model, and nothing knows the command line."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ddit

ROOT = Path(ddit.__file__).parent

PROCESSES = {"flow", "masked"}
CORE = {"model", *PROCESSES}
PARTS = {"attention", "embeddings"}
FOLDERS = {"encoders", "folders", "model", "prompts", "stored", "weights"}

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "attention": set(),
    "autoencoder": set(),
    "batching": set(),
    "cli": {
        "command",
        "data_cli",
        "devices",
        "eval_cli",
        "folders",
        "images",
        "pipeline",
        "train_cli",
        "verify",
    },
    "command": {"devices", "folders", "pipeline"},
    "checks": set(),
    "config": {*CORE, "checks", "data.config", "strict", "world"},
    "data": {"data.config", "images", "world"},
    "data.config": {"checks", "world"},
    "data_cli": {"command", "config", "data", "train", "world"},
    "demo": {"devices", "folders", "pipeline"},
    "devices": set(),
    "cross_entropy": set(),
    "encoders": {"autoencoder"},
    "eval": {"images", "pipeline", "world"},
    "eval_cli": {"command", "eval", "folders", "pipeline", "world"},
    "flow": set(),
    "folders": FOLDERS - {"folders", "prompts"},
    "images": set(),
    "lora": {"model", "stored"},
    "masked": set(),
    "embeddings": set(),
    "model": {"attention", "embeddings"},
    "overrides": {"config", "data.config", "strict", "world"},
    "pipeline": {*CORE, *FOLDERS, "batching", "devices", "images", "lora"},
    "prompts": {"encoders"},
    "recipes": {*CORE, "config", "data.config", "encoders", "prompts", "train", "world"},
    "stored": set(),
    "strict": set(),
    "train": {
        *CORE,
        *FOLDERS,
        "autoencoder",
        "config",
        "cross_entropy",
        "data",
        "data.config",
        "devices",
        "images",
        "lora",
        "world",
    },
    "train_cli": {"command", "pipeline", "train", "train.run"},
    "train.__main__": {"train.run"},
    "train.run": {"config", "overrides", "recipes", "train"},
    "verify": {*CORE, "embeddings", "encoders", "weights"},
    "weights": {"model", "stored"},
    "world": set(),
}
"""What each unit may import: a module, or a package with all in it (unless a module in it is listed itself)."""


def unit_of(module: str) -> str:
    """The unit of "ddit.train.loop" is "train", that of "ddit.train.run" is "train.run"."""
    parts = module.split(".")[1:]
    for length in (2, 1):
        if ".".join(parts[:length]) in MAY_IMPORT:
            return ".".join(parts[:length])
    raise AssertionError(f"{module} has no place in MAY_IMPORT")


def imports() -> list[tuple[str, str]]:
    """(importing module, imported module) for every import statement of the package, wherever it stands."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(["ddit", *path.relative_to(ROOT).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = module.split(".")[: -node.level] if node.level else []
                origin = ".".join([*above, *([node.module] if node.module else [])])
                names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "ddit" else [origin]
                found += [(module, name) for name in names]
    return found


def test_every_import_is_allowed() -> None:
    wrong = []
    for module, imported in imports():
        if not imported.startswith("ddit."):
            continue
        importer, unit = unit_of(module), unit_of(imported)
        if unit != importer and unit not in MAY_IMPORT[importer]:
            wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_what_is_allowed_has_no_cycle() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())


def test_every_unit_of_the_table_exists() -> None:
    missing = [unit for unit in MAY_IMPORT if not list(ROOT.glob(f"{unit.replace('.', '/')}*"))]
    assert not missing


def test_the_model_and_the_processes_need_torch_alone() -> None:
    standard = {"collections", "dataclasses", "math", "typing"}
    outside = {
        (module, imported.split(".")[0])
        for module, imported in imports()
        if module.removeprefix("ddit.") in {*CORE, *PARTS}
        and imported not in {f"ddit.{part}" for part in PARTS}
        and imported.split(".")[0] not in {*standard, "torch"}
    }
    assert not outside
