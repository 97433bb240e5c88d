"""Columns of a table that are read from its trace when they are first asked for: a large trace has more than memory."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.column_values import MISSING, NO_PRIORITY, Columns, Ints

if TYPE_CHECKING:
    import duckdb

    from fdtrace.recorder.schema_tables import Column, Table

ROWS_AT_ONCE = 1024
"""Rows of a table that are read together when somebody looks at one of them."""
MOST_PIECES = 64
"""Most such pieces that are kept."""

SMALL = (("TINYINT", 2**7), ("SMALLINT", 2**15), ("INTEGER", 2**31))
"""Types of DuckDB and numpy for values from minus to below this number."""


class ColumnsOnDemand(Mapping[str, NDArray[Any]]):
    """A table's columns by name. `columns[name]` is int64 as everywhere; `stored` needs less memory."""

    @abstractmethod
    def stored(self, name: str) -> NDArray[Any]:
        """A column in the type in which it is kept: whole numbers of any size, signed. KeyError: there is none."""

    @abstractmethod
    def value(self, name: str, entry: int) -> Any:
        """One entry of a column, without reading all of the column. KeyError: there is no such column."""

    @abstractmethod
    def is_known(self, name: str) -> bool:
        """Whether any row of a column of numbers has a value. KeyError: there is no such column."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        stored = self.stored(name)
        return stored.astype(np.int64) if stored.dtype.kind == "i" and stored.dtype.itemsize < 8 else stored


def stored_column(columns: Columns, name: str) -> NDArray[Any]:
    """A column of numbers in the smallest type that there is of it. KeyError: there is no such column."""
    return columns.stored(name) if isinstance(columns, ColumnsOnDemand) else columns[name]


def entry_of(columns: Columns, name: str, entry: int) -> Any:
    """One entry of a column. KeyError: there is no such column."""
    return columns.value(name, entry) if isinstance(columns, ColumnsOnDemand) else columns[name][entry]


def any_known(columns: Columns, name: str) -> bool:
    """Whether a column of numbers is there and any of its rows has a value."""
    if name not in columns:
        return False
    if isinstance(columns, ColumnsOnDemand):
        return columns.is_known(name)
    return bool((np.asarray(columns[name]) != MISSING).any())


def in_memory(columns: Columns) -> Columns:
    """The same columns, all of them read."""
    return dict(columns) if isinstance(columns, ColumnsOnDemand) else columns


class TableColumns(ColumnsOnDemand):
    """One engine's columns of a table of a complete trace, in the order of its key. Safe from any thread.

    Each column is read once. A column that was not read before the trace was closed raises a TraceError.
    """

    def __init__(
        self,
        table: Table,
        engine_id: int,
        cursors: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]],
        keys: Callable[[duckdb.DuckDBPyConnection], Ints],
        *skip: str,
    ) -> None:
        """The columns of `table` but the engine's number and those to `skip`.

        Args:
            table: the table. Its key in an engine is the second column that it is sorted by.
            engine_id: the engine.
            cursors: gives a cursor of the trace's connection; no two threads may share one.
            keys: reads the key of each row, in the order of the rows.
            skip: columns that are left out.
        """
        self._columns: dict[str, Column] = {
            column.name: column for column in table.columns if column.name not in ("engine_id", *skip)
        }
        self._table, self._engine_id, self._key = table.name, engine_id, table.order_by[1]
        self._cursors, self._read_keys = cursors, keys
        self._read: dict[str, NDArray[Any]] = {}
        self._order: NDArray[np.intp] | None = None
        self._pieces: dict[int, dict[str, NDArray[Any]]] = {}
        self._reading, self._reading_piece = threading.Lock(), threading.Lock()

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def stored(self, name: str) -> NDArray[Any]:
        """A column in the smallest type that holds its values."""
        column = self._columns[name]
        values = self._read.get(name)
        if values is not None:
            return values
        with self._reading:
            if self._key not in self._read:
                with self._cursors() as cursor:
                    keys = self._read_keys(cursor)
                if not (keys[1:] > keys[:-1]).all():
                    self._order = np.argsort(keys)
                    keys = keys[self._order]
                self._read[self._key] = keys
            if name not in self._read:
                self._read[name] = self._read_column(column)
            return self._read[name]

    def _read_column(self, column: Column) -> NDArray[Any]:
        length = len(self._read[self._key])
        with self._cursors() as cursor:
            kind = _kind(column)
            if kind == "BIGINT" and column.type != "TIMESTAMP_NS":
                ((low, high, num_known),) = cursor.execute(
                    f"SELECT min({column.name}), max({column.name}), count({column.name}) FROM {self._table} "
                    "WHERE engine_id = $1",
                    [self._engine_id],
                ).fetchall()
                missing = _missing(column)
                if not num_known or (low == high and num_known == length):
                    return np.broadcast_to(np.int64(missing if low is None else low), length)
                reach = max(abs(low), high + 1, abs(missing) if num_known < length else 0)
                kind = next((small for small, most in SMALL if reach <= most), "BIGINT")
            columns: Any = cursor.execute(
                f"SELECT {_field(column, kind)} FROM {self._table} WHERE engine_id = $1", [self._engine_id]
            ).fetchnumpy()
        values: NDArray[Any] = np.ma.getdata(columns[column.name])
        if len(values) != length:
            raise TraceError(f"table `{self._table}` has other rows than before", hint="open the trace again")
        return values if self._order is None else values[self._order]

    def value(self, name: str, entry: int) -> Any:
        """One entry of a column. The rows around it are read together, with all columns."""
        column = self._columns[name]
        values = self._read.get(column.name)
        if values is not None:
            return values[entry]
        keys = self.stored(self._key)
        at, within = divmod(entry, ROWS_AT_ONCE)
        with self._reading_piece:
            if at not in self._pieces:
                if len(self._pieces) >= MOST_PIECES:
                    self._pieces.pop(next(iter(self._pieces)))
                self._pieces[at] = self._read_piece(keys[at * ROWS_AT_ONCE : (at + 1) * ROWS_AT_ONCE])
            return self._pieces[at][name][within]

    def is_known(self, name: str) -> bool:
        """Whether any row of a column has a value."""
        with self._cursors() as cursor:
            ((high,),) = cursor.execute(
                f"SELECT max({self._columns[name].name}) FROM {self._table} WHERE engine_id = $1",
                [self._engine_id],
            ).fetchall()
        return high is not None

    def _read_piece(self, keys: Ints) -> dict[str, NDArray[Any]]:
        fields = ", ".join(_field(column, _kind(column)) for column in self._columns.values())
        with self._cursors() as cursor:
            columns: Any = cursor.execute(
                f"SELECT {fields} FROM {self._table} WHERE engine_id = $1 AND {self._key} BETWEEN $2 AND $3 "
                f"ORDER BY {self._key}",
                [self._engine_id, int(keys[0]), int(keys[-1])],
            ).fetchnumpy()
        return {name: np.ma.getdata(values) for name, values in columns.items()}

    def __reduce__(self) -> NoReturn:
        raise TraceError(
            "this recording cannot be pickled",
            why="a part of it is still in its trace",
            hint="`recording.loaded()`, while the trace is open, gives one that can",
        )


def _kind(column: Column) -> str:
    return column.type if column.type in ("VARCHAR", "DOUBLE") else "BIGINT"


def _missing(column: Column) -> int:
    return NO_PRIORITY if column.name == "priority" else MISSING


def _field(column: Column, kind: str) -> str:
    if kind == "VARCHAR":
        return f"coalesce({column.name}, '') AS {column.name}"
    value = f"epoch_ns({column.name})" if column.type == "TIMESTAMP_NS" else column.name
    return f"coalesce({value}, {_missing(column)})::{kind} AS {column.name}"
