"""The replayer's rooms: each imports only those below it, no function has a module's name, no class is long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fdtrace.replayer

HOUSE = Path(fdtrace.replayer.__file__).parent
FLOORS = (
    {"config"},
    {"formulas"},
    {"model", "recorded"},
    {"workload", "history"},
    {"replay"},
    {"analysis", "search"},
    {"experiment"},
    {"rank_experiment"},
    {"rank_figures"},
)
"""From the bottom up; rooms of one floor import nothing of each other."""
LONGEST = 350
FILES = sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports, those for types alone too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fdtrace.replayer."):
            rooms.add(str(node.module).split(".")[2])
    return rooms


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} == set().union(*FLOORS) | {"__init__"}


@pytest.mark.parametrize("level", range(len(FLOORS)))
def test_a_room_imports_only_those_below_it(level: int) -> None:
    above = set().union(*FLOORS[level:])
    for path in FILES:
        room = room_of(path)
        if room in FLOORS[level]:
            assert not (rooms_imported(path) - {room}) & above, path


def test_no_function_has_the_name_of_a_module() -> None:
    modules = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    for path in FILES:
        functions = [
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert not modules & set(functions), path


def test_no_class_is_long_with_its_bases() -> None:
    classes: dict[str, ast.ClassDef] = {}
    for path in FILES:
        classes |= {
            node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
        }

    def lines(node: ast.ClassDef) -> int:
        bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
        return (node.end_lineno or 0) - node.lineno + 1 + sum(map(lines, bases))

    assert {name: lines(node) for name, node in classes.items() if lines(node) > LONGEST} == {}
