"""The paths beside a trace's own. Whoever only reads a trace needs no more of a recording's session than these."""

from __future__ import annotations

from pathlib import Path


def parts_directory(path: Path) -> Path:
    """The directory of the parts of the recording at `path`, while it records."""
    return path.with_name(path.name + ".parts")
