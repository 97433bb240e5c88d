"""Checks the values of a trace before anything is computed from them.

A NULL or a number that no recording can have is an error that names table and column. It never becomes a wrong figure.

Cheap checks run when a recording is read: bounds, which DuckDB keeps for each column. Checks that need all rows of
`step_request` run before a replay reschedules those rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.trace.json_values import json_object

TOKENS = 2**28
"""Most tokens, of anything: 268 million."""
SEQUENCES = 2**20
BLOCKS = 2**28
TIME = 2**62
"""Nanoseconds since 1970: the year 2116."""
LARGEST = {"INTEGER": 2**31 - 1, "BIGINT": 2**63 - 1, "TIMESTAMP_NS": TIME}

STEPS_APART = 10_000_000
"""How many steps may be missing between the first and the last step, in addition to 64 for each recorded step. So many
are lost in about a day."""
KINDS = ("prefill", "decode")
ENGINES_CHECKED = 20
SHOWN = 3
"""Most problems that one error names."""


@dataclass(frozen=True)
class Bounds:
    """The values that a column may hold: `least` to `most`. A `required` column is never NULL."""

    least: int = 0
    most: int | None = None
    required: bool = False


def _required(most: int | None = None, least: int = 0) -> Bounds:
    return Bounds(least, most, True)


BOUNDS: Mapping[str, Mapping[str, Bounds]] = {
    "engine": {
        "engine_id": _required(SEQUENCES),
        "max_num_batched_tokens": _required(TOKENS, 1),
        "max_profiled_tokens": Bounds(0, TOKENS),
        "num_max_dispatch_tokens_per_rank": Bounds(0, TOKENS),
        "max_num_seqs": _required(SEQUENCES, 1),
        "num_speculative_tokens": Bounds(0, 4096),
        "block_size": _required(SEQUENCES, 1),
        "num_blocks": _required(BLOCKS, 1),
        "max_model_len": _required(TOKENS, 1),
        "dp_rank": Bounds(0, SEQUENCES),
    },
    "step": {
        "step": _required(2**53),
        "token_budget": Bounds(-TOKENS, TOKENS),  # a formula may give a negative budget: nothing is handed out
        "num_tokens": _required(TOKENS, 1),
        "num_running_decodes": Bounds(0, SEQUENCES),
        "num_running": Bounds(0, SEQUENCES),
        **{
            name: Bounds(0, TOKENS)
            for name in (
                "num_scheduled_tokens", "num_prefill_tokens", "num_decode_tokens", "num_draft_tokens",
                "num_accepted_tokens", "num_predicted_tokens", "num_missing_blocks", "num_free_blocks", "num_blocks",
                "input_budget", "num_input_tokens",
            )
        },
    },
    "request": {
        "request": _required(),
        "num_prompt_tokens": Bounds(0, TOKENS),
        "num_cached_tokens": Bounds(0, TOKENS),
        "num_output_tokens": Bounds(0, TOKENS),
        "arrived_step": Bounds(0, 2**53),
        "priority": Bounds(-(2**31), 2**31 - 1),
    },
    "step_request": {
        "step": _required(2**53),
        "request": _required(),
        "num_tokens": _required(TOKENS, 1),
        "num_computed_tokens": _required(TOKENS),
        "num_draft_tokens": Bounds(0, 4096),
        "num_accepted_tokens": Bounds(0, 4096),
        "num_blocks": Bounds(0, BLOCKS),
    },
    "event": {"step": Bounds(0, 2**53)},
    "rank_memory": {"step": _required(2**53), "rank": _required(SEQUENCES, 1)},
}  # fmt: skip
"""Table -> column -> its bounds. A column of whole numbers that is not named here holds 0 and more, or NULL."""

TEXTS = {"engine": ("name",), "request": ("request_id",), "step_request": ("kind",), "event": ("kind",)}
"""Columns of text that are never NULL."""


def bounds_of(table: Table) -> dict[str, Bounds]:
    """The bounds of each column of numbers or times of a table."""
    own = BOUNDS.get(table.name, {})
    bounds = {
        column.name: own.get(column.name, Bounds())
        for column in table.columns
        if column.type in LARGEST and column.name != "engine_id"
    }
    if "engine_id" in own:
        bounds["engine_id"] = own["engine_id"]
    return {
        name: Bounds(bound.least, _most(table, name, bound), bound.required) for name, bound in bounds.items()
    }


def _most(table: Table, name: str, bounds: Bounds) -> int:
    kind = next(column.type for column in table.columns if column.name == name)
    return LARGEST[kind] if bounds.most is None else bounds.most


def table_problems(db: duckdb.DuckDBPyConnection, table: Table, engine_id: int | None) -> list[str]:
    """Values out of bounds and forbidden NULLs in a table, in the rows of one engine or (None) of all engines."""
    bounds, texts = bounds_of(table), TEXTS.get(table.name, ())
    times = {column.name for column in table.columns if column.type == "TIMESTAMP_NS"}
    expressions = ["count(*)"]
    for name in bounds:
        value = f"epoch_ns({name})" if name in times else name
        expressions += [f"count({name})", f"min({value})", f"max({value})"]
    expressions += [f"count({name})" for name in texts]
    where = "" if engine_id is None else f" WHERE engine_id = {int(engine_id)}"
    count, *values = db.execute(f"SELECT {', '.join(expressions)} FROM {table.name}{where}").fetchall()[0]
    problems = []
    for i, (name, bound) in enumerate(bounds.items()):
        problems += _bound_problems(
            f"column `{name}` of table `{table.name}`", bound, count, *values[3 * i : 3 * i + 3]
        )
    for name, present in zip(texts, values[3 * len(bounds) :], strict=True):
        problems += _bound_problems(
            f"column `{name}` of table `{table.name}`", _required(), count, present, 0, 0
        )
    return problems


def _bound_problems(
    column: str, bound: Bounds, count: int, present: int, low: int | None, high: int | None
) -> list[str]:
    most = f"{bound.least} to {bound.most}"
    if bound.required and present < count:
        return [f"{column} is NULL in {count - present} of {count} rows"]
    if low is not None and low < bound.least:
        return [f"{column} holds {low}, {most} is expected"]
    if high is not None and bound.most is not None and high > bound.most:
        return [f"{column} holds {high}, {most} is expected"]
    return []


def contradictory(path: Path, problems: Sequence[str]) -> TraceError:
    """The error for values that no recording can have."""
    more = f"; {len(problems) - SHOWN} more of this kind" if len(problems) > SHOWN else ""
    return TraceError(
        f"{path} holds values that no recording has",
        why="; ".join(problems[:SHOWN]) + more,
        hint="`fdtrace sql` shows its rows; copy it again, or ask for it where it was recorded",
    )


def check_engine(path: Path, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """TraceError if a row of `engine`, one of `rows`, holds values that no engine has."""
    problems = engine_problems(row, rows)
    if problems:
        raise contradictory(path, problems)


def engine_problems(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with `row`, one of the rows of `engine`."""
    problems = []
    ids = [engine["engine_id"] for engine in rows]
    if None in ids:
        problems.append("column `engine_id` of table `engine` is NULL")
    elif len(set(ids)) < len(ids):
        problems.append("table `engine` has two rows of one engine_id")
    for name, bound in bounds_of(schema.ENGINE).items():
        value = row[name]
        if isinstance(value, (int, type(None))):
            column = f"column `{name}` of table `engine`"
            problems += _bound_problems(column, bound, 1, int(value is not None), value, value)
    if row["name"] is None:
        problems.append("column `name` of table `engine` is NULL")
    if row["role"] not in ROLES:
        roles = ", ".join(ROLES)
        problems.append(
            f"column `role` of table `engine` is {row['role']!r:.100}, one of {roles} is expected"
        )
    if row["spec_method"] and row["num_speculative_tokens"] is None:
        problems.append(
            "column `num_speculative_tokens` of table `engine` is NULL, with a speculative method"
        )
    for name in ("config", "env"):
        if json_object(row[name]) is None:
            problems.append(f"column `{name}` of table `engine` is no JSON object")
    return list(dict.fromkeys(problems))


