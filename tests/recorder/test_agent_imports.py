"""The agent's modules import each other one way, also for their types alone."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from fdtrace.recorder.agent_delivery import AGENT


def test_no_module_of_the_agent_imports_one_that_imports_it() -> None:
    imports: dict[str, set[str]] = {}
    for path in AGENT.glob("*.py"):
        imports[path.stem] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                imports[path.stem] |= {str(name) for name in names}
    assert list(TopologicalSorter(imports).static_order())  # CycleError names the circle
