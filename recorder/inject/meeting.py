"""Where a target calls back: a private directory that it sees, with a Unix socket in it.

If we have given up when its lines run at last, there is no socket, and nothing is installed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from types import TracebackType

from fdtrace.recorder.inject.conversation import bootstrap
from fdtrace.recorder.inject.inject_errors import NoPtrace, TargetEnded
from fdtrace.recorder.inject.target import shares_our_files
from fdtrace.recorder.inject.users import User, acting_as
from fdtrace.recorder.maker import Maker

DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm", "/run")
PREFIX = "fdtrace-attach-"


class Meeting:
    """The socket at which the target calls back. Use as a context manager; leaving it gives up whatever is
    under way.

    All of it is made as the target's user `user` (`acting_as`), who alone can reach it. `timeout` is in seconds, for
    what the target waits for us.
    """

    def __init__(self, pid: int, user: User, *, timeout: float) -> None:
        self._pid, self._user, self._timeout = pid, user, timeout
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._here = ""
        try:
            with acting_as(user):
                self._here, self._there = _make_directory(pid)
                path = f"{self._here}/s"
                self._listener.bind(path)
                os.chmod(path, 0o600)
            self._listener.listen(8)
            self._listener.setblocking(False)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()
        if self._here:
            with acting_as(self._user):
                shutil.rmtree(self._here, ignore_errors=True)

    def bootstrap(self, *, own_thread: bool = False) -> str:
        """The text that calls here (`conversation.bootstrap`)."""
        return bootstrap(f"{self._there}/s", timeout=self._timeout, own_thread=own_thread)

    def write_script(self) -> str:
        """Put the bootstrap into a file, for `sys.remote_exec`; its path as the target sees it."""
        here = f"{self._here}/boot.py"
        with acting_as(self._user):
            fd = os.open(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(self.bootstrap(own_thread=True))
        return f"{self._there}/boot.py"

    def wait(self, pidfd: int, timeout: float) -> socket.socket | None:
        """The target's call, None when none came within `timeout` seconds. Ended when the process ends."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in poller.poll(left * 1000)]
            if self._listener.fileno() in ready:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    peer, _ = self._listener.accept()
                    if _peer_pid(peer) == self._pid:
                        return peer
                    peer.close()
            elif pidfd in ready:
                raise TargetEnded(self._pid)
        return None


def _peer_pid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[0])


def _make_directory(pid: int) -> tuple[str, str]:
    """A new directory of mode 0700: (its path here, its path in the target). Its name says who made it, so that the
    next fdtrace removes it where we are killed (`leftovers`).
    """
    root = "" if shares_our_files(pid) else f"/proc/{pid}/root"
    problems = []
    for parent in DIRECTORIES:
        try:
            # Both sides must reach it by a path that fits in a socket's address.
            here = tempfile.mkdtemp(prefix=f"{PREFIX}{Maker.this()}-", dir=f"{root}{parent}")
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        return here, here[len(root) :]
    raise NoPtrace(pid, f"it has no directory for our socket ({'; '.join(problems)})")
