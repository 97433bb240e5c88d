"""What holds for all tests: byte code is kept, one directory is shared by all workers, garbage is collected less, slow
tests come first.

The suite starts hundreds of processes. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of them would
compile what it imports of this project again: a third of what a short command costs.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run see, for what is dear to make; whoever makes a thing there locks it."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first: one that begins last would keep the others' processors idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of the garbage collector, which goes through it all again and again.

    A replay makes so many objects that this took a fifth of it.
    """
    gc.collect()
    gc.freeze()
