"""Checks that the rows of a trace's tables fit together: keys, what refers to them, sums.

Three kinds, by what they read. Those of `step` are cheap: they run when a recording is opened. Those of requests, of
events and of the sums of `step_request` read these tables: they run before figures are made of them. Those of each row
of `step_request` run before a replay reschedules them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.check_values import (
    REQUEST_TABLES,
    STEP_TABLES,
    contradictory,
    engine_problems,
    rows_problems,
)
from fdtrace.recorder.trace.column_values import Ints
from fdtrace.recorder.trace.file import machine_memory
from fdtrace.recorder.trace.read_step_numbers import distinct, read_step_numbers

STEPS_APART = 10_000_000
"""How many steps may be missing between the first and the last step, in addition to 64 for each recorded step. So many
are lost in about a day."""
BYTES_A_ROW = 27
"""Memory that the acceptances of rescheduled requests take while they are read, of which DuckDB sorts 16 at once. As
measured at 126 million rows."""
KINDS = ("prefill", "decode")
ENGINES_CHECKED = 20


def check_tables(db: duckdb.DuckDBPyConnection, path: Path, engine_id: int, numbers: Ints) -> None:
    """Raise a TraceError if steps of one engine, or their rows, hold values that no recording can have. Cheap: bounds.

    `numbers`: those of its steps, as `read_step_numbers` gives them.
    """
    problems = [*rows_problems(db, engine_id, STEP_TABLES), *step_problems(db, engine_id, numbers)]
    if problems:
        raise contradictory(path, problems)


def check_references(db: duckdb.DuckDBPyConnection, path: Path, engine_id: int) -> None:
    """Raise a TraceError if requests and events hold such values, or do not fit together. Reads these tables."""
    problems = [*rows_problems(db, engine_id, REQUEST_TABLES), *reference_problems(db, engine_id)]
    if problems:
        raise contradictory(path, problems)


def trace_problems(db: duckdb.DuckDBPyConnection, engines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the values of a whole trace. The keys of only the first engines are checked, to be quick."""
    problems = rows_problems(db, None)
    for row in engines[:ENGINES_CHECKED]:
        problems += engine_problems(row, engines)
        number = row["engine_id"]
        if number is not None:
            problems += step_problems(db, number, read_step_numbers(db, number))
            problems += reference_problems(db, number)
    return list(dict.fromkeys(problems))


def step_problems(db: duckdb.DuckDBPyConnection, engine_id: int, numbers: Ints) -> list[str]:
    """What is wrong with the keys of `step`, and with the engines to which rows belong."""
    twice = 0 if (numbers[1:] > numbers[:-1]).all() else len(numbers) - distinct(numbers)
    counts = [(twice, "table `step` has {} rows of a step that is there already")]
    for table in ("step", "request", "step_request"):
        sentence = f"table `{table}` has {{}} rows of an engine that is not in `engine`"
        counts.append((_of_no_engine(db, table), sentence))
    counts.append(
        (_more_free_than_all(db, engine_id), "table `step` has {} rows with more free blocks than blocks")
    )
    problems = [sentence.format(count) for count, sentence in counts if count]
    first, last, count, arrived = db.execute(
        "SELECT min(step), max(step), count(*), (SELECT max(arrived_step) FROM request WHERE engine_id = $1) "
        "FROM step WHERE engine_id = $1", [engine_id]).fetchall()[0]  # fmt: skip
    if last is not None and last - first > 64 * count + STEPS_APART:
        problems.append(f"table `step` has {count} rows, but steps from {first} to {last}")
    if arrived is not None and arrived > (last or 0) + STEPS_APART:
        problems.append(f"column `arrived_step` of table `request` holds {arrived}, the last step is {last}")
    return problems


