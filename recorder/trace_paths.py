"""The paths beside a trace's own. Whoever only reads a trace needs no more of a recording's session than these."""

from __future__ import annotations

from pathlib import Path


def parts_directory(path: Path) -> Path:
    """The directory of the parts of the recording at `path`, while it records."""
    return path.with_name(path.name + ".parts")


def identity_of_published(path: Path) -> tuple[int, int] | None:
    """What tells the file at a path from the one that replaces it: inode and time (ns). None: there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
