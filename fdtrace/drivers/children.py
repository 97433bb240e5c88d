"""Processes of drivers that are kept for the next replay: importing an engine takes longer than most replays."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fdtrace.drivers.child import Child


class Started(NamedTuple):
    """What a driver's process was started with: equal ones can stand for each other."""

    driver: Path
    checkout: Path | None
    python: str
    env: tuple[tuple[str, str], ...]


class Children(AbstractContextManager["Children"]):
    """Starts drivers, and keeps those that have answered to the end. Each serves one replay at a time."""

    def __init__(self) -> None:
        self._idle: dict[Started, list[Child]] = {}
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def child(
        self, driver: Path, checkout: Path | None, python: str, env: Mapping[str, str]
    ) -> Iterator[Child]:
        """A process of a driver, one that served before where there is one. One in whose use something fails ends."""
        started = Started(driver, checkout, python, tuple(sorted(env.items())))
        with self._lock:
            kept = self._idle.get(started)
            found = kept.pop() if kept else None
        child = found or Child(driver, checkout, python, env)
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
        """End all of them."""
        with self._lock:
            self._closed = True
            idle = [child for kept in self._idle.values() for child in kept]
            self._idle.clear()
        for child in idle:
            child.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
