"""The scheduling calls of a recording, and the changes of the queues between them, in the engine's order.

If an engine schedules ahead of its forwards, a call's decisions follow from this order, and from the outputs that the
call knew. Nothing else in a recording says these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, ByValue, Columns

if TYPE_CHECKING:
    import duckdb

MOST_ROWS = 20_000_000
"""Most rows of `call_request` that are read into memory. A replay in their order keeps about 80 bytes for each."""

CHANGES = (
    *("queued", "abort_wanted", "requeued", "left", "freed", "recycled", "output_cached", "found"),
    *("preallocated", "joined", "discarded"),
)
"""The kinds of `event` that change the queues, or that hold the state when the recording began."""

_CALLS = f"""
SELECT call, num_calls, idle::BIGINT AS idle, epoch_ns(ts) AS ts, epoch_ns(last_ts) AS last_ts,
       coalesce(schedule_us, 0)::BIGINT AS schedule_us,
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

_SEEN = """
SELECT k.call, max(q.step) AS step
FROM (SELECT call, request, num_total_tokens FROM call_request
      WHERE engine_id = $1 AND did IS NULL AND num_total_tokens IS NOT NULL) k
ASOF JOIN (
    SELECT request, step, num_computed_tokens FROM step_request WHERE engine_id = $1
    QUALIFY num_computed_tokens > coalesce(max(num_computed_tokens) OVER (
        PARTITION BY request ORDER BY step ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1)
) q ON k.request = q.request AND k.num_total_tokens > q.num_computed_tokens
GROUP BY k.call ORDER BY k.call
"""
"""As the view `call_lag`: the last step whose outputs were new to each call."""

_CHANGES = f"""
SELECT call, epoch_ns(ts) AS ts, kind, coalesce(request, {MISSING}) AS request, coalesce(detail, '{{}}') AS detail
FROM event WHERE engine_id = $1 AND call IS NOT NULL AND kind IN {CHANGES} ORDER BY call, ts
"""


def _nothing_seen() -> Columns:
    return {"call": np.zeros(0, np.int64), "step": np.zeros(0, np.int64)}


@dataclass(frozen=True, eq=False)
class CallOrder(ByValue):
    """Columns in the order of the calls.

    `calls`: the table `call`; a run of equal idle calls is one entry. `did`: what each call did, from `call_request`,
    in its order. `known`: the tokens that each call counted of decodes (`call`, `request`, `num_total_tokens`); these
    are most rows, so they are separate. `changes`: rows of `event` before a call (`call`, `kind`, `request`, `detail`,
    which is JSON). Requests are numbered as in `Recording.requests`; MISSING: a row concerns no request.
    """

    calls: Columns
    did: Columns
    known: Columns
    changes: Columns
    seen: Columns = field(default_factory=_nothing_seen)
    """`call` and `step`: the last step whose outputs the call had taken in; only calls that had new outputs."""


def read_order(db: duckdb.DuckDBPyConnection, engine_id: int) -> CallOrder | None:
    """One engine's calls in order. None if the trace does not have all of them, or has more than `MOST_ROWS`."""
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
    if not len(changes["call"]) or _begins_later(calls, changes):
        return None
    return CallOrder(calls, _by_call(did), _by_call(known), changes, _numpy(db, _SEEN, engine_id))


def _begins_later(calls: Columns, changes: Columns) -> bool:
    """Whether earlier calls are missing, and with them the state of the queues: the ring of a flight recorder."""
    return bool(len(calls["call"]) and calls["call"][0] > 0 and not (changes["kind"] == "found").any())


def _by_call(columns: Columns) -> Columns:
    """Sort rows by call. Parts of a trace are written in that order; rows of one call keep their order."""
    calls = columns["call"]
    if (calls[1:] >= calls[:-1]).all():
        return columns
    order = np.argsort(calls, kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _numpy(db: duckdb.DuckDBPyConnection, query: str, engine_id: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, Any] = db.execute(query, [engine_id]).fetchnumpy()
    return {
        name: np.ma.filled(values, MISSING) if np.ma.isMaskedArray(values) else values
        for name, values in arrays.items()
    }