def _of_no_engine(db: duckdb.DuckDBPyConnection, table: str) -> int:
    """Rows of an engine that is not in `engine`. They are counted only if the column's bounds leave room for one."""
    ((low, high, known, count),) = db.execute(
        f"SELECT min(engine_id), max(engine_id), count(engine_id), count(*) FROM {table}"
    ).fetchall()
    engines = {number for (number,) in db.execute("SELECT engine_id FROM engine").fetchall()}
    if known == count and (not count or engines.issuperset(range(low, min(high, low + len(engines)) + 1))):
        return 0
    ((count,),) = db.execute(
        f"SELECT count(*) FROM {table} WHERE engine_id IS NULL OR engine_id NOT IN (SELECT engine_id FROM engine)"
    ).fetchall()
    return int(count)


def _more_free_than_all(db: duckdb.DuckDBPyConnection, engine_id: int) -> int:
    """Steps with more free blocks than blocks. They are counted only if the columns' bounds leave room for one."""
    ((most, least),) = db.execute(
        "SELECT max(num_free_blocks), min(num_blocks) FROM step WHERE engine_id = $1", [engine_id]
    ).fetchall()
    if most is None or least is None or most <= least:
        return 0
    ((count,),) = db.execute(
        "SELECT count(*) FROM step WHERE engine_id = $1 AND num_free_blocks > num_blocks", [engine_id]
    ).fetchall()
    return int(count)


def reference_problems(db: duckdb.DuckDBPyConnection, engine_id: int) -> list[str]:
    """What is wrong with the keys of `request`, with what refers to them, and with the sums of `step_request`."""
    requests: Any = db.execute("SELECT request FROM request WHERE engine_id = $1", [engine_id]).fetchnumpy()
    numbers = np.ma.compressed(requests["request"])
    num_distinct = distinct(numbers)
    counts = (
        (
            len(requests["request"]) - num_distinct,
            "table `request` has {} rows of a request that is there already",
        ),
        (
            _anothers_ids(db, engine_id),
            "table `request` has {} rows of a request_id that is another's at that time",
        ),
        (
            _events_of_no_request(db, engine_id, numbers, num_distinct),
            "table `event` has {} rows of a request that is not in `request`",
        ),
        (
            -rows_missing(db, engine_id),
            "the rows of table `step_request` ran {} tokens more than those of `step`",
        ),
    )
    return [sentence.format(count) for count, sentence in counts if count > 0]


def _anothers_ids(db: duckdb.DuckDBPyConnection, engine_id: int) -> int:
    """Requests whose id is that of an earlier request which has not ended.

    A client that has all outputs of a request may send its id again a moment before the engine drops the first request.
    Only ids that may be there twice are compared, by their hashes: text of millions of rows takes much memory.
    """
    ((count,),) = db.execute(
        "WITH twice AS (SELECT hash(request_id) AS hash FROM request WHERE engine_id = $1 GROUP BY ALL "
        "HAVING count(*) > 1) "
        "SELECT count(*) FROM ("
        "SELECT arrived_at, lag(finished_at) OVER ids AS before, row_number() OVER ids AS nth FROM request "
        "WHERE engine_id = $1 AND hash(request_id) IN (FROM twice) "
        "WINDOW ids AS (PARTITION BY request_id ORDER BY request)"
        ") WHERE nth > 1 AND (before IS NULL OR arrived_at < before - INTERVAL 1 SECOND)",
        [engine_id],
    ).fetchall()
    return int(count)


def _events_of_no_request(
    db: duckdb.DuckDBPyConnection, engine_id: int, numbers: Ints, num_distinct: int
) -> int:
    """Events of a request that is not in `request`. If the requests' numbers have no gap, bounds are enough."""
    ((low, high),) = db.execute(
        "SELECT min(request), max(request) FROM event WHERE engine_id = $1", [engine_id]
    ).fetchall()
    if low is None:
        return 0
    first, last = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, -1)
    if num_distinct == last - first + 1 and first <= low and high <= last:
        return 0
    ((count,),) = db.execute(
        "SELECT count(*) FROM event WHERE engine_id = $1 AND request IS NOT NULL AND request NOT IN "
        "(SELECT request FROM request WHERE engine_id = $1 AND request IS NOT NULL)",
        [engine_id],
    ).fetchall()
    return int(count)


