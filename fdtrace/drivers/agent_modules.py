"""The recorder's own modules, for a driver: what they say of a live engine, they say of a driven one.

A driver's script imports it from its own directory. fdtrace cannot be imported there. The agent's modules need only
the standard library and each other, so they are a package of their own there.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "_fdtrace_rules"


def agent_module(name: str) -> Any:
    """A module of `fdtrace/recorder/agent`, by its name."""
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(Path(__file__).resolve().parents[1] / "recorder" / "agent")]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")
