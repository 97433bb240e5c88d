"""What can go wrong with the disk under a recording: whether to wait for it, and what the user is told."""

from __future__ import annotations

import errno
import os

import duckdb

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.session import Session

FULL = (errno.ENOSPC, errno.EDQUOT)

FINISH_WAIT = 10.0
"""Seconds that the end of a recording waits for room on a full disk: nothing is written to its rings any more."""


def is_full(error: BaseException) -> bool:
    """Whether a disk, or a user's share of it, is full: there may be room in a moment."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, duckdb.Error) and any(os.strerror(number) in str(error) for number in FULL)


def cannot_go_on(session: Session, safe_steps: int, error: BaseException) -> TraceError:
    """The error that ends a recording: how many steps are safe, where they are, and how to go on."""
    path, parts = session.output, session.parts
    safe = f"{safe_steps} steps are safe in {parts}"
    rings = " and what came after them is still in memory, until this machine restarts"
    if not parts.is_dir():
        what = f"the recording to {path} has ended: its parts were removed"
        return TraceError(what, why=f"somebody removed {parts}", hint="record again; nothing of it is left")
    if isinstance(error, TraceError):
        return TraceError(error.what, why=error.why, hint=f"{safe},{rings}; {error.hint}")
    why = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    first = "make room on that disk" if is_full(error) else "mend that"
    if is_full(error) or isinstance(error, OSError):
        why = f"{os.path.dirname(path)}: {why}"
    return TraceError(
        f"the recording to {path} cannot go on",
        why=why,
        hint=f"{safe},{rings}; {first}, then `fdtrace recover {path}`",
    )
