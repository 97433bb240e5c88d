"""The scheduling calls behind a forward: the call it belongs to, the calls before it, and how far behind they were.

It is read when somebody looks at one step. If an engine's calls and forwards come in pairs, it has none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.call_lags import CallLags, calls_at, step_lags
from fdtrace.recorder.trace.column_values import MISSING

if TYPE_CHECKING:
    import duckdb

MOST_ROWS = 5_000_000
"""Most rows of `step_request` for which lags are read: the view `call_lag` sorts all of them."""

MOST_CALLS = 12
"""Most calls that are shown of one step: the last ones."""


@dataclass(frozen=True)
class StepCall:
    """One row of `call`, seen from a step; counts of requests, tokens and blocks as in the table, None: not known.

    `began_us`: microseconds from the step's begin to the call's begin (below 0: the call was earlier). `took_us`: how
    long the call took. `first_step`: the forward that its tasks entered. `seen_step`: the last forward whose outputs
    it had taken in.
    """

    call: int
    num_calls: int
    idle: bool
    began_us: int
    took_us: int | None
    token_budget: int | None
    num_scheduled_tokens: int | None
    num_running: int | None
    num_running_decodes: int | None
    num_prefilling: int | None
    num_waiting: int | None
    num_chunks: int | None
    num_admitted: int | None
    num_extended: int | None
    num_preempted: int | None
    num_aborted: int | None
    num_free_blocks: int | None
    head: str
    not_admitted: str
    num_missing_blocks: int | None
    first_step: int | None
    seen_step: int | None


@dataclass(frozen=True)
class StalledRequest:
    """A decode that a step did not run. `since`: the forward in which it stalled. `call`: the call that ended the
    stall; None: no call did.

    `did`: what that call did with it. `began_us`: when that call began, as in `StepCall`. `first_step`: the forward in
    which that took effect.
    """

    request_id: str
    since: int
    call: int | None
    did: str
    began_us: int | None
    first_step: int | None


@dataclass(frozen=True)
class StepCalls:
    """`of_step`: the call to which a step's figures belong; None: it came before the recording began.

    `between`: the other calls from the step before to the begin of this step, in their order; of `num_between` rows
    the last `MOST_CALLS`. `stalled`: the step's decodes that did not run.
    """

    step: int
    of_step: StepCall | None
    between: tuple[StepCall, ...]
    num_between: int
    stalled: tuple[StalledRequest, ...]


_COLUMNS = """
k.call, k.num_calls, k.idle, (epoch_ns(k.ts) - $3) // 1000, k.schedule_us, k.token_budget, k.num_scheduled_tokens,
k.num_running, k.num_running_decodes, k.num_prefilling, k.num_waiting, k.num_chunks, k.num_admitted, k.num_extended,
k.num_preempted, k.num_aborted, k.num_free_blocks, coalesce(r.request_id, ''), coalesce(k.not_admitted, ''),
k.num_missing_blocks, k.first_step
"""

_CALLS = f"""
WITH entered AS (
    SELECT max(call) FILTER (first_step <= $2) AS now, max(call) FILTER (first_step < $2) AS before
    FROM call WHERE engine_id = $1 AND NOT idle
)
SELECT {_COLUMNS}, k.call = (SELECT now FROM entered), epoch_ns(k.ts), epoch_ns(k.last_ts)
FROM call k LEFT JOIN request r ON r.engine_id = k.engine_id AND r.request = k.head
WHERE k.engine_id = $1 AND k.call >= coalesce((SELECT before FROM entered), -1) AND epoch_ns(k.ts) <= $3
ORDER BY k.call
"""

_ENDS = """
SELECT call, num_calls, idle::BIGINT AS idle, epoch_ns(ts) AS ts, epoch_ns(last_ts) AS last_ts,
       coalesce(schedule_us, 0) AS schedule_us, first_step
FROM call WHERE engine_id = $1 ORDER BY call
"""

_STALLED = """
SELECT r.request_id, v.step, k.call, k.did, (epoch_ns(c.ts) - $3) // 1000, c.first_step
FROM (SELECT request, max(step) AS step FROM event
      WHERE engine_id = $1 AND kind = 'stalled' AND step <= $2 GROUP BY request) v
