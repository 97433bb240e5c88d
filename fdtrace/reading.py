"""What the replay screen asks a trace for, from its worker threads; of a recording in progress too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import StuckQueryError, TraceError
from fdtrace.recorder.trace.loading import ROW, STEP_ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.recorder.trace.standstill import Standstill
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.replayer.model.events import StepRow
    from fdtrace.tui.sources import Answer, NewSteps, StepEvent

REQUEST_STEPS = f"""
SELECT q.step, coalesce(r.request_id, ''), {ROW} FROM step_request q JOIN request r USING (engine_id, request)
WHERE q.engine_id = $1 AND r.request_id = $2 ORDER BY q.step
"""

EVENTS = """
SELECT coalesce(v.kind, ''), coalesce(r.request_id, ''), coalesce(v.reason, ''), coalesce(v.detail, '')
FROM event v LEFT JOIN request r USING (engine_id, request)
WHERE v.engine_id = $1 AND v.step = $2 ORDER BY v.ts
"""

MOST_ROWS = 10_000
"""Rows of a query on the screen at most."""
SECONDS = 30.0
"""That such a query may take."""


class TraceReader:
    """Reads one engine of a trace. One query runs at a time.

    A recording in progress is published by rename: where the file at the path has become another one, that is
    opened. DuckDB keeps one instance a path in a process, so the old one is closed before.
    """

    def __init__(self, path: Path, engine_id: int | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._trace: Trace | None = None
        self._seen: tuple[int, int] | None = None
        self._seen_at = 0.0
        self._created: Any = None
        with self._lock:
            trace = self._open()
            self.live = self._grows = trace.in_parts
            recording = trace.recording(engine_id)
            self.first: Recording = _read(recording) if self.live else recording
        self.engine_id = recording.engine.engine_id

    def _open(self) -> Trace:
        from fdtrace.recorder.trace.trace import open_trace

        if self._trace is not None and not self._changed():
            return self._trace
        self._close()
        self._seen, self._seen_at = self._identity(), time.monotonic()
        trace = self._stack.enter_context(open_trace(self.path))
        created = trace.head["created_at"]
        if self._created not in (None, created):
            self._stack.close()
            raise TraceError(
                f"{self.path} is another recording by now",
                why=f"it began at {created}, the one on the screen at {self._created}",
                hint="open it anew",
            )
        self._created, self._trace = created, trace
        return trace

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _changed(self) -> bool:
        return self._grows and self._identity() not in (None, self._seen)

    def _close(self) -> None:
        self._trace = None
        self._stack.close()

    def close(self) -> None:
        """Close the trace; a query that still runs is interrupted."""
        import duckdb

        trace = self._trace
        if trace is not None:
            with suppress(duckdb.ConnectionException):  # it has just been closed, to open the next state
                trace.db.interrupt()
        with self._lock:
            self._close()

    @contextmanager
    def _reading(self) -> Iterator[Trace]:
        """The trace, to this thread alone; closed where it cannot be read, so that the next look opens it anew."""
        from fdtrace.recorder.trace.trace import reading

        with self._lock:
            trace = self._open()
            try:
                with reading(self.path):
                    yield trace
            except TraceError:
                self._close()
                raise

    def _rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._reading() as trace:
            return trace.db.execute(query, [self.engine_id, *parameters]).fetchall()

    def check_step_requests(self) -> None:
        """TraceError where what a replay reschedules from contradicts itself."""
        with self._reading() as trace:
            trace.check_step_requests(self.engine_id)

    def rows(self, step: int) -> list[StepRow]:
        """The requests of a step, prefills first."""
        from fdtrace.replayer.model.events import StepRow

        return [StepRow(*row) for row in self._rows(STEP_ROWS, step)]

    def request_steps(self, request_id: str) -> list[tuple[int, StepRow]]:
        """The steps in which a request ran."""
        from fdtrace.replayer.model.events import StepRow

        return [(row[0], StepRow(*row[1:])) for row in self._rows(REQUEST_STEPS, request_id)]

    def events(self, step: int) -> list[StepEvent]:
        """The events of a step."""
        from fdtrace.tui.sources import StepEvent

        return [StepEvent(*row) for row in self._rows(EVENTS, step)]

    def event_steps(self, kind: str) -> NDArray[np.int64]:
        """The steps with an event of a kind."""
        import numpy as np

        query = "SELECT DISTINCT step FROM event WHERE engine_id = $1 AND kind = $2 AND step IS NOT NULL ORDER BY 1"
        return np.array([row[0] for row in self._rows(query, kind)], np.int64)

    def sql(self, text: str) -> Answer:
        """A query's rows. UsageError where DuckDB cannot run it, or where it takes too long."""
        from fdtrace.recorder.trace.query import Limits, bounded, running
        from fdtrace.tui.sources import Answer

        with self._lock:
            trace = self._open()

            def ask() -> Answer:
                relation = trace.query(text)
                with running():
                    rows = relation.limit(MOST_ROWS + 1).fetchall()
                    return Answer(tuple(relation.columns), rows[:MOST_ROWS], len(rows) > MOST_ROWS)

            try:
                return bounded(trace.db, ask, Limits(SECONDS))
            except StuckQueryError:
                self._trace, self._stack = None, ExitStack()  # to close it would wait for the query
                raise

    def tail(self, step: int) -> NewSteps:
        """The steps recorded after a step, and whether the recording goes on."""
        from fdtrace.recorder.trace.standstill import standstill_of
        from fdtrace.tui.sources import NewSteps

        if self._identity() is None:
            raise TraceError(
                f"{self.path} is gone",
                why="it was removed, or renamed, while it was being recorded",
                hint=f"what was read stays here; `fdtrace recover {self.path}` where its parts are still there",
            )
        with self._reading() as trace:
            live = trace.in_parts
            silent = time.monotonic() - self._seen_at
            still = standstill_of(trace, self.engine_id)
            text = still.short if still is not None else ""
            found = NewSteps(trace.steps_after(self.engine_id, step), live, silent, text)
            self.live = live
        return found

    def standstill(self) -> Standstill | None:
        """How the engine stands still at the end of what is recorded."""
        from fdtrace.recorder.trace.standstill import standstill_of

        with self._reading() as trace:
            return standstill_of(trace, self.engine_id)

    def recording(self) -> Recording:
        """The recording as it stands."""
        with self._lock:
            self._close()
        with self._reading() as trace:
            return _read(trace.recording(self.engine_id))


def _read(recording: Recording) -> Recording:
    from fdtrace.replayer.config import is_modelled

    return recording.loaded(row_by_row=not is_modelled(recording.engine))
