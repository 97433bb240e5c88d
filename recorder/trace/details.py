"""A recording that is backed by a trace: details are read when they are asked for, and columns too if so opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

import duckdb
import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.call_order import CallOrder, read_order
from fdtrace.recorder.trace.column_values import Ints
from fdtrace.recorder.trace.columns_on_demand import TableColumns
from fdtrace.recorder.trace.initial_state import InitialRequest, StateAtStart
from fdtrace.recorder.trace.read_tables import Reader
from fdtrace.recorder.trace.recording import (
    Acceptance,
    Endings,
    EngineInfo,
    HandoverSteps,
    RecordedRow,
    Recording,
    RowScan,
)


def recording_of(db: duckdb.DuckDBPyConnection, engine: EngineInfo, notes: tuple[str, ...]) -> Recording:
    """An engine's recording. Its details are read from this connection, as long as it is open."""
    reader = Reader(db, engine.engine_id)
    steps, requests = reader.steps(), reader.requests()
    return Recording(engine, steps, requests, notes, TraceDetails(db, engine, lambda: requests["request"]))


def recording_on_demand(
    db: duckdb.DuckDBPyConnection, engine: EngineInfo, numbers: Ints, check: Callable[[], None]
) -> Recording:
    """An engine's recording, of which nothing is read yet. It has no notes: these go through all rows.

    Args:
        db: the connection of a complete trace.
        engine: the engine.
        numbers: those of its steps, in the order of their rows.
        check: called before requests, or anything that refers to them, are read.
    """
    once = Once(check)

    @contextmanager
    def checked() -> Iterator[duckdb.DuckDBPyConnection]:
        once()
        with cursor_of(db) as cursor:
            yield cursor

    def request_numbers(cursor: duckdb.DuckDBPyConnection) -> Ints:
        query = "SELECT request::BIGINT AS request FROM request WHERE engine_id = $1"
        columns: Any = cursor.execute(query, [engine.engine_id]).fetchnumpy()
        return np.ma.getdata(columns["request"])

    requests = TableColumns(schema.REQUEST, engine.engine_id, checked, request_numbers, "block_hashes")
    details = TraceDetails(db, engine, lambda: requests["request"], once)
    steps = TableColumns(schema.STEP, engine.engine_id, lambda: cursor_of(db), lambda _: numbers)
    return Recording(engine, steps, requests, (), details)


@contextmanager
def cursor_of(db: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    """A cursor for one reader: two threads must not share one. Errors of the trace become a TraceError."""
    try:
        cursor = db.cursor()
    except duckdb.ConnectionException:
        raise TraceError(
            "the trace is closed",
            why="this part of its recording was never read",
            hint="`recording.loaded()`, while the trace is open, gives one that needs no file",
        ) from None
    try:
        yield cursor
    except duckdb.Error as error:
        raise TraceError("the trace cannot be read", why=str(error).splitlines()[0]) from None
    finally:
        cursor.close()


class Once:
    """Something to do once. Threads that come meanwhile wait until it is done; if it fails, it is done again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._lock, self._done = work, threading.Lock(), False

    def __call__(self) -> None:
        with self._lock:
            if not self._done:
                self._work()
                self._done = True


class TraceDetails:
    """The `RecordingDetails` of a trace. Each is read once, when it is first asked for. Safe from any thread.

    A detail that was not read before the trace was closed raises a TraceError.
    """

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        engine: EngineInfo,
        numbers: Callable[[], NDArray[Any]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`numbers` gives the request numbers, ascending. `check` is called before more than a step's rows is read."""
        self._db, self._engine, self._check, self._read_numbers = db, engine, check, numbers

    @cached_property
    def _numbers(self) -> NDArray[Any]:
        return self._read_numbers()

    @cached_property
    def endings(self) -> Endings:
        """How each request ended."""
        with self._reading() as reader:
            kinds = ("finished", "aborted", "abort_wanted")
            return Endings(*(reader.event_step(self._numbers, kind) for kind in kinds))

    @cached_property
    def acceptance(self) -> Acceptance:
        """The drafts that were accepted."""
        with self._reading() as reader:
            return reader.acceptance(self._numbers)

    @cached_property
    def _found(self) -> StateAtStart:
        """What events say about the beginning of the recording."""
        with self._reading() as reader:
            return reader.found()

    @cached_property
    def initial(self) -> tuple[InitialRequest, ...]:
        """The requests that were running when the recording began."""
        with self._reading() as reader:
            return reader.initial(self._found)

    @cached_property
    def block_hashes(self) -> NDArray[Any] | None:
        """The hashes of each request's full prompt blocks; None without prefix caching."""
        if not self._engine.prefix_caching:
            return None
        with self._reading() as reader:
            return reader.block_hashes()

    @cached_property
    def handover(self) -> HandoverSteps | None:
        """What the prefill or decode role did with each request; None in the mixed role."""
        if self._engine.role not in ("prefill", "decode"):
            return None
        with self._reading() as reader:
            return reader.handover(self._numbers, simulated=self._engine.version == "simulated")

    @cached_property
    def order(self) -> CallOrder | None:
        """The scheduling calls and what came between them."""
        with self._reading() as reader:
            return read_order(reader.db, reader.engine_id)

    @cached_property
    def row_scan(self) -> RowScan:
        """What only a scan of every row of `step_request` gives."""
        with self._reading() as reader:
            queued = reader.queued(self._found)
            return RowScan(queued, reader.restarts(self._numbers), reader.digests(), self._found)

    @property
    def step_rows(self) -> Callable[[int], list[RecordedRow]]:
        """Reads the requests of a step, prefills first."""
        return self._step_rows

    def _step_rows(self, step: int) -> list[RecordedRow]:
        with cursor_of(self._db) as cursor:
            return Reader(cursor, self._engine.engine_id).step_rows(step)

    @contextmanager
    def _reading(self) -> Iterator[Reader]:
        """A reader of checked tables."""
        self._check()
        with cursor_of(self._db) as cursor:
            yield Reader(cursor, self._engine.engine_id)

    def __reduce__(self) -> NoReturn:
        raise TraceError(
            "this recording cannot be pickled",
            why="a part of it is still in its trace",
            hint="`recording.loaded()`, while the trace is open, gives one that can",
        )
