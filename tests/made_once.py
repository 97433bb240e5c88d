"""What is dear to make, and is only read: made once for all workers of a run."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """The file at a path below the fixture `shared`: whoever comes first makes it there, the others wait."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            half = path.with_name(f"half-{path.name}")
            make(half)
            half.rename(path)
    return path
