"""Where the target connects to us: a Unix socket in a private directory that the target can see.

If we have given up before our code runs in the target, the socket is gone, and nothing is installed.
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

from fdtrace.recorder.creator_process import CreatorProcess
from fdtrace.recorder.inject.conversation import bootstrap
from fdtrace.recorder.inject.inject_errors import NoPtrace, TargetEnded
from fdtrace.recorder.inject.target import shares_our_files
from fdtrace.recorder.inject.users import User, acting_as

DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm", "/run")
PREFIX = "fdtrace-attach-"


class CallbackSocket:
    """The socket to which the target connects. Leaving this context gives up whatever is under way.

    Socket and directory are made as the target's user `user` (`acting_as`); only that user can reach them. `timeout` is
    in seconds: how long the target waits for us.
    """

    def __init__(self, pid: int, user: User, *, timeout: float) -> None:
        self._pid, self._user, self._timeout = pid, user, timeout
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._our_path = ""
        try:
            with acting_as(user):
                self._our_path, self._target_path = _make_directory(pid)
                path = f"{self._our_path}/s"
                self._listener.bind(path)
                os.chmod(path, 0o600)
            self._listener.listen(8)
            self._listener.setblocking(False)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CallbackSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()
        if self._our_path:
            with acting_as(self._user):
                shutil.rmtree(self._our_path, ignore_errors=True)

    def bootstrap(self, *, own_thread: bool = False) -> str:
        """The text that connects to this socket (`conversation.bootstrap`)."""
        return bootstrap(f"{self._target_path}/s", timeout=self._timeout, own_thread=own_thread)

    def write_script(self) -> str:
        """Write the bootstrap to a file for `sys.remote_exec`. Returns the file's path as the target sees it."""
        path = f"{self._our_path}/boot.py"
        with acting_as(self._user):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(self.bootstrap(own_thread=True))
        return f"{self._target_path}/boot.py"

    def wait(self, pidfd: int, timeout: float) -> socket.socket | None:
        """The target's connection; None if none came within `timeout` seconds. Raises TargetEnded if it ends."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while (remaining := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in poller.poll(remaining * 1000)]
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
    """A new directory of mode 0700: (our path of it, the target's path of it).

    Its name says which process made it. So the next fdtrace can remove it if we are killed (`leftovers`).
    """
    root = "" if shares_our_files(pid) else f"/proc/{pid}/root"
    problems = []
    for parent in DIRECTORIES:
        try:
            # Each side must reach it by a path that fits into a socket address.
            path = tempfile.mkdtemp(prefix=f"{PREFIX}{CreatorProcess.this()}-", dir=f"{root}{parent}")
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        return path, path[len(root) :]
    raise NoPtrace(pid, f"it has no directory for our socket ({'; '.join(problems)})")
