"""Touch files as the user whose files they are.

Root that records another user's server makes files for that user in directories which that user can write: whatever is
done there by path, the user can turn to another file. Done with that user's own rights, it can harm nobody but them.
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
    """Whose files a process makes: the ids that its file accesses are checked with."""

    uid: int
    gid: int


def user_of(pid: int) -> User:
    """The user of a process; FileNotFoundError or ProcessLookupError when it is gone.

    Not the owner of /proc/PID, which is root where a process may not be dumped.
    """
    return user_in(read_status(f"/proc/{pid}/status"))


def user_in(status: dict[str, str]) -> User:
    """The same from what `read_status` has read."""
    return User(int(status["Uid"].split()[3]), int(status["Gid"].split()[3]))


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Have all that this thread does to files meanwhile be done with the rights of `user`, and be theirs.

    Nothing changes where that is who we are. TargetError where we may not: only root may. It is setfsuid(2): of this
    thread alone, and the kernel takes the capabilities over files with it.
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
    """The order matters on the way out: the right to change groups is back with none of the file capabilities."""
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
    """The supplementary groups of this thread alone: the C library's function would change all threads'."""
    number = _SETGROUPS.get(platform.machine())
    if number is not None:
        array = (ctypes.c_uint32 * len(groups))(*groups)
        _libc.syscall(ctypes.c_long(number), ctypes.c_size_t(len(groups)), array)


def user_name(uid: int) -> str:
    """A user for a message: `alice (1000)`, or the number where it has no name."""
    import pwd  # noqa: PLC0415

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user {uid}"