ROLES = ("mixed", "prefill", "decode")


def check_tables(db: duckdb.DuckDBPyConnection, path: Path, engine_id: int) -> None:
    """Raise a TraceError if rows of one engine hold values that no recording can have. Cheap: bounds and keys."""
    problems = [*rows_problems(db, engine_id), *key_problems(db, engine_id)]
    if problems:
        raise contradictory(path, problems)


def rows_problems(db: duckdb.DuckDBPyConnection, engine_id: int | None) -> list[str]:
    """Values out of bounds in the rows of one engine or (None) of all engines."""
    tables = (schema.STEP, schema.REQUEST, schema.STEP_REQUEST, schema.EVENT, schema.RANK_MEMORY)
    return [problem for table in tables for problem in table_problems(db, table, engine_id)]


def trace_problems(db: duckdb.DuckDBPyConnection, engines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the values of a whole trace. The keys of only the first engines are checked, to be quick."""
    problems = rows_problems(db, None)
    for row in engines[:ENGINES_CHECKED]:
        problems += engine_problems(row, engines)
        if row["engine_id"] is not None:
            problems += key_problems(db, row["engine_id"])
    return list(dict.fromkeys(problems))


KEYS = """
SELECT
    (SELECT count(*) - count(DISTINCT step) FROM step WHERE engine_id = $1) AS steps_twice,
    (SELECT count(*) - count(DISTINCT request) FROM request WHERE engine_id = $1) AS requests_twice,
    (SELECT count(*) FROM step WHERE engine_id IS NULL OR engine_id NOT IN (SELECT engine_id FROM engine)),
    (SELECT count(*) FROM request WHERE engine_id IS NULL OR engine_id NOT IN (SELECT engine_id FROM engine)),
    (SELECT count(*) FROM step_request WHERE engine_id IS NULL OR engine_id NOT IN (SELECT engine_id FROM engine)),
    (SELECT count(*) FROM step WHERE engine_id = $1 AND num_free_blocks > num_blocks),
    (SELECT count(*) FROM (
        SELECT arrived_at, lag(finished_at) OVER ids AS before, row_number() OVER ids AS nth FROM request
        WHERE engine_id = $1 WINDOW ids AS (PARTITION BY request_id ORDER BY request)
    ) WHERE nth > 1 AND (before IS NULL OR arrived_at < before - INTERVAL 1 SECOND)),
    (SELECT count(*) FROM event WHERE engine_id = $1 AND request IS NOT NULL AND request NOT IN
        (SELECT request FROM request WHERE engine_id = $1 AND request IS NOT NULL))
"""
"""Counts that are 0 in every sound recording, in the order of `KEY_SENTENCES`.

A client that has all outputs of a request may send its id again a moment before the engine drops the first request.
"""
KEY_SENTENCES = (
    "table `step` has {} rows of a step that is there already",
    "table `request` has {} rows of a request that is there already",
    "table `step` has {} rows of an engine that is not in `engine`",
    "table `request` has {} rows of an engine that is not in `engine`",
    "table `step_request` has {} rows of an engine that is not in `engine`",
    "table `step` has {} rows with more free blocks than blocks",
    "table `request` has {} rows of a request_id that is another's at that time",
    "table `event` has {} rows of a request that is not in `request`",
)


def key_problems(db: duckdb.DuckDBPyConnection, engine_id: int) -> list[str]:
    """What is wrong with the keys of `step` and `request`, and with what refers to them."""
    counts = db.execute(KEYS, [engine_id]).fetchall()[0]
    problems = [
        sentence.format(count) for sentence, count in zip(KEY_SENTENCES, counts, strict=True) if count
    ]
    first, last, count, arrived = db.execute(
        "SELECT min(step), max(step), count(*), (SELECT max(arrived_step) FROM request WHERE engine_id = $1) "
        "FROM step WHERE engine_id = $1", [engine_id]).fetchall()[0]  # fmt: skip
    if last is not None and last - first > 64 * count + STEPS_APART:
        problems.append(f"table `step` has {count} rows, but steps from {first} to {last}")
    if arrived is not None and arrived > (last or 0) + STEPS_APART:
        problems.append(f"column `arrived_step` of table `request` holds {arrived}, the last step is {last}")
    missing = rows_missing(db, engine_id)
    if missing < 0:
        problems.append(f"the rows of table `step_request` ran {-missing} tokens more than those of `step`")
    return problems


def rows_missing(db: duckdb.DuckDBPyConnection, engine_id: int) -> int:
    """Tokens that ran according to `step` and are in no row of `step_request`: their requests are not recorded."""
    ran_in_steps, ran_in_rows = db.execute(
        "SELECT (SELECT coalesce(sum(num_tokens), 0)::BIGINT FROM step WHERE engine_id = $1), "
        "(SELECT coalesce(sum(num_tokens), 0)::BIGINT FROM step_request WHERE engine_id = $1)",
        [engine_id],
    ).fetchall()[0]
    return int(ran_in_steps - ran_in_rows)


def check_step_requests(db: duckdb.DuckDBPyConnection, path: Path, engine_id: int) -> None:
    """Raise a TraceError if rows of `step_request` contradict `step` or `request`. A replay reschedules these rows.

    Reads all rows: about a second for 34 million.
    """
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
