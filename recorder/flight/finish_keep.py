"""`python -m fdtrace.recorder.flight.finish_keep SPOOL`: makes a trace of a window of a flight recorder's ring.

What it holds is what a recording would hold that was attached when the window began: requests that had arrived before
have no time of arrival; those that held a row of the batch, and that the first step left out, are events `found`. It
may be killed at any moment: the spool stays until the trace is in its place.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.finish import create_final
from fdtrace.recorder.collector.live_parts import LIVE
from fdtrace.recorder.collector.process import make_files_private
from fdtrace.recorder.collector.tables import columns_of, insert, writing_connection
from fdtrace.recorder.collector.views import SMALL
from fdtrace.recorder.errors import FdtraceError, TraceError
from fdtrace.recorder.flight.firing import FiredTrigger
from fdtrace.recorder.flight.flight_directory import MAKING
from fdtrace.recorder.flight.flight_segments import EngineSnapshot, Segment
from fdtrace.recorder.flight.keep_from_checkpoint import CheckpointCopy
from fdtrace.recorder.flight.keep_from_step import StepCheckpointCopy
from fdtrace.recorder.flight.keep_spool import KEEP, STATE
from fdtrace.recorder.flight.kept_parts import EventRow, KeptParts
from fdtrace.recorder.sql_text import quoted

FINAL = "final.duckdb"
LOCK = "lock"

FROM_START = -(1 << 62)

ORDER_LEFT_OUT = (
    "engine {}: the order of the queues' changes is left out, because it is not known in what state the queues were "
    "when this begins: a replay runs in lockstep"
)


@dataclass(frozen=True)
class EngineWindow:
    """The window of one engine: the first step and call, and what is known of its first moment (`cut`)."""

    engine_id: int
    first_step: int
    first_call: int
    cut: EngineSnapshot | None


def finish_keep(spool: Path) -> Path | None:
    """Make the trace of a spool, and remove the spool. Returns its path; None if another process is making it.

    Raises:
        TraceError: the spool makes no sense.
        OSError, duckdb.Error: it cannot be written, for example on a full disk. The spool stays.
    """
    final = spool.with_name(f"{spool.name.removesuffix(MAKING)}.duckdb")
    lock = os.open(spool / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not os.path.lexists(final):
            half = spool / FINAL
            for old in (half, half.with_name(f"{FINAL}.wal")):
                old.unlink(missing_ok=True)
            _write(spool, half)
            half.rename(final)
        shutil.rmtree(spool)
    finally:
        os.close(lock)
    return final


def _write(spool: Path, half: Path) -> None:
    try:
        about = json.loads((spool / KEEP).read_text())
        segment = Segment.from_json({"serial": 0, **about})
        firings = [FiredTrigger.from_json(fields) for fields in about["firings"]]
        parts = {name: [str(spool / part) for part in about["parts"][name]] for name in about["parts"]}
        live = about.get("live")
        live = None if live is None else {name: str(spool / part) for name, part in live.items()}
        undated = {int(engine): rows for engine, rows in about.get("undated", {}).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(
            f"{spool} cannot be made a trace",
            why=f"its {KEEP} is damaged ({error})",
            hint="its Parquet files and its `state.duckdb` can be read by any DuckDB",
        ) from None
    with writing_connection() as db:
        db.execute(f"ATTACH '{quoted(spool / STATE)}' AS state (READ_ONLY)")
        _check_state(db, spool, [] if live is not None else [*LIVE])
        create_final(db, half)
        db.execute("BEGIN")
        kept = KeptParts(db, parts, live, undated)
        notes = _Writer(kept).engines(segment)
        _trace_row(db, segment, about, notes)
        kept.add_events([_triggered(firing) for firing in firings])
        db.execute("COMMIT")
        db.execute("DETACH final")
    with half.open("rb") as file:
        os.fsync(file.fileno())


def _check_state(db: duckdb.DuckDBPyConnection, spool: Path, also: Sequence[str]) -> None:
    """Only tables of the published database are read. A view in it could read any file."""
    named = "SELECT table_name FROM system.main.duckdb_tables() WHERE database_name = 'state'"
    missing = {*SMALL, *also} - {name for (name,) in db.execute(named).fetchall()}
    if missing:
        raise TraceError(
            f"{spool} cannot be made a trace", why=f"its {STATE} has no table {sorted(missing)[0]}"
        )


def _trace_row(
    db: duckdb.DuckDBPyConnection, segment: Segment, about: Mapping[str, Any], notes: list[str]
) -> None:
    version, text = db.execute("SELECT fdtrace_version, notes FROM state.main.trace").fetchall()[0]
    all_notes = [str(about["note"]), *notes, *json.loads(text or "[]")]
    row = (
        schema.SCHEMA_VERSION, version, segment.begins, int(about["ends"]), "complete", "keep", json.dumps(all_notes),
    )  # fmt: skip
    insert(db, "final.trace", schema.TRACE, columns_of(schema.TRACE, [row]))


def _triggered(firing: FiredTrigger) -> EventRow:
    detail = json.dumps({"value": firing.value, "why": firing.why or None})
    return firing.engine_id, firing.step, firing.ts, "triggered", None, firing.trigger, detail, None


class _Writer:
    """Copies the window into the attached database `final`."""

    def __init__(self, kept: KeptParts) -> None:
        self.kept, self.db = kept, kept.db

    def engines(self, segment: Segment) -> list[str]:
        """Copy all that belongs to the window. Returns what is not in it, for the notes."""
        db, notes = self.db, []
        db.execute("INSERT INTO final.engine FROM state.main.engine ORDER BY engine_id")
        rows = db.execute("SELECT engine_id FROM final.engine ORDER BY engine_id").fetchall()
        for (engine_id,) in rows:
            cut = segment.cuts.get(engine_id)
            if cut is not None and cut.call is not None:
                if cut.call.step >= 0:
                    StepCheckpointCopy(self.kept, engine_id, cut.call).copy()
                else:
                    CheckpointCopy(self.kept, engine_id, cut, cut.call).copy()
                continue
            window = self._window(engine_id, cut)
            if window.cut is not None:
                begins = "UPDATE final.engine SET started_at = make_timestamp_ns($1) WHERE engine_id = $2"
                db.execute(begins, [segment.begins, engine_id])
            if not self._copy_engine(window):
                notes.append(ORDER_LEFT_OUT.format(engine_id))
        self.kept.copy("event", "engine_id IS NULL", [])
        return notes

    def _window(self, engine_id: int, cut: EngineSnapshot | None) -> EngineWindow:
        if cut is None:
            return EngineWindow(engine_id, FROM_START, FROM_START, None)
        query = f"SELECT min(call) FROM ({self.kept.calls}) WHERE engine_id = $1 AND first_step >= $2"
        first_call = self.db.execute(query, [engine_id, cut.step]).fetchall()[0][0]
        return EngineWindow(engine_id, cut.step, FROM_START if first_call is None else first_call, cut)

    def _copy_engine(self, window: EngineWindow) -> bool:
        """Copy the rows of one engine. Returns whether all of its kinds are there."""
        kept, key, step, call = self.kept, window.engine_id, window.first_step, window.first_call
        for table in ("step", "step_request", "rank_memory"):
            kept.copy(table, "engine_id = $1 AND step >= $2", [key, step])
        calls = f"INSERT INTO final.call SELECT * FROM ({kept.calls}) WHERE engine_id = $1 AND call >= $2"
        self.db.execute(calls, [key, call])
        self._requests(window)
        known = "(request IS NULL OR request IN (SELECT request FROM final.request WHERE engine_id = $1))"
        kept.copy(
            "event",
            f"engine_id = $1 AND step >= $2 AND (call IS NULL OR call >= $3) AND {known}",
            [key, step, call],
        )
        self._found(window)
        if window.cut is None:
            kept.copy("call_request", "engine_id = $1", [key])
            kept.add_events(kept.undated_events(key))
            return True
        return not self._has_order(key)

    def _has_order(self, engine_id: int) -> bool:
        return bool(self.kept.rows("call_request", "1", "engine_id = $1 LIMIT 1", [engine_id]))

    def _requests(self, window: EngineWindow) -> None:
        """Copy the requests that ran or ended in the window, and those that were there at its end.

        One that had ended before the window may have been reported within it: it is left out.
        """
        key, step = window.engine_id, window.first_step
        early = "arrived_step < $2"
        columns = (
            f"* REPLACE (CASE WHEN {early} THEN NULL ELSE arrived_at END AS arrived_at, "
            f"CASE WHEN {early} THEN NULL ELSE sent_at END AS sent_at, "
            f"CASE WHEN {early} THEN NULL ELSE arrived_step END AS arrived_step)"
        )
        seen = "SELECT request FROM final.step_request WHERE engine_id = $1"
        if self.kept.parts.get("event"):
            ended = (
                f"SELECT request {self.kept.source('event')} "
                "WHERE engine_id = $1 AND kind = 'finished' AND step >= $2"
            )
            seen = f"{seen} UNION {ended}"
        self.kept.copy("request", f"engine_id = $1 AND request IN ({seen})", [key, step], columns)
        live = f"SELECT {columns} FROM ({self.kept.live_source('request')}) WHERE engine_id = $1"
        self.db.execute(f"INSERT INTO final.request {live}", [key, step])

    def _found(self, window: EngineWindow) -> None:
        """Add an event for each request that held a row when the window began and that the first step left out."""
        if window.cut is None:
            return
        key = window.engine_id
        first = self.db.execute("SELECT min(step) FROM final.step WHERE engine_id = $1", [key]).fetchall()[0][
            0
        ]
        if first is None:
            return
        ran_query = "SELECT request FROM final.step_request WHERE engine_id = $1 AND step = $2"
        ran = {number for (number,) in self.db.execute(ran_query, [key, first]).fetchall()}
        there_query = "SELECT request FROM final.request WHERE engine_id = $1 AND arrived_step IS NULL"
        there = {number for (number,) in self.db.execute(there_query, [key]).fetchall()}
        for number, computed, total, blocks in window.cut.held:
            if number in there and number not in ran and total >= 0:
                detail = {
                    "place": "running", "num_computed_tokens": computed, "num_total_tokens": total,
                    "num_blocks": blocks,
                }  # fmt: skip
                row = (key, first, None, "found", number, None, json.dumps(detail), None)
                self.kept.add_events([row])


def main() -> int:
    """Finish the spool that the command line names. 0: it is done, or another process does it."""
    make_files_private()
    try:
        finish_keep(Path(sys.argv[1]))
    except (FdtraceError, OSError, duckdb.Error) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
