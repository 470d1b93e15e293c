"""The numbers of a package: circles, depth, rooms, long functions, and where its imports stand."""

from pathlib import Path

import pytest

from tools.house import describe, find_circles, longest_chain, read_house

MODULES = {
    "__init__.py": "",
    "__main__.py": "from house.cli import main\n",
    "cli.py": "def main():\n    import house.shop.till\n",
    "coin.py": "",
    "shop/__init__.py": "from .till import pay\n",
    "shop/till.py": """
from typing import TYPE_CHECKING

import house.coin

if TYPE_CHECKING:
    from ..cli import main
""",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "house"


def test_imports_are_known_by_where_they_stand(package: Path) -> None:
    house = read_house(package)
    assert house.graph("module")["house.shop.till"] == {"house.coin"}
    assert house.graph("function")["house.cli"] == {"house.shop.till"}
    assert house.graph("typing")["house.shop.till"] == {"house.cli"}
    assert (house.num_function_imports, house.num_typing_blocks) == (1, 1)


def test_a_circle_by_way_of_functions_and_types_is_found(package: Path) -> None:
    house = read_house(package)
    assert find_circles(house.graph("module", "function")) == []
    assert find_circles(house.graph("module", "function", "typing")) == [["house.cli", "house.shop.till"]]
    assert find_circles(house.room_graph("module", "function", "typing")) == [["house.cli", "house.shop"]]


def test_the_longest_chain_goes_from_the_entry_point_down(package: Path) -> None:
    house = read_house(package)
    rooms = house.room_graph("module", "function")
    assert longest_chain(rooms) == ["house.__main__", "house.cli", "house.shop", "house.coin"]
    assert longest_chain({"a": {"b"}, "b": {"a", "c"}, "c": set()}) == ["a", "c"]  # a circle is one


def test_the_table_counts_rooms_lines_and_long_functions(package: Path) -> None:
    (package / "coin.py").write_text("def mint():\n" + "    pass\n" * 60)
    lines = describe(package).splitlines()
    assert lines[0].split() == ["modules", "at", "the", "top", "level", "4"]
    assert lines[1].split() == ["rooms", "5"]  # __init__, __main__, cli, coin, and shop
    assert "house.coin.mint 61" in lines
