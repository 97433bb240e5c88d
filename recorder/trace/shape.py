"""Checks that the tables of a trace's file are those of the schema: name, kind, columns and types of each.

fdtrace's queries read only tables that have passed these checks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.schema_tables import Table

FILE = "trace_file"
"""The name under which a connection attaches the trace's file."""

ColumnTypes = dict[str, str]
"""Name -> DuckDB type of the columns of one table."""


@dataclass(frozen=True)
class FileTables:
    """What the attached file holds: the columns of its tables, its tables with a computed column, and its views."""

    columns: dict[str, ColumnTypes]
    computing: frozenset[str]
    views: frozenset[str]


def file_tables(db: duckdb.DuckDBPyConnection) -> FileTables:
    """The tables and views of the attached file."""
    tables = db.execute(
        "SELECT table_name, contains(upper(sql), 'GENERATED ALWAYS') FROM duckdb_tables() "
        "WHERE database_name = $1 AND schema_name = 'main'",
        [FILE],
    ).fetchall()
    columns: dict[str, ColumnTypes] = {name: {} for name, _ in tables}
    rows = db.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = $1 AND schema_name = 'main' AND list_contains($2, table_name)",
        [FILE, list(columns)],
    ).fetchall()
    for table, column, kind in rows:
        columns[table][column] = kind
    views = db.execute("SELECT view_name FROM duckdb_views() WHERE database_name = $1", [FILE]).fetchall()
    return FileTables(
        columns,
        frozenset(name for name, computes in tables if computes),
        frozenset(name for (name,) in views),
    )


def check_head(db: duckdb.DuckDBPyConnection, path: Path, tables: FileTables) -> int:
    """The version of the file's schema.

    Raises:
        TraceError: the file is not fdtrace's, or its schema is one that this fdtrace cannot read.
    """
    if not tables.columns.keys() & {table.name for table in schema.TABLES}:
        raise TraceError(f"{path} is no trace", why="it is a DuckDB file, but not of fdtrace")
    _check_table(path, schema.TRACE, tables)
    rows = db.execute(f"SELECT schema_version, fdtrace_version FROM {FILE}.main.trace LIMIT 2").fetchall()
    if not rows:
        raise TraceError(f"{path} is no trace", why="its table `trace` is empty: one row is expected")
    if len(rows) > 1:
        raise TraceError(f"{path} is no trace", why="its table `trace` has several rows: one is expected")
    version, fdtrace_version = rows[0]
    if version is None or version < 1:
        raise TraceError(
            f"{path} does not say its schema",
            why=f"`schema_version` of table `trace` is {'NULL' if version is None else version}, not 1 to "
            f"{schema.SCHEMA_VERSION}",
        )
    if version > schema.SCHEMA_VERSION:
        raise TraceError(
            f"{path} was recorded by fdtrace {fdtrace_version}",
            why=f"its schema is version {version}, this fdtrace reads up to {schema.SCHEMA_VERSION}",
            hint="pip install -U fdtrace",
        )
    return int(version)


def table_sources(
    path: Path, tables: FileTables, elsewhere: Collection[str], *, earlier: bool
) -> dict[str, str]:
    """For each table of the schema, the query that reads it. Tables named in `elsewhere` are left out.

    `earlier`: the trace's schema is older than ours. Such a trace may lack a table or a column that a later schema
    added: the table is read as empty, the column as NULL.

    Raises:
        TraceError: a table of the schema is missing, or it is not as the schema says.
    """
    sources = {}
    for table in schema.TABLES:
        if table.name in elsewhere:
            continue
        if table.name not in tables.columns and earlier and table.name not in tables.views:
            sources[table.name] = source_of(table, None, "")
            continue
        _check_table(path, table, tables, earlier=earlier)
        sources[table.name] = source_of(table, tables.columns[table.name], f"{FILE}.main.{table.name}")
    return sources


def _check_table(path: Path, table: Table, tables: FileTables, *, earlier: bool = False) -> None:
    if table.name not in tables.columns:
        problem = (
            f"`{table.name}` is a view" if table.name in tables.views else f"it has no table `{table.name}`"
        )
        raise _wrong_tables(path, f"{problem}, a table is expected")
    check_columns(path, table, tables.columns[table.name], earlier=earlier)
    if table.name in tables.computing:
        raise _wrong_tables(
            path, f"a column of table `{table.name}` is computed when it is read, stored ones are expected"
        )


def check_columns(path: Path, table: Table, columns: ColumnTypes, *, earlier: bool = False) -> None:
    """Raise a TraceError if these columns are not those of the schema's table."""
    for column in table.columns:
        actual_type = columns.get(column.name)
        if actual_type is None and not earlier:
            raise _wrong_tables(
                path, f"table `{table.name}` has no column `{column.name}`, {column.type} is expected"
            )
        if actual_type is not None and actual_type != column.type:
            raise _wrong_tables(
                path,
                f"column `{column.name}` of table `{table.name}` is {actual_type}, {column.type} is expected",
            )


def _wrong_tables(path: Path, why: str) -> TraceError:
    return TraceError(
        f"the tables of {path} are not those of a trace",
        why=why,
        hint="docs/trace.md has the tables; copy the trace again, or ask for it where it was recorded",
    )


def source_of(table: Table, columns: Iterable[str] | None, source: str) -> str:
    """The query that reads a table of the schema from `source`. `columns` are those of the source; None: no source."""
    present = None if columns is None else set(columns)
    fields = ", ".join(
        column.name
        if present is not None and column.name in present
        else f"NULL::{column.type} AS {column.name}"
        for column in table.columns
    )
    return f"SELECT {fields} WHERE false" if present is None else f"SELECT {fields} FROM {source}"
