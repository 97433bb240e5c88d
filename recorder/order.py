"""The scheduling calls of a recording and what changed the queues between them, in the order of its engine.

Where an engine schedules ahead of its forwards, a call's decisions follow from this order, and from what the call knew
of the outputs by then: nothing else that was recorded tells that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.recording import MISSING, ByValue, Columns

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
FROM call_request WHERE engine_id = $1
"""

_CHANGES = f"""
SELECT call, epoch_ns(ts) AS ts, kind, coalesce(request, {MISSING}) AS request, coalesce(detail, '{{}}') AS detail
FROM event WHERE engine_id = $1 AND call IS NOT NULL AND kind IN {CHANGES} ORDER BY call, ts
"""


@dataclass(frozen=True, eq=False)
class CallOrder(ByValue):
    """Columns in the order of the calls.

    `calls` are those of the table `call`, runs of equal idle calls as one entry; `did` those of `call_request`, in the
    order in which each call did it; `changes` those of `event` that came before a call: `call`, `kind`, `request`,
    `detail` (JSON). Requests are numbered as in `Recording.requests`; MISSING where none is concerned.
    """

    calls: Columns
    did: Columns
    changes: Columns


def read_order(db: duckdb.DuckDBPyConnection, engine_id: int) -> CallOrder | None:
    """One engine's calls in order; None where the trace does not have them, or not all."""
    tables = {name for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    views = {name for (name,) in db.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    if not {"call", "call_request"} <= tables | views:
        return None
    ((lost,),) = db.execute(
        "SELECT count(*) FROM event WHERE engine_id = $1 AND kind = 'lost' "
        "AND json_extract_string(detail, '$.part') IS DISTINCT FROM 'rank'",
        [engine_id],
    ).fetchall()
    found = [_numpy(db, query, engine_id) for query in (_CALLS, _DID, _CHANGES)]
    calls, did, changes = found
    if lost or not len(did["call"]) or not len(changes["call"]):
        return None
    order = np.argsort(did["call"], kind="stable")
    return CallOrder(calls, {name: values[order] for name, values in did.items()}, changes)


def _numpy(db: duckdb.DuckDBPyConnection, query: str, engine_id: int) -> dict[str, NDArray[Any]]:
    found: dict[str, Any] = db.execute(query, [engine_id]).fetchnumpy()
    return {
        name: np.ma.filled(values, MISSING) if np.ma.isMaskedArray(values) else values
        for name, values in found.items()
    }
