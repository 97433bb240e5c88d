"""The house: four packages, each importing only those below it; rooms that one reads at a glance; docs as generated."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from fdtrace.recorder.agent import load
from fdtrace.recorder.document import document

ROOT = Path(__file__).parents[1]
FLOORS = ("recorder", "replayer", "tui", "fdtrace")
LONGEST = 350


def sources(package: str) -> list[Path]:
    """The files of one floor; the links in fdtrace/ to the other three are not followed."""
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The packages that a file imports, at any depth: of `recorder.trace` it is `recorder`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
        tree = ast.parse((ROOT / "recorder" / "agent" / f"{name}.py").read_text())
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


def classes(package: str) -> dict[str, tuple[int, list[str]]]:
    """Each class of a package: its lines, and the names of its bases."""
    found = {}
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
                found[node.name] = (node.end_lineno or 0) - node.lineno + 1, bases
    return found


@pytest.mark.parametrize("package", ["tui", "fdtrace"])
def test_a_class_is_small_with_its_bases(package: str) -> None:
    known = {name: each for above in FLOORS for name, each in classes(above).items()} | classes(package)

    def lines(name: str) -> int:
        own, bases = known.get(name, (0, []))
        return own + sum(lines(base) for base in bases if base != name)

    for name in classes(package):
        assert lines(name) <= LONGEST, f"{name}: {lines(name)} lines with its bases"


def module(path: Path) -> str:
    """The name that a file is imported by."""
    *folders, name = path.relative_to(ROOT).with_suffix("").parts
    names = [*folders, name] if name != "__init__" else folders
    return ".".join(names if names[0] == "fdtrace" else ["fdtrace", *names])


@pytest.mark.parametrize("package", ["replayer", "tui", "fdtrace"])
def test_no_two_modules_import_each_other(package: str) -> None:
    """At any distance, and for types alone too."""
    modules = {module(path): path for path in sources(package)}
    imports = {}
    for name, path in modules.items():
        imports[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                one = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                imports[name] |= one or {node.module} & modules.keys()
    assert tuple(TopologicalSorter(imports).static_order())


def test_the_documented_schema_is_the_schema() -> None:
    assert (ROOT / "docs" / "trace.md").read_text() == document(), "run `make docs`"
