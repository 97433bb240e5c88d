"""What is said between the target and us, once it has called back.

The lines that run in the target know how to call, and how to run one source after another in one namespace; all else
is sent, compiled where its Python's code is as ours. It says first which thread of it speaks, and what its code is
like; then, for each source and the bytes that go with it, it answers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import os
import socket
import struct
from importlib.util import MAGIC_NUMBER
from typing import Any

from fdtrace.recorder.inject.inject_errors import AgentFailed
from fdtrace.recorder.inject.quiet import is_first_in_line, put_first, rest

# One expression, so that no name is left in the target's __main__; _socket, because socket may be patched
# (gevent); nothing but CPython 3.9's standard library. Both namespaces are cleared: their functions refer to them, and
# a server may collect such cycles late or never.
_BOOTSTRAP = """
def run():
    try:
        import _frozen_importlib_external, _socket, _thread, marshal, os, struct
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    except BaseException:
        return
    space = {{'__name__': '_fdtrace_boot'}}
    try:
        peer.settimeout({timeout!r})
        peer.connect({path!r})
        def receive(size):
            data = b''
            while len(data) < size:
                more = peer.recv(min(size - len(data), 1048576))
                if not more:
                    raise EOFError
                data += more
            return data
        magic = _frozen_importlib_external.MAGIC_NUMBER
        peer.sendall(struct.pack('<QQ4s', os.getpid(), _thread.get_native_id(), magic))
        while True:
            compiled, length, more = struct.unpack('<QQQ', receive(24))
            if not length:
                break
            source, space['data'] = receive(length), receive(more)
            try:
                exec(marshal.loads(source) if compiled else compile(source, '<fdtrace>', 'exec'), space)
                import json
                answer = 'ok ' + json.dumps(space.pop('result', None))
            except BaseException as error:
                try:
                    answer = 'err ' + type(error).__name__ + ': ' + str(error)
                except BaseException:
                    answer = 'err ' + type(error).__name__
            source = space['data'] = None
            answer = answer.encode('utf-8', 'backslashreplace')
            peer.sendall(struct.pack('<Q', len(answer)) + answer)
    except BaseException:
        pass
    finally:
        space.clear()
        peer.close()
        globals().clear()
"""
_IN_THIS_THREAD = "run()\n"
_IN_ITS_OWN_THREAD = "import _thread\n_thread.start_new_thread(run, ())\n"


def bootstrap(path: str, *, timeout: float, own_thread: bool) -> str:
    """The text to run in the target: it calls at the socket `path`; with `own_thread` it starts a thread for itself and
    returns. `timeout` is in seconds, for each thing that we say.
    """
    code = _BOOTSTRAP.format(timeout=timeout, path=path)
    code += _IN_ITS_OWN_THREAD if own_thread else _IN_THIS_THREAD
    return f"exec({code!r}, {{'__name__': '_fdtrace_boot'}})\n"


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> bytes:
    """To compile it there would take the target's own threads milliseconds."""
    return marshal.dumps(compile(source, "<fdtrace>", "exec"))


class Conversation:
    """A target that has called back at `peer`. Use as a context manager; leaving it ends the target's thread.

    `timeout` is in seconds, for each answer.
    """

    def __init__(self, pid: int, peer: socket.socket, *, timeout: float) -> None:
        self._pid, self._peer, self._timeout = pid, peer, timeout
        peer.settimeout(timeout)
        self.is_our_python = False
        """Whether its code objects are as ours: it has the same version of Python."""

    def __enter__(self) -> Conversation:
        own_pid, thread, magic = struct.unpack("<QQ4s", self._receive(20))
        self.is_our_python = magic == MAGIC_NUMBER
        # Where the pids differ it counts in another namespace, and the thread's number means nothing here.
        if own_pid == self._pid != thread and is_first_in_line():
            self._lend_place(thread)
        return self

    def _lend_place(self, thread: int) -> None:
        """While it has the GIL and no processor, its whole process waits: it goes before others, as we do."""
        if os.path.exists(f"/proc/{self._pid}/task/{thread}"):
            put_first(thread)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._peer.sendall(bytes(24))

    def ask(self, source: str, data: bytes = b"") -> Any:
        """Run `source` with `data` beside it, in the namespace of all that was asked before; its `result`.

        AgentFailed with its exception's text.
        """
        try:
            text = _compiled(source) if self.is_our_python else source.encode()
        except SyntaxError as error:
            raise AgentFailed(self._pid, f"SyntaxError: {error}") from None
        rest()
        with contextlib.suppress(OSError):  # how it ended is told when we read
            head = struct.pack("<QQQ", self.is_our_python, len(text), len(data))
            self._peer.sendall(head + text + data)
        (length,) = struct.unpack("<Q", self._receive(8))
        kind, _, answer = self._receive(length).decode("utf-8", "replace").partition(" ")
        if kind == "ok":
            return json.loads(answer)
        raise AgentFailed(self._pid, answer)

    def _receive(self, size: int) -> bytes:
        data = b""
        try:
            while len(data) < size and (more := self._peer.recv(min(size - len(data), 1 << 20))):
                data += more
        except TimeoutError:
            raise AgentFailed(self._pid, f"no answer within {self._timeout:g} s") from None
        except ConnectionError:
            pass
        if len(data) < size:
            raise AgentFailed(self._pid, "the process closed the connection without an answer")
        return data
