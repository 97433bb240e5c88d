"""Opens a trace, recorded or still recording, and reads it: SQL, and one engine's recording in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from numpy.typing import NDArray

from fdtrace.recorder.errors import StuckQueryError, TraceError, UsageError
from fdtrace.recorder.trace.details import recording_of
from fdtrace.recorder.trace.file import connect, damaged, is_growing
from fdtrace.recorder.trace.loading import Reader, engine_info
from fdtrace.recorder.trace.notes import read_notes
from fdtrace.recorder.trace.query import refuse_statements, running
from fdtrace.recorder.trace.recording import Recording
from fdtrace.recorder.trace.values import check_engine, check_step_requests, check_tables, trace_problems


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
        """Whether another file is still to take its place, as the final one does also of a complete recording."""
        return is_growing(self.db)

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query as dictionaries. TraceError where the file cannot give them."""
        with reading(self.path):
            found = self.db.execute(query, parameters or [])
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def query(self, text: str) -> duckdb.DuckDBPyRelation:
        """A user's query. UsageError where it is more than a question, or DuckDB cannot run it."""
        refuse_statements(self.db, text)
        with running():
            return self.db.sql(text)

    def notes(self) -> tuple[str, ...]:
        """What the recording could not see, and what a look at the trace shows: missing steps, rows, states."""
        with reading(self.path):
            return read_notes(self.db)

    def problems(self) -> list[str]:
        """What is wrong with its values, a sentence each; a recording with any of these is not read."""
        with reading(self.path):
            return trace_problems(self.db, self.engines())

    def engines(self) -> list[dict[str, Any]]:
        """The rows of `engine`."""
        return self.rows("FROM engine ORDER BY engine_id")

    def recording(self, engine_id: int | None = None) -> Recording:
        """One engine's recording; of a trace of several, `engine_id` says which.

        Its details are read when they are asked for; with `loaded()` it outlives this trace.

        Raises:
            TraceError: the trace holds no engine, or values that no recording has: names table, column and value.
            UsageError: there is no such engine.
        """
        engines = self.engines()
        if not engines:
            raise TraceError(f"{self.path} holds no engine", why="no scheduling call was recorded")
        chosen = [row for row in engines if engine_id is None or row["engine_id"] == engine_id]
        if not chosen:
            known = ", ".join(str(row["engine_id"]) for row in engines)
            raise UsageError(f"there is no engine {engine_id} in {self.path}", hint=f"engines: {known}")
        row = chosen[0]
        check_engine(self.path, row, engines)
        with reading(self.path):
            check_tables(self.db, self.path, row["engine_id"])
            return recording_of(self.db, engine_info(row), self.notes())

    def check_step_requests(self, engine_id: int) -> None:
        """TraceError where the rows of `step_request` contradict the rest; for a replay that reschedules them."""
        with reading(self.path):
            check_step_requests(self.db, self.path, engine_id)

    def steps_after(self, engine_id: int, step: int) -> dict[str, NDArray[Any]]:
        """The columns of one engine's steps after a step, as in `Recording.steps`."""
        return Reader(self.db, engine_id).steps(step)

    def close(self) -> None:
        """Close the database."""
        self.db.close()


@contextmanager
def open_trace(path: Path, *, memory: int | None = None, writable: Path | None = None) -> Iterator[Trace]:
    """The trace at `path`. TraceError says what is wrong with a file that is none, and what to do.

    `memory`: bytes that its queries may use (None: half of the machine's); `writable`: a directory that `COPY … TO`
    may write to.
    """
    trace = Trace(path, connect(path, memory=memory, writable=writable))
    try:
        yield trace
    except StuckQueryError:
        raise  # to close would wait for the query
    except BaseException:
        trace.close()
        raise
    else:
        trace.close()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what DuckDB says of a file that it cannot read, and values that Python cannot take, into a TraceError."""
    try:
        yield
    except (duckdb.Error, ValueError, OverflowError) as error:
        raise damaged(path, error) from None
