"""What the replay screen asks a trace for, from its worker threads; of a recording in progress too."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import TraceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fdtrace.recorder.loading import TraceRecording
    from fdtrace.recorder.recording import Recording
    from fdtrace.recorder.trace import Trace
    from fdtrace.replayer.model.events import StepRow
    from fdtrace.tui.sources import Answer, StepEvent, Tail

ROW = """
q.kind, q.num_tokens, q.num_computed_tokens, coalesce(q.num_draft_tokens, 0),
coalesce(q.num_accepted_tokens, 0), q.num_blocks
"""

ROWS = f"""
SELECT r.request_id, {ROW} FROM step_request q JOIN request r USING (engine_id, request)
WHERE q.engine_id = $1 AND q.step = $2 ORDER BY q.kind DESC, q.request
"""

REQUEST_STEPS = f"""
SELECT q.step, r.request_id, {ROW} FROM step_request q JOIN request r USING (engine_id, request)
WHERE q.engine_id = $1 AND r.request_id = $2 ORDER BY q.step
"""

EVENTS = """
SELECT v.kind, coalesce(r.request_id, ''), coalesce(v.reason, ''), coalesce(v.detail, '')
FROM event v LEFT JOIN request r USING (engine_id, request)
WHERE v.engine_id = $1 AND v.step = $2 ORDER BY v.ts
"""

MOST_ROWS = 10_000
"""Rows of a query on the screen at most."""


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
        with self._lock:
            trace = self._open()
            self.live = trace.live
            recording = trace.recording(engine_id)
            self.first: Recording = _read(recording) if self.live else recording
        self.engine_id = recording.engine.engine_id

    def _open(self) -> Trace:
        from fdtrace.recorder.trace import open_trace

        if self._trace is not None and not self._changed():
            return self._trace
        self._close()
        self._seen = self._identity()
        self._trace = self._stack.enter_context(open_trace(self.path))
        return self._trace

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _changed(self) -> bool:
        return self.live and self._identity() not in (None, self._seen)

    def _close(self) -> None:
        self._trace = None
        self._stack.close()

    def close(self) -> None:
        """Close the trace."""
        with self._lock:
            self._close()

    def _rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        import duckdb

        with self._lock:
            trace = self._open()
            try:
                return trace.db.execute(query, [self.engine_id, *parameters]).fetchall()
            except duckdb.Error as error:
                self._close()
                raise TraceError(f"{self.path} cannot be read", why=str(error).splitlines()[0]) from None

    def rows(self, step: int) -> list[StepRow]:
        """The requests of a step, prefills first."""
        from fdtrace.replayer.model.events import StepRow

        return [StepRow(*row) for row in self._rows(ROWS, step)]

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
        """A query's rows. UsageError where DuckDB cannot run it."""
        from fdtrace.recorder.trace import running
        from fdtrace.tui.sources import Answer

        if not text.strip():
            raise UsageError("there is no query", hint="such as FROM exceeded")
        with self._lock, running():
            relation = self._open().query(text)
            rows = relation.limit(MOST_ROWS + 1).fetchall()
            columns = tuple(relation.columns)
        return Answer(columns, rows[:MOST_ROWS], len(rows) > MOST_ROWS)

    def tail(self, step: int) -> Tail:
        """The steps recorded after a step, and whether the recording goes on."""
        import duckdb

        from fdtrace.tui.sources import Tail

        with self._lock:
            trace = self._open()
            try:
                live = trace.live
                found = Tail(trace.steps_after(self.engine_id, step), live)
            except duckdb.Error as error:
                self._close()
                raise TraceError(f"{self.path} cannot be read", why=str(error).splitlines()[0]) from None
            self.live = live
        return found

    def recording(self) -> Recording:
        """The recording as it stands."""
        import duckdb

        with self._lock:
            self._close()
            try:
                return _read(self._open().recording(self.engine_id))
            except duckdb.Error as error:
                self._close()
                raise TraceError(f"{self.path} cannot be read", why=str(error).splitlines()[0]) from None


def _read(recording: TraceRecording) -> Recording:
    from fdtrace.replayer.config import is_modelled

    return recording.read_now(row_by_row=not is_modelled(recording.engine))
