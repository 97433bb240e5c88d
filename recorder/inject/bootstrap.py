"""The few lines that run in the target: they call back, receive the source, run it and answer.

And our end of it: a private directory that the target sees, with a Unix socket in it. If we have given up
when the lines run at last, there is no socket, and nothing is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from types import TracebackType
from typing import Any

from recorder.inject.errors import AgentFailed, Ended, NoPtrace

# One expression, so that no name is left in the target's __main__; _socket, because socket may be patched
# (gevent); nothing but CPython 3.9's standard library. The namespace is cleared: its functions refer to it, and a
# server may collect such cycles late or never.
_BOOTSTRAP = """
def run():
    try:
        import _socket, struct
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    except BaseException:
        return
    try:
        peer.settimeout({timeout!r})
        peer.connect({path!r})
        def receive(size):
            data = b''
            while len(data) < size:
                more = peer.recv(min(size - len(data), 65536))
                if not more:
                    raise EOFError
                data += more
            return data
        source = receive(struct.unpack('<Q', receive(8))[0])
        space = {{'__name__': '_fdtrace_boot'}}
        try:
            exec(compile(source, '<fdtrace>', 'exec'), space)
            import json
            answer = 'ok ' + json.dumps(space.get('result'))
        except BaseException as error:
            try:
                answer = 'err ' + type(error).__name__ + ': ' + str(error)
            except BaseException:
                answer = 'err ' + type(error).__name__
        space.clear()
        peer.sendall(answer.encode('utf-8', 'backslashreplace'))
    except BaseException:
        pass
    finally:
        peer.close()
"""
_IN_THIS_THREAD = "run()\n"
_IN_ITS_OWN_THREAD = "import _thread\n_thread.start_new_thread(run, ())\n"
_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


class Meeting:
    """The socket at which the target calls back. Use as a context manager; leaving it gives up whatever is
    under way.

    `timeout` is in seconds, for the call back and again for the answer.
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
        """The text to run in the target; with `own_thread` it starts a thread for itself and returns."""
        code = _BOOTSTRAP.format(timeout=self._timeout, path=f"{self._there}/s")
        code += _IN_ITS_OWN_THREAD if own_thread else _IN_THIS_THREAD
        return f"exec({code!r}, {{'__name__': '_fdtrace_boot'}})\n"

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

    def run(self, peer: socket.socket, source: str) -> Any:
        """Hand `source` over and return its result. AgentFailed with its exception's text."""
        self.close()  # a bootstrap that was queued in another way finds nobody here
        with peer:
            answer = self._exchange(peer, source.encode())
        kind, _, text = answer.partition(" ")
        if kind == "ok":
            return json.loads(text)
        raise AgentFailed(
            self._pid, text if kind == "err" else "the process closed the connection without an answer"
        )

    def _exchange(self, peer: socket.socket, source: bytes) -> str:
        peer.settimeout(self._timeout)
        answer = b""
        try:
            peer.sendall(struct.pack("<Q", len(source)) + source)
            while more := peer.recv(65536):
                answer += more
        except TimeoutError:
            raise AgentFailed(self._pid, f"no answer within {self._timeout:g} s") from None
        except ConnectionError:
            pass
        return answer.decode("utf-8", "replace")


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
