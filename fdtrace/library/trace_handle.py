"""`fdtrace.open`: a trace for programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.library.engine_recording import EngineRecording, recording_with_rows
from fdtrace.recorder.trace.file import connect
from fdtrace.recorder.trace.trace import Trace

if TYPE_CHECKING:
    import duckdb


class TraceHandle(Trace):
    """A trace, open for reading: `fdtrace.open` gives it. Also a context manager, which closes it.

    A trace may come from a stranger. So no view or macro of its file is run, and a query reads only the trace (see
    docs/security.md).
    """

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """The rows of a query on the trace's tables and views, which docs/trace.md lists.

        Args:
            query: one SELECT or FROM; EXPLAIN, DESCRIBE, SHOW, SUMMARIZE and PIVOT too.

        Returns:
            DuckDB's relation, valid while the trace is open: `.df()` (pandas), `.arrow()` (pyarrow), `.pl()`
            (polars), `.fetchall()`, `.fetchnumpy()`. Each shows NULL in its own way: None, NaN, NaT, `<NA>`.

        Raises:
            UsageError: it does more than read, or DuckDB cannot run it.
        """
        return self.query(query)

    def recording(self, engine_id: int | None = None) -> EngineRecording:  # type: ignore[override]
        """One engine's recording: a value that outlives the trace, can be pickled, and goes into `fdtrace.replay`.

        Args:
            engine_id: which engine, if the trace has several; None: the first.

        Returns:
            Its steps, its requests and what happened to them, in memory. From a recording in progress: all so far.

        Raises:
            TraceError: the trace holds no engine, or values that no recording has. It names the table and the column.
            UsageError: there is no such engine.
        """
        from fdtrace.replayer import is_modelled

        recording = super().recording(engine_id)
        number = recording.engine.engine_id
        self.check_step_requests(number)
        loaded = recording.loaded(row_by_row=not is_modelled(recording.engine))
        return EngineRecording(recording_with_rows(self.tables, loaded))

    def __enter__(self) -> TraceHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            engines = self.rows("SELECT count(*) AS n FROM engine")[0]["n"]
            steps = self.rows("SELECT count(*) AS n FROM step")[0]["n"]
        except Exception:
            return f"<Trace {str(self.path)!r}, closed>"
        state = "recording" if self.live else "complete"
        return f"<Trace {str(self.path)!r}: {steps} steps of {engines} engine{'s' * (engines != 1)}, {state}>"


def open_library_trace(path: str | os.PathLike[str], *, memory: int | None = None) -> TraceHandle:
    """Open a trace, complete or being recorded.

    Args:
        path: its file.
        memory: bytes that its queries may use; None: half of the machine's memory.

    Returns:
        The trace; close it, or use it in a `with` statement.

    Raises:
        TraceError: it is no trace, it is damaged, or its tables are not a trace's. It says which, and what to do.
    """
    trace_path = Path(path)
    return TraceHandle(trace_path, connect(trace_path, memory=memory))
