"""Opens a trace, complete or in progress, and reads it: by SQL, or as one engine's recording in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from fdtrace.recorder.errors import StuckQueryError, TraceError, UsageError
from fdtrace.recorder.trace.check_values import (
    check_engine,
    check_step_requests,
    check_tables,
    trace_problems,
)
from fdtrace.recorder.trace.file import connect, damaged, is_growing
from fdtrace.recorder.trace.notes import read_notes
from fdtrace.recorder.trace.query import refuse_statements, running

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fdtrace.recorder.trace.recording import Recording


class Trace:
    """A trace, open for reading. Use `open_trace`."""

    def __init__(self, path: Path, db: duckdb.DuckDBPyConnection) -> None:
        self.path, self.db = path, db

    @property
    def head(self) -> dict[str, Any]:
        """The row of `trace`."""
        return self.rows("FROM trace")[0]

    @property
    def live(self) -> bool:
        """Whether it is a recording in progress (or one whose collector was killed)."""
        return is_growing(self.db) and self.head["state"] == "recording"

    @property
    def in_parts(self) -> bool:
        """Whether its rows are still in parts: a final file will replace this one, even if recording has ended."""
        return is_growing(self.db)

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query as dictionaries. Raises a TraceError if the file cannot be read."""
        with reading(self.path):
            result = self.db.execute(query, parameters or [])
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def query(self, text: str) -> duckdb.DuckDBPyRelation:
        """The relation of a user's query. Raises a UsageError if it does more than read, or DuckDB cannot run it."""
        refuse_statements(self.db, text)
        with running():
            return self.db.sql(text)

    def notes(self) -> tuple[str, ...]:
        """What the recording could not see, and what the trace itself shows: missing steps or rows, a wrong state."""
        with reading(self.path):
            return read_notes(self.db)

    def problems(self) -> list[str]:
        """What is wrong with its values, one sentence each. A recording with any such problem is not read."""
        with reading(self.path):
            return trace_problems(self.db, self.engines())

    def engines(self) -> list[dict[str, Any]]:
        """The rows of `engine`."""
        return self.rows("FROM engine ORDER BY engine_id")

    def recording(self, engine_id: int | None = None) -> Recording:
        """One engine's recording. Where the trace holds several engines, `engine_id` chooses one; None: the first.

        The recording's details are read from this trace when they are asked for. `Recording.loaded()` reads them all,
        so that the recording outlives the trace.

        Raises:
            TraceError: the trace holds no engine, or holds impossible values; the error names table, column and value.
            UsageError: the trace has no engine `engine_id`.
        """
        from fdtrace.recorder.trace.details import (
            recording_of,
        )
        from fdtrace.recorder.trace.read_tables import engine_info

        row = self.checked_engine(engine_id)
        with reading(self.path):
            return recording_of(self.db, engine_info(row), self.notes())

    def checked_engine(self, engine_id: int | None = None) -> dict[str, Any]:
        """The row of one engine, after a check of all its tables. Arguments and errors as `recording`."""
        engines = self.engines()
        if not engines:
            raise TraceError(f"{self.path} holds no engine", why="no scheduling call was recorded")
        chosen = [row for row in engines if engine_id is None or row["engine_id"] == engine_id]
        if not chosen:
            engine_ids = ", ".join(str(row["engine_id"]) for row in engines)
            raise UsageError(f"there is no engine {engine_id} in {self.path}", hint=f"engines: {engine_ids}")
        row = chosen[0]
        check_engine(self.path, row, engines)
        with reading(self.path):
            check_tables(self.db, self.path, row["engine_id"])
        return row

    def check_step_requests(self, engine_id: int) -> None:
        """Raise a TraceError if the rows of `step_request` contradict the other tables.

        A replay that reschedules these rows checks them first.
        """
        with reading(self.path):
            check_step_requests(self.db, self.path, engine_id)

    def steps_after(self, engine_id: int, step: int) -> dict[str, NDArray[Any]]:
        """The columns of one engine's steps after `step`, as in `Recording.steps`."""
        from fdtrace.recorder.trace.read_tables import Reader

        return Reader(self.db, engine_id).steps(step)

    def close(self) -> None:
        """Close the database."""
        self.db.close()


@contextmanager
def open_trace(path: Path, *, memory: int | None = None, writable: Path | None = None) -> Iterator[Trace]:
    """The trace at `path`, open within the `with` block.

    Args:
        path: the trace's file.
        memory: bytes that its queries may use; None: half of the machine's memory.
        writable: a directory that `COPY … TO` may write to.

    Raises:
        TraceError: the file is no trace, or is damaged; the error says what is wrong and what to do.
    """
    trace = Trace(path, connect(path, memory=memory, writable=writable))
    try:
        yield trace
    except StuckQueryError:
        raise  # closing would wait for the query
    except BaseException:
        trace.close()
        raise
    else:
        trace.close()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors about an unreadable file, and values that Python cannot hold, into a TraceError."""
    try:
        yield
    except (duckdb.Error, ValueError, OverflowError) as error:
        raise damaged(path, error) from None
