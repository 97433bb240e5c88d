"""Opens a trace, recorded or still recording, and reads it: SQL, and one engine's recording in memory."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from numpy.typing import NDArray

from fdtrace.recorder import schema
from fdtrace.recorder.details import recording_of
from fdtrace.recorder.errors import TraceError, UsageError
from fdtrace.recorder.loading import Reader, engine_info
from fdtrace.recorder.recording import Recording
from fdtrace.recorder.session import parts_directory
from fdtrace.recorder.sql import quoted

DUCKDB_MAGIC = (8, b"DUCK")


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
        return bool(self.head["state"] == "recording")

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query as dictionaries."""
        found = self.db.execute(query, parameters or [])
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def query(self, text: str) -> duckdb.DuckDBPyRelation:
        """A user's query. UsageError where DuckDB cannot run it."""
        try:
            relation = self.db.sql(text)
        except duckdb.Error as error:
            raise UsageError("that query cannot be run", why=str(error), hint=_tables_hint()) from None
        if relation is None:
            raise UsageError(
                "that query returns nothing", hint="a trace is read-only: ask with SELECT or FROM"
            )
        return relation

    def engines(self) -> list[dict[str, Any]]:
        """The rows of `engine`."""
        return self.rows("FROM engine ORDER BY engine_id")

    def recording(self, engine_id: int | None = None) -> Recording:
        """One engine's recording; of a trace of several, `engine_id` says which.

        Its details are read when they are asked for; with `loaded()` it outlives this trace.
        """
        engines = self.engines()
        if not engines:
            raise TraceError(f"{self.path} holds no engine", why="no scheduling call was recorded")
        chosen = [row for row in engines if engine_id is None or row["engine_id"] == engine_id]
        if not chosen:
            known = ", ".join(str(row["engine_id"]) for row in engines)
            raise UsageError(f"there is no engine {engine_id} in {self.path}", hint=f"engines: {known}")
        row = chosen[0]
        notes = tuple(json.loads(self.head["notes"] or "[]"))
        return recording_of(self.db, engine_info(row), notes)

    def steps_after(self, engine_id: int, step: int) -> dict[str, NDArray[Any]]:
        """The columns of one engine's steps after a step, as in `Recording.steps`."""
        return Reader(self.db, engine_id).steps(step)

    def close(self) -> None:
        """Close the database."""
        self.db.close()


def _tables_hint() -> str:
    names = [table.name for table in schema.TABLES] + [view.name for view in schema.VIEWS]
    return "tables and views: " + ", ".join(names)


@contextmanager
def open_trace(path: Path) -> Iterator[Trace]:
    """The trace at `path`. TraceError says what is wrong with a file that is none, and what to do."""
    trace = Trace(path, _connect(path))
    try:
        yield trace
    finally:
        trace.close()


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    if not path.exists():
        if parts_directory(path).is_dir():
            raise TraceError(
                f"{path} is not there, but its parts are",
                why="its recording was cut off",
                hint=f"fdtrace recover {path}",
            )
        raise TraceError(
            f"there is no file {path}", hint="`fdtrace record` and `fdtrace attach` make one with -o"
        )
    if path.is_dir():
        raise TraceError(f"{path} is a directory", hint="give the trace's file")
    offset, magic = DUCKDB_MAGIC
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise TraceError(f"{path} cannot be read", why=str(error)) from None
    if head[offset : offset + len(magic)] != magic:
        raise TraceError(f"{path} is no trace", why="it is not a DuckDB file")
    try:
        db = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        raise TraceError(
            f"{path} cannot be opened",
            why=_first_line(error),
            hint=f"if its recording was cut off: fdtrace recover {path}; a truncated copy has to be copied again",
        ) from None
    try:
        _check(path, db)
    except BaseException:
        db.close()
        raise
    return db


def _check(path: Path, db: duckdb.DuckDBPyConnection) -> None:
    try:
        found = db.execute("SELECT schema_version, fdtrace_version FROM trace").fetchall()
        db.execute("SELECT count(*) FROM step").fetchall()
    except duckdb.CatalogException:
        raise TraceError(f"{path} is no trace", why="it is a DuckDB file, but not of fdtrace") from None
    except duckdb.Error as error:
        raise TraceError(
            f"{path} is damaged",
            why=_first_line(error),
            hint="copy it again, or `fdtrace recover` it where it was made",
        ) from None
    if not found:
        raise TraceError(f"{path} is no trace", why="its table `trace` is empty")
    version, fdtrace_version = found[0]
    if version > schema.SCHEMA_VERSION:
        raise TraceError(
            f"{path} was recorded by fdtrace {fdtrace_version}",
            why=f"its schema is version {version}, this fdtrace reads up to {schema.SCHEMA_VERSION}",
            hint="pip install -U fdtrace",
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def running() -> Iterator[None]:
    """Turns what DuckDB says while a query runs into a UsageError."""
    try:
        yield
    except duckdb.Error as error:
        raise UsageError("that query failed", why=str(error), hint=_tables_hint()) from None


def write_relation(relation: duckdb.DuckDBPyRelation, kind: str, out: Path | None) -> None:
    """Write a query's rows as `csv`, `json` (a line a row) or `parquet`, to a file or to stdout."""
    options = {"csv": "(FORMAT csv, HEADER)", "json": "(FORMAT json)", "parquet": "(FORMAT parquet)"}[kind]
    with tempfile.TemporaryDirectory() as directory, running():
        target = out if out is not None else Path(directory) / "rows"
        relation.query("rows_to_write", f"COPY rows_to_write TO '{quoted(target)}' {options}")
        if out is None:
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
