"""Looks now and then whether an engine of a flight stands still: requests are there, calls find them, nothing moves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.flight.firing import FiredTrigger, clock
from fdtrace.recorder.flight.flight_plan import SECOND
from fdtrace.recorder.trace.standstill import standstill
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.recorder.trace_paths import identity_of_published

LEAST_NS = 10 * SECOND
"""An engine that stands still for so long hangs. A forward may take seconds when an engine is new."""

QUERY_MEMORY = 1 << 28
"""Bytes that a look may use."""


class StandstillWatch:
    """Watches the published ring. A look costs a few queries. None is made while steps come, nor while nothing comes: a
    standstill shows in calls that find work.

    Args:
        path: the ring.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.every = 5.0
        """Seconds between two looks."""
        self._next_look = 0.0
        self._num_steps = -1
        self._seen: tuple[int, int] | None = None
        """The file of the last look, if a later look at it would find nothing more."""
        self._known: dict[str, int] = {}
        """By engine, since when the standstill lasts that fired last."""

    @property
    def is_settled(self) -> bool:
        """Whether a look would find nothing more: nothing was published since the last one."""
        return self._seen is not None and self._seen == identity_of_published(self.path)

    def look(self, num_steps: int, now: int) -> list[FiredTrigger]:
        """What hangs and has not fired yet.

        Args:
            num_steps: the steps decoded so far.
            now: ns, UTC.
        """
        moves, self._num_steps = num_steps != self._num_steps, num_steps
        if moves or time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + self.every
        if self.is_settled:
            return []
        self._seen, firings = identity_of_published(self.path), []
        try:
            with open_trace(self.path, memory=QUERY_MEMORY) as trace:
                for engine in trace.engines():
                    still, key = standstill(trace, engine), str(engine["engine_id"])
                    if still is None or self._known.get(key) == still.since:
                        continue
                    if now - still.since < LEAST_NS:
                        self._seen = None  # it may last so long yet, without another call
                        continue
                    self._known[key] = still.since
                    why = f"since {clock(still.since)}: {still.because}"
                    firings.append(FiredTrigger("hang", now, engine["engine_id"], why=why))
        except TraceError:
            self._seen = None
            return firings  # it was replaced at that moment: the next look sees it
        return firings

    def state(self) -> dict[str, int]:
        """What a successor needs to go on."""
        return self._known

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self._known = {engine: int(since) for engine, since in state.items()}
