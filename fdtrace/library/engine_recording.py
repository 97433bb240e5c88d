"""One engine's recording for programs: a value that needs no file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fdtrace.library.result_table import ResultTable
from fdtrace.recorder.trace.column_values import NO_PRIORITY
from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, RecordedRow, Recording
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb

MOST_ROWS = 10_000_000
"""Most rows of `step_request` that a recording keeps in memory (35 bytes each)."""
TIMES = ("ts", "arrived_at", "finished_at", "sent_at")


@dataclass(frozen=True)
class EngineRecording:
    """One engine's steps and requests, in memory: `trace.recording()` gives it, `fdtrace.replay` takes it.

    It outlives its trace and can be pickled. It equals another recording with the same content.
    """

    value: Recording
    """The recording in the form that fdtrace uses inside: arrays in which -1 is NULL."""

    @property
    def engine(self) -> EngineInfo:
        """The engine's configuration: tokens, sequences, blocks. None: not known."""
        return self.value.engine

    @property
    def notes(self) -> tuple[str, ...]:
        """What the recording could not see, and what is missing from it."""
        return self.value.notes

    @property
    def num_steps(self) -> int:
        """Recorded steps."""
        return self.value.num_steps

    @property
    def steps(self) -> ResultTable:
        """The rows of table `step` (docs/trace.md), by step; `ts` as datetime64[ns], UTC."""
        return ResultTable(self.value.steps, title="recorded steps", times=TIMES)

    @property
    def requests(self) -> ResultTable:
        """The rows of table `request` (docs/trace.md), by number; times as datetime64[ns], UTC."""
        columns = dict(self.value.requests)
        priority = np.asarray(columns.get("priority", NO_PRIORITY))
        if (priority == NO_PRIORITY).any():
            unknown = np.where(priority == NO_PRIORITY, np.nan, priority)
            columns["priority"] = np.broadcast_to(unknown, len(columns["request"]))
        return ResultTable(columns, title="recorded requests", times=TIMES, may_be_negative=("priority",))

    def __repr__(self) -> str:
        engine = self.engine
        description = f"{engine.name} {engine.version}".strip()
        return f"<EngineRecording of {description}: {self.num_steps} steps, {len(self.requests)} requests>"


@dataclass(frozen=True, eq=False)
class RowsInMemory:
    """All rows of `step_request` of one engine, by step, prefills first. Arrays with an entry for each row."""

    step: NDArray[np.int64]
    request: NDArray[np.int32]
    """The index into `Recording.requests`."""
    prefill: NDArray[np.bool_]
    figures: NDArray[np.int32]
    """Tokens, computed before, drafts, accepted, blocks (-1: not known): five columns."""
    ids: tuple[str, ...]

    def __call__(self, step: int) -> list[RecordedRow]:
        """The requests of a step."""
        first, end = np.searchsorted(self.step, [step, step + 1])
        return [
            RecordedRow(self.ids[request], "prefill" if prefill else "decode", *figures)
            for request, prefill, figures in zip(
                self.request[first:end].tolist(),
                self.prefill[first:end].tolist(),
                self.figures[first:end].tolist(),
                strict=True,
            )
        ]

    def batches(self, recording: Recording) -> BatchRowColumns:
        """The rows in the form that a time model takes. Rows of steps that the recording does not have are left out."""
        steps = np.asarray(recording.steps["step"])
        is_recorded = np.isin(self.step, steps)
        tokens, computed, _, accepted, _ = self.figures[is_recorded].T.astype(np.int64)
        step_index = np.searchsorted(steps, self.step[is_recorded])
        return BatchRowColumns(
            step_index,
            self.request[is_recorded].astype(np.int64),
            self.prefill[is_recorded],
            tokens,
            computed,
            accepted,
        )

    def steps_of(self, request_id: str) -> list[int]:
        """The steps in which a request ran, ascending."""
        entries = [entry for entry, name in enumerate(self.ids) if name == request_id]
        steps: list[int] = np.unique(self.step[np.isin(self.request, entries)]).tolist()
        return steps


@dataclass(frozen=True, eq=False)
class DetailsWithRows(LoadedDetails):
    """Details in memory, with the requests of every step."""

    rows: RowsInMemory | None = None

    @property
    def step_rows(self) -> Callable[[int], list[RecordedRow]] | None:  # type: ignore[override]
        """Gives the requests of a step, prefills first."""
        return self.rows


def recording_with_rows(db: duckdb.DuckDBPyConnection, loaded: Recording) -> Recording:
    """A loaded recording with the requests of its steps, if there are not more than `MOST_ROWS`."""
    rows = rows_in_memory(db, loaded)
    if rows is None:
        return loaded
    details = {field.name: getattr(loaded.details, field.name) for field in fields(LoadedDetails)}
    return replace(loaded, details=DetailsWithRows(**details, rows=rows))


def rows_in_memory(db: duckdb.DuckDBPyConnection, recording: Recording) -> RowsInMemory | None:
    """The requests of every recorded step. None if there are more than `MOST_ROWS`."""
    number = recording.engine.engine_id
    count = db.execute("SELECT count(*) FROM step_request WHERE engine_id = $1", [number]).fetchall()[0][0]
    if count > MOST_ROWS:
        return None
    names = ("num_tokens", "num_computed_tokens", "num_draft_tokens", "num_accepted_tokens", "num_blocks")
    nulls = (0, 0, 0, 0, -1)
    figures = ", ".join(
        f"coalesce({name}, {null})::INTEGER AS {name}" for name, null in zip(names, nulls, strict=True)
    )
    columns = db.execute(
        f"SELECT step, request, kind = 'prefill' AS prefill, {figures} FROM step_request WHERE engine_id = $1 "
        "ORDER BY step, kind DESC, request",
        [number],
    ).fetchnumpy()
    entries = np.searchsorted(recording.requests["request"], columns["request"])
    return RowsInMemory(
        np.asarray(columns["step"]),
        entries.astype(np.int32),
        np.asarray(columns["prefill"], bool),
        np.stack([np.asarray(columns[name], np.int32) for name in names], axis=1),
        tuple(map(str, recording.requests["request_id"].tolist())),
    )