JOIN request r ON r.engine_id = $1 AND r.request = v.request
LEFT JOIN (SELECT k.call, k.request, k.did, c.first_step, c.ts FROM call_request k
           JOIN call c USING (engine_id, call)
           WHERE k.engine_id = $1 AND k.did IN ('extended', 'preempted', 'aborted') AND c.first_step > $2
           QUALIFY row_number() OVER (PARTITION BY k.request ORDER BY k.call) = 1) k ON k.request = v.request
LEFT JOIN call c ON c.engine_id = $1 AND c.call = k.call
WHERE NOT EXISTS (FROM step_request q WHERE q.engine_id = $1 AND q.request = v.request
                  AND q.step BETWEEN v.step AND $2)
  AND NOT EXISTS (FROM call_request g JOIN call d USING (engine_id, call)
                  WHERE g.engine_id = $1 AND g.request = v.request AND g.did IN ('preempted', 'aborted')
                  AND d.first_step BETWEEN v.step AND $2)
ORDER BY v.step, r.request_id
"""


def read_lags(db: duckdb.DuckDBPyConnection, engine_id: int) -> CallLags | None:
    """The lags of all calls. None if the trace does not say what calls knew, or has more than `MOST_ROWS`."""
    if not _ordered(db, engine_id):
        return None
    query = "SELECT call, seen_step FROM call_lag WHERE engine_id = $1 ORDER BY call"
    return CallLags(**_numpy(db, query, engine_id))


def read_step_lags(db: duckdb.DuckDBPyConnection, engine_id: int, lags: CallLags) -> NDArray[np.int64]:
    """For each step, in order: how many forwards before it its call had not taken in; see `step_lags`."""
    calls = _numpy(db, _ENDS, engine_id)
    query = "SELECT step, epoch_ns(ts) AS ts FROM step WHERE engine_id = $1 ORDER BY step"
    return step_lags(calls, _numpy(db, query, engine_id), lags)


def read_step_calls(
    db: duckdb.DuckDBPyConnection, engine_id: int, step: int, lags: CallLags
) -> StepCalls | None:
    """The calls of one step. None if the recording has no such step."""
    begins = db.execute(
        "SELECT epoch_ns(ts) FROM step WHERE engine_id = $1 AND step = $2", [engine_id, step]
    ).fetchall()
    if not begins:
        return None
    ((ts,),) = begins
    rows = db.execute(_CALLS, [engine_id, step, ts]).fetchall()
    columns = {
        name: np.array([row[at] for row in rows], np.int64)
        for name, at in (("call", 0), ("num_calls", 1), ("ts", -2), ("last_ts", -1))
    }
    row_numbers = np.arange(len(rows))
    seen_steps = lags.seen_by(calls_at(columns, row_numbers, np.full(len(rows), ts, np.int64))).tolist()
    calls = []
    for row, last in zip(rows, seen_steps, strict=True):
        values: tuple[Any, ...] = (*row[:-3], None if last == MISSING else last)
        calls.append(StepCall(*values))
    own = next((call for call, row in zip(calls, rows, strict=True) if row[-3]), None)
    between = [call for call in calls if call is not own and (call.first_step or step) >= step]
    stalled = db.execute(_STALLED, [engine_id, step, ts]).fetchall()
    return StepCalls(
        step, own, tuple(between[-MOST_CALLS:]), len(between), tuple(StalledRequest(*row) for row in stalled)
    )


def _ordered(db: duckdb.DuckDBPyConnection, engine_id: int) -> bool:
    tables = {name for (name,) in db.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    tables |= {name for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not {"call", "call_request"} <= tables:
        return False
    query = "SELECT count(*) FROM (SELECT 1 FROM call_request WHERE engine_id = $1 LIMIT 1)"
    ((has_order,),) = db.execute(query, [engine_id]).fetchall()
    ((rows,),) = db.execute("SELECT count(*) FROM step_request WHERE engine_id = $1", [engine_id]).fetchall()
    return bool(has_order) and rows <= MOST_ROWS


def _numpy(db: duckdb.DuckDBPyConnection, query: str, engine_id: int) -> dict[str, NDArray[np.int64]]:
    arrays = db.execute(query, [engine_id]).fetchnumpy()
    return {name: np.asarray(np.ma.filled(values, MISSING), np.int64) for name, values in arrays.items()}
