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
from fdtrace.recorder.inject.errors import Ended, NoPtrace

_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


class Meeting:
    """The socket at which the target calls back. Use as a context manager; leaving it gives up whatever is
    under way.

    `timeout` is in seconds, for what the target waits for us.
    """

    def __init__(self, pid: int, uid: int, *, timeout: float) -> None:
        self._pid, self._uid, self._timeout = pid, uid, timeout
        self._here, self._there = _make_directory(pid, uid)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path = f"{self._here}/s"
            self._listener.bind(path)
            _hand_over(path, uid)
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
        shutil.rmtree(self._here, ignore_errors=True)

    def bootstrap(self, *, own_thread: bool = False) -> str:
        """The text that calls here (`conversation.bootstrap`)."""
        return bootstrap(f"{self._there}/s", timeout=self._timeout, own_thread=own_thread)

    def write_script(self) -> str:
        """Put the bootstrap into a file, for `sys.remote_exec`; its path as the target sees it."""
        here = f"{self._here}/boot.py"
        with open(os.open(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(self.bootstrap(own_thread=True))
        _hand_over(here, self._uid)
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
                raise Ended(self._pid)
        return None


def _peer_pid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[0])


def _hand_over(path: str, uid: int) -> None:
    """Make the target's user the owner, where we run as another (root)."""
    if uid != os.geteuid():
        os.chown(path, uid, -1)


def _make_directory(pid: int, uid: int) -> tuple[str, str]:
    """A new directory of mode 0700 owned by the target's user: (its path here, its path in the target)."""
    root = "" if _shares_our_files(pid) else f"/proc/{pid}/root"
    problems = []
    for parent in _DIRECTORIES:
        try:
            # Both sides must reach it by a path that fits in a socket's address.
            here = tempfile.mkdtemp(prefix="fdtrace-", dir=f"{root}{parent}")
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        _hand_over(here, uid)
        return here, here[len(root) :]
    raise NoPtrace(pid, f"it has no directory for our socket ({'; '.join(problems)})")


def _shares_our_files(pid: int) -> bool:
    """Whether a path means the same for us and the process: the same mount namespace and root."""
    try:
        mine, theirs = os.stat("/proc/self/ns/mnt"), os.stat(f"/proc/{pid}/ns/mnt")
        same_root = os.path.samestat(os.stat("/"), os.stat(f"/proc/{pid}/root/"))
    except OSError:
        return False
    return os.path.samestat(mine, theirs) and same_root
