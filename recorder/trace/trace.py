"""Opens a trace, complete or in progress, and reads it: by SQL, or as one engine's recording in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from fdtrace.recorder.errors import StuckQueryError, TraceError, UsageError
from fdtrace.recorder.trace.check_keys import (
    check_references,
    check_step_requests,
    check_tables,
    trace_problems,
)
from fdtrace.recorder.trace.check_values import check_engine
from fdtrace.recorder.trace.file import add_schema_views, connect, damaged, is_growing
from fdtrace.recorder.trace.notes import read_notes
from fdtrace.recorder.trace.query import refuse_statements, running
from fdtrace.recorder.trace.read_step_numbers import read_step_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fdtrace.recorder.trace.column_values import Ints
    from fdtrace.recorder.trace.recording import Recording


class Trace:
    """A trace, open for reading. Use `open_trace`.

    `tables` is its connection, with the schema's tables. `db` is the same one; the views are made when it is asked for,
    unless the connection has its own (`makes_views`).
    """

    def __init__(self, path: Path, tables: duckdb.DuckDBPyConnection, *, makes_views: bool = True) -> None:
        self.path, self.tables = path, tables
        self._lacks_views = makes_views
        self._defining = threading.Lock()

    @property
    def db(self) -> duckdb.DuckDBPyConnection:
        """The connection with the schema's views besides its tables: what users' queries see."""
        with self._defining:
            if self._lacks_views:
                with reading(self.path):
                    add_schema_views(self.tables)
                self._lacks_views = False
        return self.tables

    @property
    def head(self) -> dict[str, Any]:
        """The row of `trace`."""
        return self._rows(self.tables, "FROM trace")[0]

    @property
    def live(self) -> bool:
        """Whether it is a recording in progress (or one whose collector was killed)."""
        return is_growing(self.tables) and self.head["state"] == "recording"

    @property
    def in_parts(self) -> bool:
        """Whether its rows are still in parts: a final file will replace this one, even if recording has ended."""
        return is_growing(self.tables)

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query as dictionaries. Raises a TraceError if the file cannot be read."""
        return self._rows(self.db, query, parameters)

    def _rows(
        self, db: duckdb.DuckDBPyConnection, query: str, parameters: list[Any] | None = None
    ) -> list[dict[str, Any]]:
        with reading(self.path):
            result = db.execute(query, parameters or [])
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
            return read_notes(self.tables)

    def problems(self) -> list[str]:
        """What is wrong with its values, one sentence each. A recording with any such problem is not read."""
        with reading(self.path):
            return trace_problems(self.tables, self.engines())

    def engines(self) -> list[dict[str, Any]]:
        """The rows of `engine`."""
        return self._rows(self.tables, "FROM engine ORDER BY engine_id")

    def recording(self, engine_id: int | None = None) -> Recording:
        """One engine's recording. Where the trace holds several engines, `engine_id` chooses one; None: the first.

        The recording's details are read from this trace when they are asked for. `Recording.loaded()` reads them all,
        so that the recording outlives the trace.

        Raises:
            TraceError: the trace holds no engine, or holds impossible values; the error names table, column and value.
            UsageError: the trace has no engine `engine_id`.
        """
        from fdtrace.recorder.trace.details import recording_of
        from fdtrace.recorder.trace.read_tables import engine_info

        row = self.checked_engine(engine_id)
        with reading(self.path):
            return recording_of(self.tables, engine_info(row), self.notes())

    def recording_on_demand(self, engine_id: int | None = None) -> Recording:
        """The same of a complete trace, with columns that are read when they are asked for, and without notes.

        A recording of ten million steps is opened in a fraction of a second. Its steps are checked at once. What refers
        to requests is checked before it is used: it may raise a TraceError then.
        """
        from fdtrace.recorder.trace.details import cursor_of, recording_on_demand
        from fdtrace.recorder.trace.read_tables import engine_info

        row, numbers = self._engine_with_steps(engine_id)

        def check() -> None:
            with cursor_of(self.tables) as cursor, reading(self.path):
                check_references(cursor, self.path, row["engine_id"])

        return recording_on_demand(self.tables, engine_info(row), numbers, check)

    def checked_engine(self, engine_id: int | None = None) -> dict[str, Any]:
        """The row of one engine, after a check of all its tables. Arguments and errors as `recording`."""
        row, _ = self._engine_with_steps(engine_id)
        with reading(self.path):
            check_references(self.tables, self.path, row["engine_id"])
        return row

    def _engine_with_steps(self, engine_id: int | None) -> tuple[dict[str, Any], Ints]:
        """The row of one engine and the numbers of its steps, after the checks that are cheap."""
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
            numbers = read_step_numbers(self.tables, row["engine_id"])
            check_tables(self.tables, self.path, row["engine_id"], numbers)
        return row, numbers

    def check_step_requests(self, engine_id: int) -> None:
        """Raise a TraceError if the rows of `step_request` contradict the other tables.

        A replay that reschedules these rows checks them first.
        """
        with reading(self.path):
            check_step_requests(self.tables, self.path, engine_id)

    def steps_after(self, engine_id: int, step: int) -> dict[str, NDArray[Any]]:
        """The columns of one engine's steps after `step`, as in `Recording.steps`."""
        from fdtrace.recorder.trace.read_tables import Reader

        return Reader(self.tables, engine_id).steps(step)

    def close(self) -> None:
        """Close the database."""
        self.tables.close()


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
