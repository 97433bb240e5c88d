"""Removes replaced files of a trace as soon as no client can read them any more.

A client that has opened an earlier published database still finds its parts by their names. So we keep the earlier file
open and ask the kernel whether anybody else has it open: the kernel grants a write lease only on a file that nobody
else has open. If the file system has no leases (a network file system), we look for the lock that DuckDB holds on an
open database.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

SETTLE = 0.2
"""Seconds that a file stays at least: a client may be opening the database at this moment."""

GRACE = 3.0
"""The same if we can only look for locks: a client may have opened the database, but not locked it yet."""

F_OFD_GETLK = 36
FLOCK = struct.Struct("hhqqi4x")


def is_locked(fd: int) -> bool:
    """Whether another process has locked the file. Every DuckDB client that has it open has."""
    wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    lock = FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, wanted))
    return bool(lock[0] != fcntl.F_UNLCK)


def is_open(fd: int) -> bool | None:
    """Whether anybody else has the file open; None if the file system cannot say."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


class ReplacedFiles:
    """Files that wait to be removed, and earlier databases that may still name them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.published = time.monotonic()
        self.waiting: list[tuple[float, str]] = []
        self.earlier: list[tuple[float, float, int]] = []
        self.grace = SETTLE

    def add(self, paths: Iterable[str]) -> None:
        """Add files that the next published database does not use."""
        now = time.monotonic()
        self.waiting += [(now, path) for path in paths]

    def replacing(self) -> None:
        """The published database is about to be replaced: watch who still reads it."""
        now = time.monotonic()
        if self.path.exists():
            self.earlier.append(
                (self.published, now, os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
            )
        self.published = now

    def sweep(self) -> bool:
        """Remove what nobody can read any more. Returns whether nothing is left to remove."""
        now = time.monotonic()
        held = []
        for published, replaced, fd in self.earlier:
            if self._is_read(fd) or now - replaced < self.grace:
                held.append((published, replaced, fd))
            else:
                os.close(fd)
        self.earlier = held
        oldest = min((published for published, _, _ in held), default=now)
        waiting, self.waiting = self.waiting, []
        for since, path in waiting:
            if now - since < self.grace or oldest <= since:
                self.waiting.append((since, path))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return not self.waiting

    def _is_read(self, fd: int) -> bool:
        opened = is_open(fd)
        if opened is None:
            self.grace = GRACE
            return is_locked(fd)
        return opened
