"""What the package is built of, in numbers: `python tools/house.py [SRC]` (by default src/ddit).

For an earlier commit: `git archive COMMIT src | tar x -C FOLDER`, then `python tools/house.py FOLDER/src/ddit`.

A room is a module at the top level, or a folder there with all in it. Depth is the number of modules (or rooms) on the
longest chain of imports; a circle counts as one.
"""

import argparse
import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

Where = Literal["module", "function", "typing"]
"""Where an import stands: at the top of its module, in a function, or in a TYPE_CHECKING block."""
Graph = dict[str, set[str]]


class Import(NamedTuple):
    importer: str
    imported: str
    where: Where


class Function(NamedTuple):
    place: str
    num_lines: int


class House(NamedTuple):
    """The modules of a package by their dotted names, and what was found in them."""

    lines: dict[str, int]
    functions: list[Function]
    imports: list[Import]
    num_function_imports: int
    num_typing_blocks: int

    def graph(self, *where: Where) -> Graph:
        """Who imports whom in the package, by imports that stand there."""
        graph: Graph = {module: set() for module in self.lines}
        for found in self.imports:
            if found.where in where and found.importer != found.imported:
                graph[found.importer].add(found.imported)
        return graph

    def room_graph(self, *where: Where) -> Graph:
        graph: Graph = {}
        for importer, imported in self.graph(*where).items():
            room = room_of(importer)
            graph.setdefault(room, set()).update({room_of(name) for name in imported} - {room})
        return graph


def room_of(module: str) -> str:
    """ "ddit.data" of "ddit.data.sources.tar"; what is run and never imported, as ddit.train.__main__, stands alone."""
    return module if module.endswith(".__main__") else ".".join(module.split(".")[:2])


def read_house(root: Path) -> House:
    """Reads all modules below `root`, the folder of a package."""
    files = {_module_name(root, path): path for path in sorted(root.rglob("*.py"))}
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    house = House({}, [], [], 0, 0)
    num_function_imports = num_typing_blocks = 0
    for module, path in files.items():
        text = path.read_text(encoding="utf-8")
        house.lines[module] = text.count("\n")
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                house.functions.append(Function(f"{module}.{node.name}", length))
            num_typing_blocks += isinstance(node, ast.If) and _is_type_checking(node.test)
        for node, where in _find_imports(tree, "module"):
            num_function_imports += where == "function"
            targets = _targets(node, module, files, module in packages)
            house.imports.extend(Import(module, target, where) for target in targets)
    return house._replace(num_function_imports=num_function_imports, num_typing_blocks=num_typing_blocks)


def _module_name(root: Path, path: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in {getattr(test, "id", None), getattr(test, "attr", None)}


def _find_imports(node: ast.AST, where: Where) -> Iterator[tuple[ast.Import | ast.ImportFrom, Where]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, where
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _find_imports(child, "function")
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            yield from _find_imports(child, "typing")
        else:
            yield from _find_imports(child, where)


def _targets(
    node: ast.Import | ast.ImportFrom, module: str, files: dict[str, Path], is_package: bool
) -> Iterator[str]:
    """The package's own modules that an import names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in files)
        return
    origin = node.module or ""
    if node.level:
        up = node.level - is_package
        parent = module.rsplit(".", up)[0] if up else module
        origin = f"{parent}.{origin}".rstrip(".")
    for alias in node.names:
        name = f"{origin}.{alias.name}"
        if name in files:
            yield name
        elif origin in files:
            yield origin


def find_circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                circles.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return circles


def longest_chain(graph: Graph) -> list[str]:
    """The nodes of the longest chain, from the top; a circle is one node, named after its first."""
    first = {node: circle[0] for circle in find_circles(graph) for node in circle}
    merged: Graph = {}
    for node, others in graph.items():
        name = first.get(node, node)
        merged.setdefault(name, set()).update({first.get(other, other) for other in others} - {name})

    @cache
    def chain(node: str) -> tuple[str, ...]:
        below = max((chain(other) for other in sorted(merged.get(node, ()))), key=len, default=())
        return node, *below

    return list(max((chain(node) for node in sorted(merged)), key=len, default=()))


def describe(root: Path) -> str:
    """The tables, then what they count by name."""
    house = read_house(root)
    top = [f"{root.name}.{path.stem}" for path in root.glob("*.py")]
    rooms = {*top, *(room_of(name) for name in house.lines if not name.endswith(".__main__"))} - {root.name}
    long_files = [f"{name} {count}" for name, count in house.lines.items() if count > MAX_FILE_LINES]
    long_functions = [f"{place} {length}" for place, length in house.functions if length > MAX_FUNCTION_LINES]
    counts = {
        "modules at the top level": len(top),
        "rooms": len(rooms),
        "source lines": sum(house.lines.values()),
        f"files over {MAX_FILE_LINES} lines": len(long_files),
        f"functions over {MAX_FUNCTION_LINES} lines": len(long_functions),
        "imports in functions": house.num_function_imports,
        "TYPE_CHECKING blocks": house.num_typing_blocks,
    }
    lines = [f"{name:<25} {count:>7,}" for name, count in counts.items()]
    wheres: list[tuple[Where, ...]] = [
        ("module",),
        ("module", "function"),
        ("module", "function", "typing"),
    ]
    lines += ["", f"{'imports':<25} {'at the top':>10} {'+ in functions':>15} {'+ TYPE_CHECKING':>16}"]
    details = [*long_files, *long_functions]
    for name, make_graph in (("modules", house.graph), ("rooms", house.room_graph)):
        graphs = [make_graph(*where) for where in wheres]
        circles, chains = (
            [find_circles(graph) for graph in graphs],
            [longest_chain(graph) for graph in graphs],
        )
        for what, found in (("circles", circles), ("depth", chains)):
            first, second, third = map(len, found)
            lines.append(f"{what + ' of ' + name:<25} {first:>10} {second:>15} {third:>16}")
        details += ["circle: " + ", ".join(circle) for circle in circles[-1]]
        details.append(" < ".join(reversed(chains[-1])))
    return "\n".join([*lines, "", *details])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[1] / "src" / "ddit"
    parser.add_argument("src", type=Path, nargs="?", default=default, metavar="SRC")
    print(describe(parser.parse_args().src.resolve()))


if __name__ == "__main__":
    main()
