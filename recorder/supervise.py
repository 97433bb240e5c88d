"""Runs a session's collector as a process of its own, and starts it again if it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import FdtraceError, TraceError
from fdtrace.recorder.session import Session

ROOT = Path(__file__).absolute().parents[2]
"""Where the package `fdtrace` lies."""

COLLECT = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "from runpy import run_module; run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Runs the module in the second argument, with the directory in the first one on its path. `python -m` would search the
working directory first, and somebody may have a `json.py` or a folder `numpy` there."""

MOST_DEATHS = 30
"""After so many deaths in a row before it was ready, the collector is given up. What it has read is in the parts."""


END_WAIT = 10.0
"""Seconds to wait for the end of a collector that has reported an error. It does nothing more after the report."""


class Supervisor:
    """The collector of one session. Call `poll` often: it passes messages on and restarts the collector."""

    def __init__(self, session: Session, module: str = "fdtrace.recorder.collector") -> None:
        """`module`: the program of the collector."""
        self.session, self.module = session, module
        self.restarts = 0
        self.deaths = 0
        self.ending: str | None = None
        self.ended: str | None = None
        """Why nothing more can come from the processes seen so far; None if more can come."""
        self.finished: dict[str, Any] | None = None
        self._text = b""
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-c", COLLECT, str(ROOT), self.module, str(self.session.path)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FDTRACE")}
        log = _open_log(self.log)
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        finally:
            os.close(log)
        assert self.process.stdout is not None
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    @property
    def log(self) -> Path:
        """The log of the collectors: messages that no user needs to see."""
        return self.session.parts / "collector.log"

    def poll(self, timeout: float) -> list[dict[str, Any]]:
        """The messages of the collector within `timeout` seconds. Raises FdtraceError if it failed."""
        messages = []
        if self.finished is None and self.selector.select(timeout):
            assert self.process.stdout is not None
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                self._ended()
            self._text += data
            *lines, self._text = self._text.split(b"\n")
            messages = [json.loads(line) for line in lines]
        for message in messages:
            if "error" in message:
                self.finished = message
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(END_WAIT)  # it holds the lock of its parts; `recover` may come next
                what, why, hint = message["error"]
                raise TraceError(what, why=why, hint=hint)
            if message.get("ready"):
                self.deaths = 0
            self.ended = message.get("ended", self.ended)
            if message.get("done"):
                self.finished = message
        return messages

    def _ended(self) -> None:
        code = self.process.wait()
        self._text = b""
        self._close()
        if self.finished is not None:
            return
        if self.deaths >= MOST_DEATHS or code >= 0:
            raise FdtraceError(
                f"the collector of {self.session.output} ended with {code}",
                why=_last_line(self.log) or "it left no message",
                hint=f"what was recorded is kept: fdtrace recover {self.session.output}",
            )
        self.restarts += 1
        self.deaths += 1
        time.sleep(0.05)
        self._start()
        if self.ending is not None:
            self.end(self.ending)

    def _close(self) -> None:
        self.selector.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # an order that a killed collector has not read
                    pipe.close()

    def end(self, reason: str) -> None:
        """Order the collector to read the rest and make the final file."""
        self.ending = reason
        self.order({"end": reason})

    def order(self, order: dict[str, Any]) -> None:
        """Give the collector an order. If it is killed before it obeys, only the order to end is given again."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it was just killed: `poll` starts another one

    def cancel(self) -> None:
        """End the collector at once. Used if nothing was recorded."""
        self.process.kill()
        self.process.wait()
        self._close()


def _open_log(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")
