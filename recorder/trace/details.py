"""A recording that is backed by a trace: steps and requests are read at once, details when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

import duckdb
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.call_order import CallOrder, read_order
from fdtrace.recorder.trace.initial_state import FoundState, InitialRequest
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
    return Recording(engine, steps, requests, notes, TraceDetails(db, engine, requests["request"]))


class TraceDetails:
    """The `RecordingDetails` of a trace. Each is read once, when it is first asked for. Safe from any thread.

    A detail that was not read before the trace was closed raises a TraceError.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection, engine: EngineInfo, numbers: NDArray[Any]) -> None:
        """`numbers` are the request numbers, ascending."""
        self._db, self._engine, self._numbers = db, engine, numbers

    @cached_property
    def endings(self) -> Endings:
        """How each request ended."""
        with self._reading() as reader:
            finished, aborted = (reader.event_step(self._numbers, kind) for kind in ("finished", "aborted"))
        return Endings(finished, aborted)

    @cached_property
    def acceptance(self) -> Acceptance:
        """The drafts that were accepted."""
        with self._reading() as reader:
            return reader.acceptance(self._numbers)

    @cached_property
    def _found(self) -> FoundState:
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
            return reader.handover(self._numbers)

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
        with self._reading() as reader:
            return reader.step_rows(step)

    @contextmanager
    def _reading(self) -> Iterator[Reader]:
        """A reader with a cursor of its own: two threads must not share a DuckDB cursor."""
        try:
            cursor = self._db.cursor()
        except duckdb.ConnectionException:
            raise TraceError(
                "the trace is closed",
                why="this part of its recording was never read",
                hint="`recording.loaded()`, while the trace is open, gives one that needs no file",
            ) from None
        try:
            yield Reader(cursor, self._engine.engine_id)
        except duckdb.Error as error:
            raise TraceError("the trace cannot be read", why=str(error).splitlines()[0]) from None
        finally:
            cursor.close()

    def __reduce__(self) -> NoReturn:
        raise TraceError(
            "this recording cannot be pickled",
            why="a part of it is still in its trace",
            hint="`recording.loaded()`, while the trace is open, gives one that can",
        )
