"""Removes files of a trace that were replaced, once no client can read them any more.

A client that opened an earlier published database still finds its parts by name. DuckDB holds a lock on a database
for as long as it is open, so the earlier file, kept open here, tells whether anybody has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

GRACE = 3.0
"""Seconds that a file stays at least: a client may have read the database and not opened the part yet."""

F_OFD_GETLK = 36
FLOCK = struct.Struct("hhqqi4x")


def is_locked(fd: int) -> bool:
    """Whether another process holds a lock on the file (any DuckDB client that has it open does)."""
    wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    found = FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, wanted))
    return bool(found[0] != fcntl.F_UNLCK)


class Retired:
    """The files that wait, and the earlier databases that may still name them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.published = time.monotonic()
        self.waiting: list[tuple[float, str]] = []
        self.earlier: list[tuple[float, float, int]] = []

    def add(self, paths: Iterable[str]) -> None:
        """These files are no part of the next published database."""
        now = time.monotonic()
        self.waiting += [(now, path) for path in paths]

    def replacing(self) -> None:
        """The published database is about to be replaced: keep an eye on whoever reads it."""
        now = time.monotonic()
        if self.path.exists():
            self.earlier.append(
                (self.published, now, os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
            )
        self.published = now

    def sweep(self) -> bool:
        """Remove what nobody can read any more; whether nothing waits."""
        now = time.monotonic()
        held = []
        for published, replaced, fd in self.earlier:
            if now - replaced < GRACE or is_locked(fd):
                held.append((published, replaced, fd))
            else:
                os.close(fd)
        self.earlier = held
        oldest = min((published for published, _, _ in held), default=now)
        waiting, self.waiting = self.waiting, []
        for since, path in waiting:
            if now - since < GRACE or oldest <= since:
                self.waiting.append((since, path))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return not self.waiting
