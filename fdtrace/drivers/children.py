"""Keeps processes of drivers for the next replay: importing an engine takes longer than most replays."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from fdtrace.drivers.child import DriverProcess


class ChildStart(NamedTuple):
    """How a driver's process was started. Processes that were started equally can replace each other."""

    driver: Path
    checkout: Path | None
    python: str
    env: tuple[tuple[str, str], ...]


class DriverPool(AbstractContextManager["DriverPool"]):
    """Starts drivers, and keeps each whose replay came to its end. A driver serves one replay at a time."""

    def __init__(self) -> None:
        self._idle: dict[ChildStart, list[DriverProcess]] = {}
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def child(
        self, driver: Path, checkout: Path | None, python: str, env: Mapping[str, str]
    ) -> Iterator[DriverProcess]:
        """A driver's process: an idle one if there is one, else a new one. If its use fails, the process is ended."""
        started = ChildStart(driver, checkout, python, tuple(sorted(env.items())))
        with self._lock:
            idle = self._idle.get(started)
            reused = idle.pop() if idle else None
        child = reused or DriverProcess(driver, checkout, python, env)
        try:
            yield child
        except BaseException:
            child.close()
            raise
        with self._lock:
            if not self._closed:
                self._idle.setdefault(started, []).append(child)
                return
        child.close()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            idle = [child for children in self._idle.values() for child in children]
            self._idle.clear()
        for child in idle:
            child.close()

    def __exit__(self, *_: object) -> None:
        self.close()
