"""One engine's recording as a program holds it: a value that needs no file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fdtrace.library.result_table import ResultTable
from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, RecordedRow, Recording

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb

MOST_ROWS = 10_000_000
"""Rows of `step_request` that a recording takes along into memory (35 bytes each)."""
TIMES = ("ts", "arrived_at", "finished_at")


@dataclass(frozen=True)
class EngineRecording:
    """One engine's steps and requests, in memory: `trace.recording()` gives it, `fdtrace.replay` takes it.

    It outlives its trace, can be pickled, and equals another that holds the same.
    """

    value: Recording
    """The recording as fdtrace's other parts take it: arrays in which -1 is NULL."""

    @property
    def engine(self) -> EngineInfo:
        """What the engine was configured with: tokens, sequences, blocks; None is not known."""
        return self.value.engine

    @property
    def notes(self) -> tuple[str, ...]:
        """What the recording could not see, and what is missing in it."""
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
        return ResultTable(self.value.requests, title="recorded requests", times=TIMES)

    def __repr__(self) -> str:
        engine = self.engine
        what = f"{engine.name} {engine.version}".strip()
        return f"<EngineRecording of {what}: {self.num_steps} steps, {len(self.requests)} requests>"


@dataclass(frozen=True, eq=False)
class RowsInMemory:
    """All rows of `step_request` of one engine, by step, prefills first; arrays of one entry a row."""

    step: NDArray[np.int64]
    request: NDArray[np.int32]
    """The entry of `Recording.requests`."""
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

    def steps_of(self, request_id: str) -> list[int]:
        """The steps in which a request ran, ascending."""
        entries = [at for at, known in enumerate(self.ids) if known == request_id]
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
    """A loaded recording with the requests of its steps, where they are not more than `MOST_ROWS`."""
    rows = _rows_of(db, loaded)
    if rows is None:
        return loaded
    known = {one.name: getattr(loaded.details, one.name) for one in fields(LoadedDetails)}
    return replace(loaded, details=DetailsWithRows(**known, rows=rows))


def _rows_of(db: duckdb.DuckDBPyConnection, recording: Recording) -> RowsInMemory | None:
    """None where there are too many."""
    number = recording.engine.engine_id
    count = db.execute("SELECT count(*) FROM step_request WHERE engine_id = $1", [number]).fetchall()[0][0]
    if count > MOST_ROWS:
        return None
    names = ("num_tokens", "num_computed_tokens", "num_draft_tokens", "num_accepted_tokens", "num_blocks")
    nulls = (0, 0, 0, 0, -1)
    figures = ", ".join(
        f"coalesce({name}, {null})::INTEGER AS {name}" for name, null in zip(names, nulls, strict=True)
    )
    found = db.execute(
        f"SELECT step, request, kind = 'prefill' AS prefill, {figures} FROM step_request WHERE engine_id = $1 "
        "ORDER BY step, kind DESC, request",
        [number],
    ).fetchnumpy()
    entries = np.searchsorted(recording.requests["request"], found["request"])
    return RowsInMemory(
        np.asarray(found["step"]),
        entries.astype(np.int32),
        np.asarray(found["prefill"], bool),
        np.stack([np.asarray(found[name], np.int32) for name in names], axis=1),
        tuple(map(str, recording.requests["request_id"].tolist())),
    )
