"""The scheduling calls of a recording and what changed the queues between them, in the order of its engine.

Where an engine schedules ahead of its forwards, a call's decisions follow from this order, and from what the call knew
of the outputs by then: nothing else that was recorded tells that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from fdtrace.recorder.trace.column_values import MISSING, ByValue, Columns
from numpy.typing import NDArray

MOST_ROWS = 20_000_000
"""Rows of `call_request` that are taken into memory: a replay in their order keeps about 80 bytes for each."""

CHANGES = ("queued", "abort_wanted", "requeued", "left", "freed", "recycled", "output_cached", "found")
"""The kinds of `event` that change the queues, or that say what was there when the recording began."""

_CALLS = f"""
SELECT call, num_calls, idle::BIGINT AS idle, epoch_ns(ts) AS ts, coalesce(schedule_us, 0)::BIGINT AS schedule_us,
       num_running, num_waiting, num_free_blocks,
       coalesce(first_step, {MISSING}) AS first_step
FROM call WHERE engine_id = $1 ORDER BY call
"""

_DID = f"""
SELECT call, request, coalesce(did, '') AS did, coalesce(num_computed_tokens, {MISSING}) AS num_computed_tokens,
       coalesce(num_tokens, {MISSING}) AS num_tokens, coalesce(num_total_tokens, {MISSING}) AS num_total_tokens,
       coalesce(num_needed_blocks, {MISSING}) AS num_needed_blocks
FROM call_request WHERE engine_id = $1 AND did IS NOT NULL
"""

_KNOWN = """
SELECT call, request, num_total_tokens FROM call_request
WHERE engine_id = $1 AND did IS NULL AND num_total_tokens IS NOT NULL
"""

_CHANGES = f"""
SELECT call, epoch_ns(ts) AS ts, kind, coalesce(request, {MISSING}) AS request, coalesce(detail, '{{}}') AS detail
FROM event WHERE engine_id = $1 AND call IS NOT NULL AND kind IN {CHANGES} ORDER BY call, ts
"""


@dataclass(frozen=True, eq=False)
class CallOrder(ByValue):
    """Columns in the order of the calls.

    `calls` are those of the table `call`, runs of equal idle calls as one entry; `did` those of `call_request`, in the
    order in which each call did it; `known` are what each call counted of decodes, apart as there is most of it:
    `call`, `request`, `num_total_tokens`; `changes` those of `event` that came before a call: `call`, `kind`,
    `request`, `detail` (JSON). Requests are numbered as in `Recording.requests`; MISSING where none is concerned.
    """

    calls: Columns
    did: Columns
    known: Columns
    changes: Columns


def read_order(db: duckdb.DuckDBPyConnection, engine_id: int) -> CallOrder | None:
    """One engine's calls in order; None where the trace does not have them, or not all, or more than `MOST_ROWS`."""
    tables = {name for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    views = {name for (name,) in db.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    if not {"call", "call_request"} <= tables | views:
        return None
    ((lost,),) = db.execute(
        "SELECT count(*) FROM event WHERE engine_id = $1 AND kind = 'lost' "
        "AND json_extract_string(detail, '$.part') IS DISTINCT FROM 'rank'",
        [engine_id],
    ).fetchall()
    ((count,),) = db.execute("SELECT count(*) FROM call_request WHERE engine_id = $1", [engine_id]).fetchall()
    if lost or not 0 < count <= MOST_ROWS:
        return None
    calls, did, known, changes = (_numpy(db, query, engine_id) for query in (_CALLS, _DID, _KNOWN, _CHANGES))
    return None if not len(changes["call"]) else CallOrder(calls, _by_call(did), _by_call(known), changes)


def _by_call(columns: Columns) -> Columns:
    """In the order of the calls; parts of a trace are written in it, and what one call did stays in its order."""
    calls = columns["call"]
    if (calls[1:] >= calls[:-1]).all():
        return columns
    order = np.argsort(calls, kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _numpy(db: duckdb.DuckDBPyConnection, query: str, engine_id: int) -> dict[str, NDArray[Any]]:
    found: dict[str, Any] = db.execute(query, [engine_id]).fetchnumpy()
    return {
        name: np.ma.filled(values, MISSING) if np.ma.isMaskedArray(values) else values
        for name, values in found.items()
    }
