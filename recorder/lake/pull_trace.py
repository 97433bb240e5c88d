"""Takes one trace out of a lake, as the file that was pushed; and lists what a lake holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.finish import create_final
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.lake.lake_connection import open_lake
from fdtrace.recorder.lake.lake_errors import lake_failed
from fdtrace.recorder.lake.lake_name import LakeName, LakeTraceName
from fdtrace.recorder.lake.lake_tables import ROW, lake_sources
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.sql_text import quoted

AGAIN = "do it again"


def pull_trace(name: LakeTraceName, path: Path) -> str:
    """Write a trace of a lake to `path`, where nothing is. Returns its whole id.

    Args:
        name: the lake, and the trace's id or the beginning of it.
        path: the new file. What is left there after an error is not a trace.

    Raises:
        UsageError: no trace has this id, or several begin with it.
        LakeError: the lake cannot be read.
    """
    with open_lake(name.lake) as db:
        try:
            sources = lake_sources(db, name.lake)
            key = _found(db, sources, name)
            db.execute(
                f"SET temp_directory = '{quoted(path.absolute().parent)}'"
            )  # a large table is sorted there
            create_final(db, path)
            for table in schema.TABLES:
                _copy_table(db, table, sources[table.name], key)
            db.execute("DETACH final")
        except duckdb.Error as error:
            raise lake_failed(name.lake, "cannot be read", error, hint=AGAIN) from None
    return str(key[2])


def list_traces(
    lake: LakeName, *, deployment: str | None = None, newest: int | None = None
) -> list[dict[str, Any]]:
    """The rows of the lake's table `trace`, the newest first.

    Args:
        lake: the lake.
        deployment: of this one alone.
        newest: so many at most.

    Raises:
        LakeError: the lake cannot be read.
    """
    with open_lake(lake) as db:
        try:
            source = lake_sources(db, lake)["trace"]
            rows = db.execute(
                f"SELECT * REPLACE (created_at::TIMESTAMP AS created_at, ended_at::TIMESTAMP AS ended_at) "
                f"FROM ({source}) WHERE $1 IS NULL OR deployment = $1 "
                "ORDER BY trace_id DESC LIMIT $2",
                [deployment, newest],
            )
            names = [column[0] for column in rows.description or ()]
            return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
        except duckdb.Error as error:
            raise lake_failed(lake, "cannot be read", error, hint=AGAIN) from None


def _found(db: duckdb.DuckDBPyConnection, sources: dict[str, str], name: LakeTraceName) -> Sequence[Any]:
    """Day, deployment and id of the trace."""
    rows = db.execute(
        f"SELECT day, deployment, trace_id FROM ({sources['trace']}) WHERE starts_with(trace_id, $1) "
        "ORDER BY trace_id LIMIT 2",
        [name.trace_id],
    ).fetchall()
    if not rows:
        raise UsageError(f"{name.lake} holds no trace {name.trace_id}", hint=f"fdtrace list '{name.lake}'")
    if len(rows) > 1:
        both = f"{rows[0][2]} and {rows[1][2]} do"
        raise UsageError(
            f"several traces of {name.lake} begin with {name.trace_id}", why=both, hint="more of its id"
        )
    return tuple(rows[0])


def _copy_table(db: duckdb.DuckDBPyConnection, table: Table, source: str, key: Sequence[Any]) -> None:
    """Copy the trace's rows in the order in which the recording wrote them."""
    db.execute(
        f"INSERT INTO final.{table.name} SELECT {', '.join(table.names)} FROM ({source}) "
        "WHERE day = $1 AND deployment = $2 AND trace_id = $3 "
        f"ORDER BY {ROW.name}",
        [*key],
    )
