"""The notes of a trace: what its recording could not see, and what the trace itself shows."""

from __future__ import annotations

from typing import Any

import duckdb

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.check_keys import rows_missing
from fdtrace.recorder.trace.file import is_growing
from fdtrace.recorder.trace.json_values import read_json

MOST = 100
"""Most notes that are read."""
STATES = ("recording", "complete", "recovered")


def read_notes(db: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """The trace's own notes, safe to print; then notes on an odd state, missing steps, rows and cached blocks."""
    text, state = db.execute("SELECT notes, state FROM trace").fetchall()[0]
    return (
        *own_notes(text),
        *_state_note(state, growing=is_growing(db)),
        *gap_notes(db),
        *row_notes(db),
        *cache_notes(db),
    )


def own_notes(text: str | None) -> tuple[str, ...]:
    """The notes that the recording wrote. Where they are no list of texts, one note that says so."""
    try:
        notes: Any = read_json(text)
    except ValueError as error:
        return (f"the notes of this trace cannot be read: {printable(error, 200)}",)
    if notes is None:
        return ()
    if not (isinstance(notes, list) and all(isinstance(note, str) for note in notes)):
        return ("the notes of this trace cannot be read: they are no list of texts",)
    shown = tuple(printable(note) for note in notes[:MOST])
    return shown if len(notes) <= MOST else (*shown, f"{len(notes) - MOST} more notes")


def _state_note(state: str | None, *, growing: bool) -> tuple[str, ...]:
    if state == "recording" and not growing:
        return ("this trace says that it is still recording, but it is a finished file",)
    if state in STATES:
        return ()
    states = ", ".join(STATES)
    return (f"the state of this trace is {printable(state, 200)}, one of {states} is expected",)


def gap_notes(db: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """A note for each engine that misses steps although it has no event `lost`."""
    engine = only_engine(db)
    if engine is not None:
        query = "SELECT max(step) - min(step) + 1 > count(*) FROM step WHERE engine_id = $1"
        if not db.execute(query, [engine]).fetchall()[0][0]:
            return ()
    rows = db.execute(
        "SELECT s.engine_id, s.last - s.first + 1 - s.n FROM "
        "(SELECT engine_id, min(step) AS first, max(step) AS last, count(DISTINCT step) AS n FROM step GROUP BY ALL) s "
        "WHERE s.last - s.first + 1 > s.n AND NOT EXISTS "
        "(FROM event v WHERE v.engine_id = s.engine_id AND v.kind = 'lost') ORDER BY ALL LIMIT 100"
    ).fetchall()
    return tuple(
        f"engine {engine}: {missing} steps are missing between the first and the last, and no event says why"
        for engine, missing in rows
    )


def row_notes(db: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """A note for each engine that has steps whose requests are not all recorded."""
    engine = only_engine(db)
    if engine is not None and rows_missing(db, engine) <= 0:
        return ()
    rows = db.execute(
        "SELECT engine_id, s.ran, s.ran - coalesce(q.ran, 0) FROM "
        "(SELECT engine_id, sum(num_tokens)::BIGINT AS ran FROM step GROUP BY ALL) s LEFT JOIN "
        "(SELECT engine_id, sum(num_tokens)::BIGINT AS ran FROM step_request GROUP BY ALL) q USING (engine_id) "
        "WHERE s.ran > coalesce(q.ran, 0) ORDER BY ALL LIMIT 100"
    ).fetchall()
    return tuple(
        f"engine {engine}: of {ran} tokens that ran, {missing} are of requests that are not recorded"
        for engine, ran, missing in rows
    )


def only_engine(db: duckdb.DuckDBPyConnection) -> int | None:
    """The engine of all steps and of all their rows; None: there are several.

    Rows of one engine are summed ten times as fast as rows grouped by engine.
    """
    engines: set[int | None] = set()
    for table in ("step", "step_request"):
        ((low, high, unknown),) = db.execute(
            f"SELECT min(engine_id), max(engine_id), count(*) - count(engine_id) FROM {table}"
        ).fetchall()
        engines |= {low, high, *([None] if unknown else [])}
    return engines.pop() if len(engines) == 1 else None


def cache_notes(db: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """A note for each engine whose prefix cache was not recorded when the recording began."""
    rows = db.execute(
        "SELECT engine_id, max(TRY_CAST(json_extract_string(detail, '$.num_blocks') AS BIGINT)) FROM event "
        "WHERE kind = 'found' AND json_valid(detail) "
        "AND json_extract_string(detail, '$.place') = 'cache left out' GROUP BY ALL ORDER BY ALL LIMIT 100"
    ).fetchall()
    return tuple(
        f"engine {engine}: the prefix cache held {blocks or 'some'} blocks when this began, and they are not recorded "
        "(too many, or of images): a replay begins without the blocks of requests that had ended"
        for engine, blocks in rows
    )
