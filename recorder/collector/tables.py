"""Converts decoded rows to what DuckDB takes: numpy columns in which -1 stands for NULL."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.order_decoder import DID
from fdtrace.recorder.schema_tables import Column, Table
from fdtrace.recorder.trace.column_values import ColumnArrays

TEXT = {"VARCHAR"}
INT32 = np.iinfo(np.int32)


def create(db: duckdb.DuckDBPyConnection, name: str, table: Table) -> None:
    """Create an empty table in an attached database."""
    columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
    db.execute(f"CREATE TABLE {name} ({columns})")


def insert(db: duckdb.DuckDBPyConnection, name: str, table: Table, columns: ColumnArrays) -> None:
    """Insert columns into a table of an attached database."""
    decoded = columns  # noqa: F841  DuckDB finds it in this frame; to register a view of it would take longer
    db.execute(f"INSERT INTO {name} SELECT {values(table, columns)} FROM decoded")


def values(table: Table, columns: ColumnArrays) -> str:
    """The SQL expressions that make a table's rows from the decoder's numpy columns (-1 stands for NULL)."""
    return ", ".join(_value(column, columns) for column in table.columns)


def _value(column: Column, columns: ColumnArrays) -> str:
    name = column.name
    if name == "kind" and "prefill" in columns:
        return "CASE WHEN prefill THEN 'prefill' ELSE 'decode' END AS kind"
    if name == "not_admitted" and "reason" in columns:
        names = ", ".join(f"'{reason}'" for reason in wire.NOT_ADMITTED[1:])
        return f"[{names}][nullif(reason, 0)] AS not_admitted"
    if name == "did" and "did_code" in columns:
        names = ", ".join(f"'{did}'" for did in DID[1:])
        return f"[{names}][nullif(did_code, 0)] AS did"
    unknown = wire.NO_PRIORITY if name == "priority" else -1
    value = _number(column, columns.get(name), unknown)
    if name not in columns:
        value = f"NULL::{column.type}"
    elif column.type.endswith("[]"):
        value = f"string_split(nullif({name}, ''), ',')::{column.type}"
    elif column.type == "TIMESTAMP_NS":
        value = f"make_timestamp_ns(nullif({name}, -1))"
    elif column.type in TEXT:
        value = f"{name}::{column.type}"
    return f"{value} AS {name}"


def _number(column: Column, numbers: NDArray[Any] | None, unknown: int) -> str:
    """The expression of a column of numbers. DuckDB plans each `nullif` anew, which takes longer than a look here."""
    if numbers is None or numbers.dtype.kind not in "iu":
        return f"nullif({column.name}, {unknown})::{column.type}"
    is_unknown = numbers == unknown
    if not is_unknown.any():
        return f"{column.name}::{column.type}"
    if is_unknown.all():
        return f"NULL::{column.type}"
    return f"nullif({column.name}, {unknown})::{column.type}"


def columns_of(table: Table, rows: list[tuple[Any, ...]]) -> ColumnArrays:
    """Columns of rows in the schema's order: text as objects, lists as text, all else int64 with -1 for None."""
    columns: ColumnArrays = {}
    for i, column in enumerate(table.columns):
        values = [row[i] for row in rows]
        if column.type.endswith("[]"):
            texts = [",".join(map(str, value or ())) for value in values]
            columns[column.name] = np.array(texts, dtype=object)
        elif column.type in TEXT:
            columns[column.name] = np.array(values, dtype=object)
        else:
            columns[column.name] = np.array([-1 if v is None else v for v in values], np.int64)
    return columns


def check_range(table: Table, columns: ColumnArrays) -> None:
    """ValueError if a number does not fit the INTEGER column that it is for: no agent writes such numbers."""
    for column in table.columns:
        numbers = columns.get(column.name)
        if column.type != "INTEGER" or numbers is None or not len(numbers):
            continue
        if numbers.min() < INT32.min or numbers.max() > INT32.max:
            raise ValueError(f"a {column.name} beyond 32 bits")
