"""The process in which an engine's real scheduler runs, and the messages to and from it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import TargetError, UsageError

WAIT = 10.0
"""Seconds that the process has to end by itself."""
PATIENCE = 300.0
"""Seconds for one answer. The first answer imports the engine."""
LAST_LINES = 3
"""Lines of its output that are shown if it dies."""


class DriverProcess(AbstractContextManager["DriverProcess"]):
    """A driver's process. Messages and answers are JSON objects, one a line.

    It runs in an empty directory of its own, where the engine's logs go too. The directory is removed with it.
    """

    def __init__(self, driver: Path, checkout: Path | None, python: str, env: Mapping[str, str]) -> None:
        """`checkout` comes first in its `sys.path`; None: the engine is installed in that Python."""
        self.label, self.python = str(checkout or f"the {driver.stem} of {python}"), python
        self._directory = Path(tempfile.mkdtemp(prefix="fdtrace-driver-"))
        self._printed = (self._directory / "printed").open("wb")
        logs = {"FD_LOG_DIR": str(self._directory / "log"), "PYTHONSAFEPATH": ""}
        path_arguments = [] if checkout is None else [str(checkout.resolve())]
        if os.path.dirname(python):
            # The process has another directory. A link is not resolved: it says which virtual environment is meant.
            python = os.path.abspath(python)
        try:
            self._process = subprocess.Popen(
                [python, "-u", str(driver), *path_arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                cwd=self._directory,
                env={**os.environ, **env, **logs, "CUDA_VISIBLE_DEVICES": ""},
                text=True,
                encoding="utf-8",
                start_new_session=True,  # we handle Ctrl-C, not the child
            )
        except OSError as error:
            self._remove()
            raise UsageError(
                f"{python} cannot be started",
                why=error.strerror or str(error),
                hint="--scheduler-python PATH",
            ) from None

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and return the answer. TargetError if the process has died."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line: str | None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            ready = select.select([process.stdout], [], [], PATIENCE)[0]
            line = process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = ""
        if line is None:
            raise TargetError(
                f"the scheduler of {self.label} has not answered for {PATIENCE:.0f} seconds",
                why="a call of it does not return",
            )
        if not line:
            code = process.wait()
            raise TargetError(
                f"the scheduler of {self.label} ended in the middle of a replay (exit status {code})",
                why=self._last_lines(),
                hint=f"run by {self.python}; another one with --scheduler-python",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_lines(self) -> str:
        self._printed.flush()
        text = (self._directory / "printed").read_text(errors="replace").strip()
        return "\n    ".join(text.splitlines()[-LAST_LINES:])

    def close(self) -> None:
        """End the process, and remove its directory."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._remove()

    def _remove(self) -> None:
        self._printed.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        self.close()
