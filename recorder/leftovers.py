"""Removes what a killed fdtrace left behind: directories of rings that nobody can recover, and of sockets.

It decides by the maker and owner that each of them names, never only because of a name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from fdtrace.recorder.agent import ring
from fdtrace.recorder.creator_process import CreatorProcess
from fdtrace.recorder.inject import callback_socket
from fdtrace.recorder.inject.users import User, acting_as
from fdtrace.recorder.ring_directory import RingDirectory, every_directory

LOCK = "collector.lock"
"""The file in the parts directory that a collector locks (flock)."""


def sweep() -> None:
    """Remove the leftovers of this user. Root also removes what root has made for other users."""
    for rings in every_directory():
        with contextlib.suppress(OSError):
            if is_leftover(rings):
                rings.remove()
        rings.close()
    for path, user in _meetings():
        with acting_as(user):
            shutil.rmtree(path, ignore_errors=True)


def is_leftover(rings: RingDirectory) -> bool:
    """Whether nobody will ever read these rings: their maker has ended, no process writes to them, and either their
    parts are gone, or there are no rings and no collector works on the parts. If `fdtrace recover` can make a trace of
    them, they stay.
    """
    owner = rings.owner
    if owner is None:
        maker = _maker_in(rings.path.name, "new-")
        return maker is not None and maker.is_gone
    if not owner.maker.is_gone:
        return False
    parts, names = Path(owner.parts), rings.rings()
    if owner.owns(parts) and (names or is_collected(parts)):
        return False
    return not any(_is_written(rings, name) for name in names)


def is_collected(parts: Path) -> bool:
    """Whether a collector works on these parts at this moment: it holds their lock."""
    try:
        fd = os.open(parts / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _is_written(rings: RingDirectory, name: str) -> bool:
    try:
        fd = rings.open(name)
    except OSError:
        return False
    try:
        head = os.pread(fd, ring.HEADER.size, 0)
    finally:
        os.close(fd)
    if len(head) < ring.HEADER.size or head[:8] != ring.MAGIC:
        return False
    pid, start = ring.HEADER.unpack(head)[4:6]
    return bool(0 < pid < 1 << 31 and ring.process_start(pid) == start)


def _meetings() -> Iterator[tuple[Path, User]]:
    me = os.geteuid()
    for parent in map(Path, callback_socket.DIRECTORIES):
        names = []
        with contextlib.suppress(OSError):
            names = os.listdir(parent)
        for name in names:
            maker = _maker_in(name, callback_socket.PREFIX)
            if maker is None or not maker.is_gone:
                continue
            with contextlib.suppress(OSError):
                status = os.lstat(parent / name)
                if stat.S_ISDIR(status.st_mode) and me in (0, status.st_uid):
                    yield parent / name, User(status.st_uid, status.st_gid)


def _maker_in(name: str, prefix: str) -> CreatorProcess | None:
    """The maker in a name of ours: prefix, maker, a dash, and more."""
    if not name.startswith(prefix):
        return None
    return CreatorProcess.parse(name[len(prefix) :].rpartition("-")[0])
