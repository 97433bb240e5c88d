"""The house: four packages, each importing only those below it; rooms that one reads at a glance; docs as generated."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from fdtrace.recorder.agent import load
from fdtrace.recorder.schema_docs import document
from tests.house_graph import FLOORS, Module, arrows, circles, lines_with_bases, modules, sources, tree_of

pytestmark = pytest.mark.xdist_group("house")  # one worker reads every file once

ROOT = Path(__file__).parents[1]
LONGEST = 350


def imported(path: Path) -> set[str]:
    """The packages that a file imports, at any depth: of `recorder.trace` it is `recorder`."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {package_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            inside = [f".{alias.name}" for alias in node.names] if node.module == "fdtrace" else [""]
            names |= {package_of(node.module + name) for name in inside}
    return names


def package_of(module: str) -> str:
    """The floor of a module of ours, the top-level package of any other."""
    first, _, rest = module.partition(".")
    below = rest.partition(".")[0]
    return below if first == "fdtrace" and below in FLOORS else first


@pytest.mark.parametrize("package", FLOORS)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    above = set(FLOORS[FLOORS.index(package) + 1 :])
    for path in sources(package):
        assert not imported(path) & above, path


def test_the_replayer_has_no_clock_no_files_and_no_terminal() -> None:
    banned = {
        "time",
        "datetime",
        "os",
        "pathlib",
        "io",
        "random",
        "duckdb",
        "textual",
        "rich",
        "subprocess",
        "socket",
    }
    for path in sources("replayer"):
        assert not imported(path) & banned, path


def test_the_agent_imports_the_standard_library_alone() -> None:
    for path in (ROOT / "recorder" / "agent").rglob("*.py"):
        assert imported(path) <= {*sys.stdlib_module_names, "__future__"}, path


def test_the_agent_loads_each_of_its_modules_after_those_that_it_imports() -> None:
    for i, name in enumerate(load.order()):
        tree = tree_of(ROOT / "recorder" / "agent" / f"{name}.py")
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level:
                needs = [node.module] if node.module else [alias.name for alias in node.names]
                assert set(needs) <= set(load.order()[:i]), name


def test_no_widget_touches_a_database_or_a_file() -> None:
    for path in sources("tui"):
        assert not imported(path) & {"duckdb", "sqlite3"}, path


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_are_small(package: str) -> None:
    for path in sources(package):
        lines = path.read_text().count("\n")
        assert lines <= LONGEST, f"{path}: {lines} lines"


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    """Every module of the four packages, by its import name."""
    return modules()


def test_a_class_is_small_with_its_bases(house: dict[str, Module]) -> None:
    for module in house.values():
        for name in module.classes:
            lines = lines_with_bases(module, name, house)
            assert lines <= LONGEST, f"{module.name}.{name}: {lines} lines with its bases"


def test_no_modules_import_each_other(house: dict[str, Module]) -> None:
    """At any distance, and for types alone too."""
    assert circles(arrows(house)) == []


def test_a_public_class_has_a_name_of_its_own(house: dict[str, Module]) -> None:
    homes: dict[str, list[str]] = {}
    for module in house.values():
        for name in module.public_types:
            homes.setdefault(name, []).append(module.name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


SAME_PART = {"__init__", "__main__", "controller"}
"""Modules that play the same part in each folder: the screen's controllers stand each beside its widgets."""


def test_a_module_has_a_name_of_its_own(house: dict[str, Module]) -> None:
    homes: dict[str, list[str]] = {}
    for module in house.values():
        if module.path.stem not in SAME_PART:
            homes.setdefault(module.path.stem, []).append(module.name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_the_documented_schema_is_the_schema() -> None:
    assert (ROOT / "docs" / "trace.md").read_text() == document(), "run `make docs`"
