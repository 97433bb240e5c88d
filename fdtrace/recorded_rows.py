"""The requests of the steps of a complete trace."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.replayer.model.events import StepRow
    from fdtrace.replayer.recorded.batch_rows import BatchRowColumns


class RecordedRows:
    """Reads the requests of a recorded step of a complete trace. Each thread has its own cursor."""

    def __init__(self, trace: Trace, engine_id: int) -> None:
        self.trace, self.engine_id = trace, engine_id
        self._local = threading.local()

    def __call__(self, step: int) -> list[StepRow]:
        """The rows of a step, prefills first."""
        from fdtrace.recorder.trace.read_tables import STEP_ROWS
        from fdtrace.recorder.trace.trace import reading
        from fdtrace.replayer.model.events import StepRow

        cursor: duckdb.DuckDBPyConnection | None = getattr(self._local, "cursor", None)
        if cursor is None:
            cursor = self._local.cursor = self.trace.tables.cursor()
        with reading(self.trace.path):
            return [StepRow(*row) for row in cursor.execute(STEP_ROWS, [self.engine_id, step]).fetchall()]

    def batch_rows(self, recording: Recording) -> BatchRowColumns | None:
        """The requests of every step. None if there are too many for memory."""
        from fdtrace.library.engine_recording import rows_in_memory
        from fdtrace.recorder.trace.trace import reading

        with reading(self.trace.path):
            rows = rows_in_memory(self.trace.tables.cursor(), recording)
        return None if rows is None else rows.batches(recording)

    def check(self) -> None:
        """TraceError if the data that a replay reschedules from contradicts itself."""
        self.trace.check_step_requests(self.engine_id)
