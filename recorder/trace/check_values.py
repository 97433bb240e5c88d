"""Checks the values of a trace before anything is computed from them.

A NULL or a number that no recording can have is an error that names table and column. It never becomes a wrong figure.

These checks are cheap: bounds, which DuckDB keeps for each column. `check_keys` has those that read rows.
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
    where = "" if engine_id is None else f" WHERE engine_id = {int(engine_id)}"
    ((count,),) = db.execute(f"SELECT count(*) FROM {table.name}{where}").fetchall()
    names = [*bounds, *texts]
    groups = [names] if count <= FEW_ROWS else [[name] for name in names]
    problems = []
    for group in groups:
        limits = _limits(db, table, group, where)
        for name in group:
            bound = bounds.get(name, Bounds(0, None, True))
            column = f"column `{name}` of table `{table.name}`"
            problems += _bound_problems(column, bound, count, *limits[name])
    return problems


FEW_ROWS = 200_000
"""Tables with more rows are asked column by column. DuckDB answers min() and max() of a column, and count() of one
without NULL, without reading rows. But if it has to read one column of a query (all NULL), it reads all of them."""


def _limits(
    db: duckdb.DuckDBPyConnection, table: Table, names: Sequence[str], where: str
) -> dict[str, tuple[int, Any, Any]]:
    """For each column: the rows with a value (all rows where NULL is allowed), the lowest and the highest."""
    times = {column.name for column in table.columns if column.type == "TIMESTAMP_NS"}
    required = {name for name, bound in bounds_of(table).items() if bound.required} | {
        *TEXTS.get(table.name, ())
    }
    inner, outer = [], []
    for name in names:
        inner.append(f"{f'count({name})' if name in required else 'count(*)'} AS present_{name}")
        edges = () if name in TEXTS.get(table.name, ()) else ("low", "high")  # those of text are not kept
        if edges:
            inner.append(f"min({name}) AS low_{name}, max({name}) AS high_{name}")
        outer.append(f"present_{name}")
        outer += [f"epoch_ns({edge}_{name})" if name in times else f"{edge}_{name}" for edge in edges]
        outer += [] if edges else ["NULL", "NULL"]
    ((*values,),) = db.execute(
        f"SELECT {', '.join(outer)} FROM (SELECT {', '.join(inner)} FROM {table.name}{where})"
    ).fetchall()
    return {name: (values[3 * at], *values[3 * at + 1 : 3 * at + 3]) for at, name in enumerate(names)}


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


STEP_TABLES = (schema.STEP, schema.STEP_REQUEST)
REQUEST_TABLES = (schema.REQUEST, schema.EVENT, schema.RANK_MEMORY)


def rows_problems(
    db: duckdb.DuckDBPyConnection,
    engine_id: int | None,
    tables: Sequence[Table] = (*STEP_TABLES, *REQUEST_TABLES),
) -> list[str]:
    """Values out of bounds in these tables, in the rows of one engine or (None) of all engines."""
    return [problem for table in tables for problem in table_problems(db, table, engine_id)]
