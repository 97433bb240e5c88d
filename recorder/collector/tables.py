"""Converts decoded rows to what DuckDB takes: numpy columns in which -1 stands for NULL."""

from __future__ import annotations

from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.order_decoder import DID
from fdtrace.recorder.schema_tables import Column, Table
from fdtrace.recorder.trace.column_values import MISSING, NO_PRIORITY, ColumnArrays

TEXT = {"VARCHAR"}
WIDE = ("BIGINT", "UBIGINT", "HUGEINT", "TIMESTAMP_NS")
"""Types that hold 63 bits."""

LIMITS = {"INTEGER": (-(1 << 31), (1 << 31) - 1), "TIMESTAMP_NS": (2 - (1 << 63), (1 << 63) - 2)}
"""The least and the largest number of types that cannot hold every number of 64 bits. Other times are "infinity"."""


class CodedNames(NamedTuple):
    """The decoder gives a column of names as numbers, in the column `source`. The names begin with number `first`."""

    source: str
    first: int
    names: tuple[str, ...]


CODED = {
    "kind": CodedNames("prefill", 0, ("decode", "prefill")),
    "not_admitted": CodedNames("reason", 1, wire.NOT_ADMITTED[1:]),
    "did": CodedNames("did_code", 1, DID[1:]),
}
"""Such columns by name. Other numbers than those of names stand for NULL."""


def unknown_of(column: Column) -> int:
    """The number that stands for NULL in a column of numbers."""
    return NO_PRIORITY if column.name == "priority" else MISSING


def writing_connection() -> duckdb.DuckDBPyConnection:
    """A database in memory, to write a trace with: in one thread, rows in their order."""
    db = duckdb.connect()
    db.execute("SET threads = 1")
    db.execute("SET preserve_insertion_order = true")
    # Else DuckDB 1.5 looks at some of the rows of a text column, and raises where all of them are NULL. At 0, a
    # column of objects is text, as all of ours are.
    db.execute("SET pandas_analyze_sample = 0")
    return db


PLAIN_TEXT = "VARCHAR USING COMPRESSION uncompressed"
"""The type of a text in a database of small blocks: DuckDB 1.5.0 cannot compress one that just fits into a block."""


def create(db: duckdb.DuckDBPyConnection, name: str, table: Table, text: str = "VARCHAR") -> None:
    """Create an empty table in an attached database. `text`: the type of its texts."""
    types = {"VARCHAR": text}
    columns = ", ".join(f"{column.name} {types.get(column.type, column.type)}" for column in table.columns)
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
    coded = CODED.get(name)
    if coded is not None and coded.source in columns:
        names = ", ".join(f"'{text}'" for text in coded.names)
        return f"[{names}][nullif({coded.source}::INTEGER - {coded.first - 1}, 0)] AS {name}"
    value = _number(column, columns.get(name), unknown_of(column))
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
    """Columns of rows in the schema's order."""
    return {column.name: array_of(column, [row[i] for row in rows]) for i, column in enumerate(table.columns)}


def array_of(column: Column, values: list[Any]) -> NDArray[Any]:
    """The values of a column: text as objects, lists as text, all else int64; None (NULL) becomes -1 in numbers."""
    if column.type.endswith("[]"):
        return np.array([",".join(map(str, value or ())) for value in values], dtype=object)
    if column.type in TEXT:
        return np.array(values, dtype=object)
    return np.array([-1 if value is None else value for value in values], np.int64)


def check_range(table: Table, columns: ColumnArrays) -> None:
    """ValueError if a number does not fit the column that it is for: no agent writes such numbers."""
    for column in table.columns:
        numbers = columns.get(column.name)
        if column.type in LIMITS and numbers is not None and len(numbers):
            check_limits(column, numbers.min(), numbers.max())


def check_limits(column: Column, least: Any, most: Any) -> None:
    """ValueError if not all numbers between two fit a column."""
    lowest, highest = LIMITS.get(column.type, (least, most))
    if not lowest <= least <= most <= highest:
        raise ValueError(f"a {column.name} that no {column.type} can hold")


def joined(pieces: list[ColumnArrays]) -> ColumnArrays:
    """The columns of tables that have the same columns, one after the other."""
    if len(pieces) == 1:
        return {name: np.ascontiguousarray(column) for name, column in pieces[0].items()}
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def fitting(value: Any, column: Column) -> Any:
    """A value of an engine's row; None if its column cannot hold the value."""
    if column.type in TEXT:
        return None if value is None else str(value).encode(errors="replace").decode()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and -(1 << 31) < value < 1 << (63 if column.type in WIDE else 31):
        return value
    return None
