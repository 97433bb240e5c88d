"""Runs a user's query on a trace. It may only read; time and memory are limited, and Ctrl-C interrupts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import StuckQueryError, UsageError
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.file import MEMORY_SHARE, machine_memory

Result = TypeVar("Result")

QUESTIONS = {"SELECT", "EXPLAIN", "MULTI"}
"""Kinds of statements that only read; MULTI is a PIVOT."""
PIVOT_BEFORE_2 = ["CREATE", "SELECT"]
"""The statements into which DuckDB 1.5 splits a PIVOT."""

PAUSE = 0.05
"""Seconds between two checks of a running query."""
PATIENCE = 2.0
"""Seconds to wait until an interrupted query ends. DuckDB checks for an interruption after each vector of 2,048 values.
A function that builds a text of gigabytes does not check."""
ROOM = 1 << 29
"""Bytes that the process may use beyond the queries' memory limit: DuckDB does not count the memory of texts."""


@dataclass(frozen=True)
class Limits:
    """What a query may use: seconds (None: no limit), and bytes of memory (None: half of the machine's)."""

    seconds: float | None = 120.0
    memory: int | None = None

    @property
    def bytes_allowed(self) -> int:
        """Its memory, in bytes."""
        return self.memory or int(machine_memory() * MEMORY_SHARE)


def tables_hint() -> str:
    """What a query may name."""
    names = [table.name for table in schema.TABLES] + [view.name for view in schema.VIEWS]
    return "tables and views: " + ", ".join(names)


@contextmanager
def running() -> Iterator[None]:
    """While a user's query runs, turn DuckDB's errors, and values that Python cannot hold, into a UsageError."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        hint = "select less, or give it more: `fdtrace sql --memory`"
        raise UsageError("that query needs more memory than it may use", why=str(error), hint=hint) from None
    except duckdb.PermissionException as error:
        raise UsageError(
            "that query asks for more than a trace",
            why=str(error),
            hint="a query reads the trace alone: no file, no network, no setting; `--out` writes its rows",
        ) from None
    except (duckdb.Error, ValueError, OverflowError) as error:
        raise UsageError("that query failed", why=str(error), hint=tables_hint()) from None


def refuse_statements(db: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raise a UsageError unless `text` is one statement that only reads."""
    with running():
        kinds = [statement.type.name for statement in db.extract_statements(text)]
    if not kinds:
        raise UsageError("there is no query", hint="such as FROM exceeded")
    if kinds == PIVOT_BEFORE_2:
        return
    if len(kinds) > 1:
        raise UsageError("that is more than one statement", hint="ask one question at a time")
    if kinds[0] not in QUESTIONS:
        raise UsageError(
            f"{kinds[0].replace('_', ' ')} is refused",
            why="a trace is only read",
            hint="ask with SELECT or FROM; `fdtrace sql --format parquet --out FILE` writes rows",
        )


def bounded(db: duckdb.DuckDBPyConnection, job: Callable[[], Result], limits: Limits) -> Result:
    """The result of `job`, a query on `db`. It runs in a thread of its own, so that the caller can give it up.

    Raises:
        UsageError: the query took longer or needed more memory than `limits` allow, and was interrupted.
        StuckQueryError: the query went past the limits and still runs after the interruption.
        KeyboardInterrupt: Ctrl-C, raised as soon as the query has ended.
    """
    query = _Query(job)
    begun, memory = time.monotonic(), _memory_used() + limits.bytes_allowed + ROOM
    try:
        while not query.ended.wait(PAUSE):
            if limits.seconds is not None and time.monotonic() - begun > limits.seconds:
                message = f"that query took longer than {limits.seconds:g} s"
                hint = "`fdtrace sql --timeout S` gives it more; 0 sets no limit"
                raise _given_up(db, query, UsageError(message, hint=hint))
            if _memory_used() > memory:
                message = f"that query needs more memory than {limits.bytes_allowed / 2**30:.1f} GiB"
                hint = "select less, or give it more: `fdtrace sql --memory`"
                raise _given_up(db, query, UsageError(message, hint=hint))
    except KeyboardInterrupt:
        given_up = _given_up(db, query, UsageError("interrupted"))
        if isinstance(given_up, StuckQueryError):
            raise given_up from None
        raise
    return query.result()


class _Query(Generic[Result]):
    """A job in a thread of its own."""

    def __init__(self, job: Callable[[], Result]) -> None:
        self.ended = threading.Event()
        self._job = job
        self._results: list[Result] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="query").start()

    def _run(self) -> None:
        try:
            self._results.append(self._job())
        except BaseException as error:
            self._error = error
        finally:
            self.ended.set()

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._results[0]


def _given_up(db: duckdb.DuckDBPyConnection, query: _Query[Any], error: UsageError) -> UsageError:
    """Interrupt the query. Returns `error`, or a StuckQueryError with the same text if the query does not end."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        db.interrupt()  # again and again: before the query has begun, it has no effect
        if query.ended.wait(PAUSE):
            return error
    return StuckQueryError(error.what, why="it does not react to the interruption", hint=error.hint)


def _memory_used() -> int:
    """Bytes of memory that this process has in use."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


_PAGE = 4096


def text_rows(relation: duckdb.DuckDBPyRelation, limit: int) -> list[tuple[str | None, ...]]:
    """The first `limit` rows, each value as DuckDB writes it; None is NULL."""
    return relation.limit(limit).project("COLUMNS(*)::VARCHAR").fetchall()


def copy_rows(relation: duckdb.DuckDBPyRelation, kind: str, target: Path) -> None:
    """Write a query's rows to a file that the connection may write: `csv`, `json` (one line a row) or `parquet`."""
    options = {"csv": "(FORMAT csv, HEADER)", "json": "(FORMAT json)", "parquet": "(FORMAT parquet)"}[kind]
    relation.query("rows_to_write", f"COPY rows_to_write TO '{quoted(target)}' {options}")
