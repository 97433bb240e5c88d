"""Reads a trace for the replay screen, in the screen's background threads; also of a recording in progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import StuckQueryError, TraceError
from fdtrace.recorder.trace.read_tables import ROW, STEP_ROWS
from fdtrace.recorder.trace_paths import identity_of_published

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fdtrace.recorder.step_calls import StepCalls
    from fdtrace.recorder.trace.call_lags import CallLags
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.recorder.trace.standstill import Standstill
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.replayer.model.events import StepRow
    from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
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
"""Most rows of a query on the screen."""
SECONDS = 30.0
"""Most seconds that such a query may take."""


class TraceReader:
    """Reads one engine of a trace. One query runs at a time.

    A recording in progress is published by rename: when the path holds a new file, the reader opens that file. DuckDB
    keeps one instance for each path in a process, so the old file is closed first.
    """

    def __init__(self, path: Path, engine_id: int | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._trace: Trace | None = None
        self._opened_file: tuple[int, int] | None = None
        self._opened_at = 0.0
        self._created: Any = None
        self._lags: tuple[Trace, CallLags | None] | None = None
        with self._lock:
            trace = self._open()
            self.live = self._grows = trace.in_parts
            self.first: Recording = (
                _read(trace.recording(engine_id)) if self.live else trace.recording_on_demand(engine_id)
            )
            self.num_engines = len(trace.engines())
        self.engine_id = self.first.engine.engine_id

    def _open(self) -> Trace:
        from fdtrace.recorder.trace.trace import open_trace

        if self._trace is not None and not self._changed():
            return self._trace
        self._close()
        self._opened_file, self._opened_at = identity_of_published(self.path), time.monotonic()
        trace = self._stack.enter_context(open_trace(self.path))
        created = trace.head["created_at"]
        if self._created not in (None, created):
            self._stack.close()
            raise TraceError(
                f"{self.path} is another recording by now",
                why=f"it began at {created}, the one on the screen at {self._created}",
                hint="leave the screen and open it again",
            )
        self._created, self._trace = created, trace
        return trace

    def _changed(self) -> bool:
        return self._grows and identity_of_published(self.path) not in (None, self._opened_file)

    def _close(self) -> None:
        self._trace = None
        self._stack.close()

    def close(self) -> None:
        """Close the trace, and interrupt a query that is still running."""
        import duckdb

        trace = self._trace
        if trace is not None:
            with suppress(
                duckdb.ConnectionException
            ):  # another thread has just closed it, to open the next file
                trace.tables.interrupt()
        with self._lock:
            self._close()

    @contextmanager
    def _reading(self) -> Iterator[Trace]:
        """The trace, for this thread alone.

        If one in progress cannot be read, it is closed: the next read opens it again. A complete one stays open: its
        recording is read from the same connection.
        """
        from fdtrace.recorder.trace.trace import reading

        with self._lock:
            trace = self._open()
            try:
                with reading(self.path):
                    yield trace
            except TraceError:
                if self._grows:
                    self._close()
                raise

    def _rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._reading() as trace:
            return trace.db.execute(query, [self.engine_id, *parameters]).fetchall()

    def check_step_requests(self) -> None:
        """TraceError if the data that a replay reschedules from contradicts itself."""
        with self._reading() as trace:
            trace.check_step_requests(self.engine_id)

    def rows(self, step: int) -> list[StepRow]:
        """The requests of a step, prefills first."""
        from fdtrace.replayer.model.events import StepRow

        return [StepRow(*row) for row in self._rows(STEP_ROWS, step)]

    def batch_rows(self, recording: Recording) -> BatchRowColumns | None:
        """The requests of every step of a recording. None if there are too many for memory."""
        from fdtrace.library.engine_recording import rows_in_memory

        with self._reading() as trace:
            rows = rows_in_memory(trace.tables, recording)
        return None if rows is None else rows.batches(recording)

    def request_steps(self, request_id: str) -> list[tuple[int, StepRow]]:
        """The steps in which a request ran."""
        from fdtrace.replayer.model.events import StepRow

        return [(row[0], StepRow(*row[1:])) for row in self._rows(REQUEST_STEPS, request_id)]

    def events(self, step: int) -> list[StepEvent]:
        """The events of a step."""
        from fdtrace.tui.sources import StepEvent

        return [StepEvent(*row) for row in self._rows(EVENTS, step)]

    def event_steps(self, kind: str) -> NDArray[np.int64]:
        """The steps with a kind of event, int64, ascending."""
        import numpy as np

        query = "SELECT DISTINCT step FROM event WHERE engine_id = $1 AND kind = $2 AND step IS NOT NULL ORDER BY 1"
        return np.array([row[0] for row in self._rows(query, kind)], np.int64)

    def calls(self, step: int) -> StepCalls | None:
        """The scheduling calls of a step. None if calls and forwards come in pairs."""
        from fdtrace.recorder.step_calls import read_step_calls

        with self._reading() as trace:
            lags = self._lags_of(trace)
            return None if lags is None else read_step_calls(trace.db, self.engine_id, step, lags)

    def lags(self) -> NDArray[np.int64] | None:
        """For each step, how many forwards before it its call had not taken in; None: calls and forwards are pairs."""
        from fdtrace.recorder.step_calls import read_step_lags

        with self._reading() as trace:
            lags = self._lags_of(trace)
            return None if lags is None else read_step_lags(trace.db, self.engine_id, lags)

    def _lags_of(self, trace: Trace) -> CallLags | None:
        """The lags of all calls. They are read once for each opened file."""
        from fdtrace.recorder.step_calls import read_lags

        if self._lags is None or self._lags[0] is not trace:
            self._lags = trace, read_lags(trace.db, self.engine_id)
        return self._lags[1]

    def sql(self, text: str) -> Answer:
        """The rows of a query. UsageError if DuckDB cannot run it, or if it takes too long."""
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
                self._trace, self._stack = None, ExitStack()  # closing the trace would wait for the query
                raise

    def tail(self, step: int) -> NewSteps:
        """The steps recorded after a step, and whether the recording goes on."""
        from fdtrace.recorder.trace.standstill import standstill_of
        from fdtrace.tui.sources import NewSteps

        try:
            with self._reading() as trace:
                live = trace.in_parts
                silent = time.monotonic() - self._opened_at
                standstill = standstill_of(trace, self.engine_id)
                text = standstill.short if standstill is not None else ""
                new_steps = NewSteps(trace.steps_after(self.engine_id, step), live, silent, text)
                self.live = live
        except TraceError:
            self._refuse_a_gone_file()  # it may have been removed while it was read
            raise
        self._refuse_a_gone_file()
        return new_steps

    def _refuse_a_gone_file(self) -> None:
        if identity_of_published(self.path) is None:
            raise TraceError(
                f"{self.path} is gone",
                why="it was removed, or renamed, while it was being recorded",
                hint=f"what was read stays here; if its parts are still there: `fdtrace recover {self.path}`",
            ) from None

    def standstill(self) -> Standstill | None:
        """How the engine stands still at the end of the recording so far; None: it does not."""
        from fdtrace.recorder.trace.standstill import standstill_of

        with self._reading() as trace:
            return standstill_of(trace, self.engine_id)

    def recording(self) -> Recording:
        """The recording so far."""
        with self._lock:
            self._close()
        with self._reading() as trace:
            return _read(trace.recording(self.engine_id))

    def all_recordings(self) -> list[Recording]:
        """The recordings of all engines so far, with the requests of their steps, in memory."""
        from fdtrace.library.engine_recording import recording_with_rows

        with self._reading() as trace:
            numbers = [row["engine_id"] for row in trace.engines()]
            for number in numbers:
                trace.check_step_requests(number)
            return [recording_with_rows(trace.tables, _read(trace.recording(number))) for number in numbers]


def _read(recording: Recording) -> Recording:
    from fdtrace.replayer.config import is_modelled

    return recording.loaded(row_by_row=not is_modelled(recording.engine))
