"""Imports point one way: the processes know no encoder, the data no model, and nothing knows the command line."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ddit

ROOT = Path(ddit.__file__).parent

PROCESSES = {"flow", "masked"}
CORE = {"model", *PROCESSES}
PARTS = {"attention", "embeddings", "layers", "suggest", "unmasking"}
FOLDERS = {"encoders", "folders", "model", "prompts", "stored", "weights"}

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "attention": set(),
    "autoencoder": set(),
    "batching": set(),
    "best_of": {"batching", "drawing", "scoring"},
    "cli": {"commands"},
    "commands": {
        "batching",
        "config",
        "data",
        "devices",
        "drawing",
        "editing",
        "encoders",
        "eval",
        "flow",
        "folders",
        "images",
        "info",
        "pipeline",
        "prompts",
        "serve",
        "sheets",
        "train",
        "train.run",
        "verify",
        "world",
    },
    "checks": set(),
    "config": {*CORE, "checks", "data.config", "strict", "world"},
    "data": {"data.config", "images", "world"},
    "data.config": {"checks", "world"},
    "demo": {"devices", "folders", "pipeline"},
    "devices": set(),
    "cross_entropy": set(),
    "drawing": {"batching", "editing", "encoders", "flow", "folders", "images", "model", "prompts"},
    "editing": {"batching", "images"},
    "encoders": {"autoencoder", "offload"},
    "eval": {"flow", "images", "pipeline", "world", "writing"},
    "flow": set(),
    "folders": {*FOLDERS - {"folders", "prompts"}, "flow", "strict", "writing"},
    "gallery": {"encoders", "images", "masked", "model", "reading"},
    "images": set(),
    "info": {"autoencoder", "folders", "model", "stored", "weights"},
    "int8": {"encoders"},
    "layers": set(),
    "likelihood": {"masked"},
    "lora": {"model", "stored"},
    "masked": {"unmasking"},
    "notices": set(),
    "embeddings": set(),
    "model": {"attention", "embeddings", "layers"},
    "offload": set(),
    "overrides": {"config", "data.config", "strict", "world"},
    "loading": {"devices", "encoders", "folders", "int8", "lora", "model", "prompts", "weights"},
    "pipeline": {
        "batching",
        "best_of",
        "drawing",
        "encoders",
        "gallery",
        "images",
        "loading",
        "notices",
        "prompts",
        "reading",
        "scoring",
        "writing",
    },
    "prompts": {"encoders", "notices"},
    "reading": {"encoders", "masked", "model", "t5_cache"},
    "recipes": {*CORE, "config", "data.config", "encoders", "prompts", "train", "world"},
    "scoring": {"batching", "encoders", "folders", "gallery", "likelihood", "model", "prompts"},
    "serve": {
        "batching",
        "encoders",
        "folders",
        "devices",
        "flow",
        "images",
        "masked",
        "notices",
        "pipeline",
        "prompts",
        "unmasking",
        "world",
        "writing",
    },
    "sheets": set(),
    "stored": set(),
    "strict": set(),
    "suggest": set(),
    "t5_cache": set(),
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
        "int8",
        "lora",
        "sheets",
        "world",
        "writing",
    },
    "train.__main__": {"cli"},
    "train.run": {"config", "overrides", "recipes", "train"},
    "unmasking": set(),
    "verify": {*CORE, "embeddings", "encoders", "unmasking", "weights"},
    "weights": {"model", "stored"},
    "world": {"devices"},
    "writing": {"batching", "encoders", "gallery", "masked", "model", "prompts", "reading", "unmasking"},
}
"""What each unit may import besides `suggest`: a module, or a package with all in it (unless one is listed itself)."""


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
        if unit not in {importer, "suggest", *MAY_IMPORT[importer]}:
            wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_what_is_allowed_has_no_cycle() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())


def test_every_unit_of_the_table_exists() -> None:
    missing = [unit for unit in MAY_IMPORT if not list(ROOT.glob(f"{unit.replace('.', '/')}*"))]
    assert not missing


def test_the_model_and_the_processes_need_torch_alone() -> None:
    standard = {"collections", "dataclasses", "difflib", "math", "typing"}
    outside = {
        (module, imported.split(".")[0])
        for module, imported in imports()
        if module.removeprefix("ddit.") in {*CORE, *PARTS}
        and imported not in {f"ddit.{part}" for part in PARTS}
        and imported.split(".")[0] not in {*standard, "torch"}
    }
    assert not outside
