"""What the code says of itself: its modules, what each imports, its classes with their lines and bases."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("recorder", "replayer", "tui", "fdtrace")
"""The four packages, each importing only those before it."""


@dataclass
class Class:
    """A class that a module defines: its own lines, and its bases as the module names them."""

    name: str
    lines: int
    bases: tuple[str, ...]


@dataclass
class Module:
    """One file: its import name, and what it defines and imports."""

    name: str
    path: Path
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)
    """What each name in it stands for, in full: `Trace` for `fdtrace.recorder.trace.Trace`."""

    @cached_property
    def classes(self) -> dict[str, Class]:
        return {
            node.name: Class(
                node.name,
                (node.end_lineno or 0) - node.lineno + 1,
                tuple(ast.unparse(base) for base in node.bases),
            )
            for node in self.tree.body
            if isinstance(node, ast.ClassDef)
        }

    @property
    def public_types(self) -> set[str]:
        """Public classes and aliases of types."""
        names = set(self.classes)
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                names |= {
                    target.id for target in targets if isinstance(target, ast.Name) and _is_type(target.id)
                }
        return {name for name in names if not name.startswith("_")}


def _is_type(name: str) -> bool:
    return name[0].isupper() and not name.isupper()


def sources(package: str) -> list[Path]:
    """The files of one floor; the links in fdtrace/ to the other three are not followed."""
    return sorted((ROOT / package).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text())


def modules() -> dict[str, Module]:
    """Every module of the four packages, by its import name."""
    known = {}
    for floor in FLOORS:
        for path in sources(floor):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[0] != "fdtrace":
                parts = ("fdtrace", *parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            known[name] = Module(name, path, tree_of(path))
    for module in known.values():
        module.imports = _imports(module)
    return known


def _imports(module: Module) -> dict[str, str]:
    package = module.name if module.path.stem == "__init__" else module.name.rpartition(".")[0]
    names: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            )
            start = ".".join(filter(None, (base, node.module)))
            names |= {alias.asname or alias.name: f"{start}.{alias.name}" for alias in node.names}
    return names


def arrows(known: dict[str, Module]) -> dict[str, set[str]]:
    """The modules of ours that each imports, at any depth, those for types alone included."""
    return {
        name: {
            target
            for full in module.imports.values()
            if (target := _module_of(full, known)) and target != name
        }
        for name, module in known.items()
    }


def _module_of(full: str, known: dict[str, Module]) -> str | None:
    for name in (full, full.rpartition(".")[0]):
        if name in known:
            return name
    return None


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (Tarjan's strongly connected components of two and more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return groups


def lines_with_bases(module: Module, name: str, known: dict[str, Module]) -> int:
    """Lines of a class and of all its bases that are ours, each counted once."""
    seen: dict[tuple[str, str], int] = {}

    def visit(module: Module, name: str) -> None:
        if (module.name, name) in seen or name not in module.classes:
            return
        seen[module.name, name] = module.classes[name].lines
        for base in module.classes[name].bases:
            plain = base.partition("[")[0]
            if plain in module.classes:
                visit(module, plain)
                continue
            first, _, rest = plain.partition(".")
            full = ".".join(filter(None, (module.imports.get(first, first), rest)))
            home = known.get(full.rpartition(".")[0])
            if home is not None:
                visit(home, full.rpartition(".")[2])

    visit(module, name)
    return sum(seen.values())
