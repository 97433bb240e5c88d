"""The lock of a recording: one collector at a time works on its parts."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.leftovers import LOCK


class PartsLock:
    """Held from its making to `release`, or to the end of the process.

    Args:
        parts: the directory of the recording's parts.

    Raises:
        TraceError: another collector records to these parts, or they are gone.
    """

    def __init__(self, parts: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(parts / LOCK, flags, 0o600)
        except OSError as error:
            raise TraceError(f"{parts} cannot be used", why=str(error)) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise TraceError(
                f"{parts} is being recorded to",
                why="another collector holds its lock",
                hint="`fdtrace status` shows it; `fdtrace detach PID` ends it",
            ) from None

    def release(self) -> None:
        """Let another collector work on the parts. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
