"""What a lake holds: the tables of the schema, each row with its trace; `trace` says more of each.

Every table is partitioned by deployment and by the day on which the recording began, UTC.
"""

from __future__ import annotations

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.lake.lake_connection import LAKE
from fdtrace.recorder.lake.lake_errors import LakeError
from fdtrace.recorder.schema_tables import Column, Table
from fdtrace.recorder.trace.shape import ColumnTypes, source_of

KEY = (
    Column("trace_id", "VARCHAR", "the trace: when its recording began, UTC, and a digest of what it is"),
    Column("deployment", "VARCHAR", "the deployment that it is of, as the push named it"),
    Column("day", "DATE", "the day on which its recording began, UTC"),
)
"""The first columns of every table of a lake."""

ROW = Column("trace_row", "BIGINT", "orders the rows of one table of one trace as the recording wrote them")
"""The next column of every table: DuckLake does not keep the order of rows that it writes."""

TRACE_COLUMNS = (
    Column("host", "VARCHAR", "host of its first engine"),
    Column("labels", "MAP(VARCHAR, VARCHAR)", "labels that the push gave it"),
    Column("pushed_at", "TIMESTAMP", "when it was pushed, UTC"),
    Column("num_engines", "BIGINT", "its engines"),
    Column("num_steps", "BIGINT", "its steps"),
    Column("num_requests", "BIGINT", "its requests"),
    Column("num_exceeded", "BIGINT", "steps that ran more tokens than a limit allows, as in view `exceeded`"),
)
"""Further columns of the lake's table `trace`."""


def lake_table(table: Table) -> Table:
    """The lake's table of a table of the schema."""
    more = TRACE_COLUMNS if table is schema.TRACE else ()
    return Table(
        table.name,
        table.comment,
        (*KEY, ROW, *more, *table.columns),
        ("trace_id", *table.order_by),
        table.since,
    )


def present_tables(db: duckdb.DuckDBPyConnection) -> dict[str, ColumnTypes]:
    """The tables that the attached lake has, and the types of their columns."""
    rows = db.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = $1 AND schema_name = 'main'",
        [LAKE],
    ).fetchall()
    tables: dict[str, ColumnTypes] = {}
    for table, column, kind in rows:
        tables.setdefault(table, {})[column] = kind
    return tables


def make_tables(db: duckdb.DuckDBPyConnection, lake: object) -> None:
    """Create what the lake lacks: all tables of a new one, and columns that a newer schema has brought.

    The caller holds the lake's lock.

    Raises:
        LakeError: the lake has a table that is none of fdtrace's.
    """
    present = present_tables(db)
    if not present:
        db.execute(f"CALL {LAKE}.set_option('parquet_compression', 'zstd')")
    db.execute("BEGIN")
    for table in map(lake_table, schema.TABLES):
        if table.name not in present:
            columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
            db.execute(f"CREATE TABLE {LAKE}.main.{table.name} ({columns})")
            db.execute(f"ALTER TABLE {LAKE}.main.{table.name} SET PARTITIONED BY (day, deployment)")
            continue
        check_types(lake, table, present[table.name])
        for column in table.columns:
            if column.name not in present[table.name]:
                db.execute(f"ALTER TABLE {LAKE}.main.{table.name} ADD COLUMN {column.name} {column.type}")
    db.execute("COMMIT")


def is_complete(db: duckdb.DuckDBPyConnection) -> bool:
    """Whether the lake has every table and column of this fdtrace."""
    present = present_tables(db)
    return all(
        set(table.names) <= set(present.get(table.name, ())) for table in map(lake_table, schema.TABLES)
    )


def check_types(lake: object, table: Table, columns: ColumnTypes) -> None:
    """LakeError if a column of the lake has another type than the schema's."""
    for column in table.columns:
        kind = columns.get(column.name, column.type)
        if kind != column.type:
            raise LakeError(
                f"the tables of {lake} are not those of fdtrace",
                why=f"column `{column.name}` of table `{table.name}` is {kind}, {column.type} is expected",
                hint="give traces a lake of their own",
            )


def lake_sources(db: duckdb.DuckDBPyConnection, lake: object) -> dict[str, str]:
    """For each table of the schema, the query that reads it from the lake. What an older lake lacks is NULL.

    Raises:
        LakeError: it holds no traces, or other tables.
    """
    present = present_tables(db)
    if schema.TRACE.name not in present:
        raise LakeError(
            f"{lake} holds no trace", why="it has no table `trace`", hint=f"`fdtrace push T {lake}`"
        )
    sources = {}
    for table in map(lake_table, schema.TABLES):
        columns = present.get(table.name)
        check_types(lake, table, columns or {})
        sources[table.name] = source_of(table, columns, f"{LAKE}.main.{table.name}")
    return sources
