"""A real recording in progress, for the tests of the screen."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.recorder.helpers import ENGINE, query


class Recorded:
    """A played engine under `fdtrace record`: three processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        command = ["record", "-o", str(path), "--", sys.executable, str(ENGINE), "--sleep", "0.01"]
        self.said = path.with_suffix(".err").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fdtrace", *command], stdout=subprocess.DEVNULL, stderr=self.said
        )
        for _ in range(1200):
            with contextlib.suppress(Exception):  # it is not there yet
                if self.num_steps() >= 50:
                    break
            assert self.process.poll() is None, self.err
            time.sleep(0.1)
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.engine, self.collector = (
            next(process for process in below if any(word in part for part in process.cmdline()))
            for word in ("engine.py", "fdtrace.recorder.collector")
        )

    def num_steps(self) -> int:
        """Steps that are published."""
        return int(query(self.path, "SELECT count(*) FROM step")[0][0])

    @property
    def err(self) -> str:
        """What it said."""
        return Path(self.said.name).read_text()

    def close(self) -> None:
        """End what is left of it."""
        for process in (self.process, self.engine, self.collector):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.said.close()
