"""Runs `finish_keep` in processes of their own, one after the other: the ring must be read meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import duckdb

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.flight.finish_keep import finish_keep
from fdtrace.recorder.flight.flight_directory import FlightDirectory
from fdtrace.recorder.supervise import COLLECT, ROOT

MODULE = "fdtrace.recorder.flight.finish_keep"

PATIENCE = 300.0
"""Seconds for which a trace that another process makes is waited for in the end."""

AGAIN = 30.0
"""Seconds until a spool is tried again that could not be finished: the disk may have room by then."""


class KeepFinisher:
    """Makes traces of the spools of a directory. `poll` it often."""

    def __init__(self, directory: FlightDirectory) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self._spool: Path | None = None
        self._not_before: dict[str, float] = {}

    def poll(self) -> Path | None:
        """Start with the next spool, if none is being finished. Returns the kept trace that was just finished."""
        finished = self._ended()
        if self.process is None:
            now = time.monotonic()
            spools = self.directory.spools
            ready = [spool for spool in spools if self._not_before.get(spool.name, 0.0) <= now]
            if ready:
                self._start(ready[0])
        return finished

    def _ended(self) -> Path | None:
        if self.process is None or self.process.poll() is None:
            return None
        spool, self.process = self._spool, None
        assert spool is not None
        if spool.exists():  # it failed, was killed, or another process finishes it
            self._not_before[spool.name] = time.monotonic() + AGAIN
            return None
        return self.directory.kept_of(spool)

    def _start(self, spool: Path) -> None:
        command = [sys.executable, "-c", COLLECT, str(ROOT), MODULE, str(spool)]
        self._spool = spool
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def finish_all(self) -> tuple[list[Path], list[str]]:
        """Finish all spools here and now. Returns the kept traces, and for each failure what went wrong."""
        kept, problems = [], []
        if self.process is not None:
            self.process.wait()
            if (finished := self._ended()) is not None:
                kept.append(finished)
        for spool in self.directory.spools:
            try:
                if (finished := self._finished(spool)) is not None:
                    kept.append(finished)
                else:
                    problems.append(f"{spool} is not a trace yet: another process still makes it")
            except (OSError, duckdb.Error, FdtraceError) as error:
                problems.append(f"{spool} is not a trace yet ({error}): `fdtrace recover` tries it again")
        return kept, problems

    def _finished(self, spool: Path) -> Path | None:
        """The trace of a spool. If a process of a killed collector makes it, it is waited for; None: for too long."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                if (finished := finish_keep(spool)) is not None:
                    return finished
            except FileNotFoundError:
                if not spool.exists():  # the other process has just finished it
                    return self.directory.kept_of(spool)
                raise
            time.sleep(0.05)
        return None