def rows_missing(db: duckdb.DuckDBPyConnection, engine_id: int) -> int:
    """Tokens that ran according to `step` and are in no row of `step_request`: their requests are not recorded."""
    ran_in_steps, ran_in_rows = db.execute(
        "SELECT (SELECT coalesce(sum(num_tokens), 0)::BIGINT FROM step WHERE engine_id = $1), "
        "(SELECT coalesce(sum(num_tokens), 0)::BIGINT FROM step_request WHERE engine_id = $1)",
        [engine_id],
    ).fetchall()[0]
    return int(ran_in_steps - ran_in_rows)


def _refuse_too_many(db: duckdb.DuckDBPyConnection, path: Path, engine_id: int) -> None:
    query = "SELECT count(*) FROM step_request WHERE engine_id = $1"
    ((count,),) = db.execute(query, [engine_id]).fetchall()
    needed, memory = count * BYTES_A_ROW, machine_memory()
    if needed > memory:
        raise TraceError(
            f"{path} is too large to be rescheduled here",
            why=f"its {count:,} rows of `step_request` need about {needed / 2**30:,.0f} GiB of memory, and this "
            f"machine has {memory / 2**30:,.0f}",
            hint="--as-recorded replays it without these rows; or record fewer steps (`--steps`, a flight's window)",
        )


def check_step_requests(db: duckdb.DuckDBPyConnection, path: Path, engine_id: int) -> None:
    """Raise a TraceError if rows of `step_request` contradict `step` or `request`. A replay reschedules these rows.

    Reads all rows: about a second for 34 million. More than memory can hold are refused before that.
    """
    _refuse_too_many(db, path, engine_id)
    kinds = ", ".join(f"'{kind}'" for kind in KINDS)
    bad, unknown, accepted, prefilled = db.execute(
        f"SELECT count(*) FILTER (WHERE kind NOT IN ({kinds})), count(*) FILTER (WHERE request NOT IN "
        "(SELECT request FROM request WHERE engine_id = $1)), "
        "count(*) FILTER (WHERE kind = 'decode' AND num_accepted_tokens IS NULL), "
        "coalesce(sum(num_tokens) FILTER (WHERE kind = 'prefill'), 0) "
        "FROM step_request WHERE engine_id = $1", [engine_id]).fetchall()[0]  # fmt: skip
    missing, over = db.execute(
        "SELECT count(*) FILTER (WHERE s.step IS NULL), count(*) FILTER (WHERE q.num_tokens > s.num_tokens) FROM "
        "(SELECT step, sum(num_tokens) AS num_tokens FROM step_request WHERE engine_id = $1 GROUP BY step) q "
        "LEFT JOIN (FROM step WHERE engine_id = $1) s USING (step)", [engine_id]).fetchall()[0]  # fmt: skip
    counts = (
        (bad, "rows that are neither prefill nor decode"),
        (unknown, "rows of a request that is not in `request`"),
        (accepted, "decodes without num_accepted_tokens"),
        (missing, "steps that are not in `step`"),
        (over, "steps whose rows ran more tokens than `step` says: rows are there twice, or too large"),
    )
    problems = [f"table `step_request` has {count} {problem}" for count, problem in counts if count]
    in_steps = db.execute(
        "SELECT sum(num_prefill_tokens) FROM step WHERE engine_id = $1", [engine_id]
    ).fetchall()
    if in_steps[0][0] not in (None, prefilled) and not rows_missing(db, engine_id):
        problems.append(
            f"the prefills of `step_request` ran {prefilled} tokens, those of `step` {in_steps[0][0]}"
        )
    if problems:
        raise contradictory(path, problems)
