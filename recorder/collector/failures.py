"""Problems with the disk of a recording: whether waiting may help, and the error for the user."""

from __future__ import annotations

import errno
import os

import duckdb

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.session import Session

FULL = (errno.ENOSPC, errno.EDQUOT)

FINISH_WAIT = 10.0
"""Seconds that the end of a recording waits for room on a full disk. At that time nothing writes to its rings."""


def is_full(error: BaseException) -> bool:
    """Whether the error says that a disk is full, or a user's quota. There may be room again soon."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, duckdb.Error) and any(os.strerror(number) in str(error) for number in FULL)


def cannot_go_on(session: Session, safe_steps: int, error: BaseException) -> TraceError:
    """The error that ends a recording. It says how many steps are safe, where they are, and how to go on."""
    path, parts = session.output, session.parts
    safe = f"{safe_steps} steps are safe in {parts}"
    rings = " and what came after them is still in memory, until this machine restarts"
    if not parts.is_dir():
        message = f"the recording to {path} has ended: its parts were removed"
        return TraceError(
            message, why=f"somebody removed {parts}", hint="record again; nothing of it is left"
        )
    if isinstance(error, TraceError):
        return TraceError(error.what, why=error.why, hint=f"{safe},{rings}; {error.hint}")
    why = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    first = "make room on that disk" if is_full(error) else "fix that"
    if is_full(error) or isinstance(error, OSError):
        why = f"{os.path.dirname(path)}: {why}"
    return TraceError(
        f"the recording to {path} cannot go on",
        why=why,
        hint=f"{safe},{rings}; {first}, then `fdtrace recover {path}`",
    )
