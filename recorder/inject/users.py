"""Works on files with the rights of the user whose files they are.

When root records another user's server, it makes files for that user in directories that the user can write. The user
could make any path in there point to another file. With only that user's own rights, we can harm nobody but that user.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fdtrace.recorder.errors import TargetError
from fdtrace.recorder.inject.proc import read_status

_SETGROUPS = {"x86_64": 116, "aarch64": 159}
_UNCHANGED = ctypes.c_uint32(-1).value

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class User:
    """The user of a process's files: the ids with which its file accesses are checked."""

    uid: int
    gid: int


def user_of(pid: int) -> User:
    """The user of a process. Raises FileNotFoundError or ProcessLookupError if it is gone.

    This is not the owner of /proc/PID: that is root for a process that may not be dumped.
    """
    return user_in(read_status(f"/proc/{pid}/status"))


def user_in(status: dict[str, str]) -> User:
    """The same, from the result of `read_status`."""
    return User(int(status["Uid"].split()[3]), int(status["Gid"].split()[3]))


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """In this context, this thread accesses files with the rights of `user`; new files belong to `user`.

    Nothing changes if `user` is our own user. Raises TargetError if we may not do it: only root may. It is setfsuid(2):
    it concerns this thread alone, and with it the kernel takes away the capabilities over files.
    """
    if user.uid == os.geteuid():
        yield
        return
    mine = User(os.geteuid(), os.getegid())
    groups = os.getgroups()
    try:
        _become(user, [])
        yield
    finally:
        _become(mine, groups)


def _become(user: User, groups: list[int]) -> None:
    """Groups come first. On the way back that matters: they are set before the file capabilities return."""
    _set_groups(groups)
    _libc.setfsgid(user.gid)
    _libc.setfsuid(user.uid)
    if _libc.setfsuid(_UNCHANGED) != user.uid or _libc.setfsgid(_UNCHANGED) != user.gid:
        raise TargetError(
            f"this user may not make files for user {user.uid}",
            why="that takes root (CAP_SETUID and CAP_SETGID)",
            hint=f"run the same command with `sudo`, or as that user: `sudo -u '#{user.uid}' fdtrace …`",
        )


def _set_groups(groups: list[int]) -> None:
    """Set the supplementary groups of this thread alone. The C library's function would set those of all threads."""
    number = _SETGROUPS.get(platform.machine())
    if number is not None:
        array = (ctypes.c_uint32 * len(groups))(*groups)
        _libc.syscall(ctypes.c_long(number), ctypes.c_size_t(len(groups)), array)


def user_name(uid: int) -> str:
    """A user for a message: `alice (1000)`, or the number if the user has no name."""
    import pwd  # noqa: PLC0415

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user {uid}"
