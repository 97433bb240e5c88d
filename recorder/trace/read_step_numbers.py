"""The numbers of an engine's recorded steps. Where none was lost they follow each other, and are not read at all."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.recorder.trace.file import is_growing
from fdtrace.recorder.trace.shape import FILE

SPARSE = 8
"""Numbers that are spread over more than so many times their count are sorted to be counted."""


def read_step_numbers(db: duckdb.DuckDBPyConnection, engine_id: int) -> Ints:
    """The numbers of one engine's steps (int64), in the order of their rows. A NULL is MISSING."""
    ((first, last, count),) = db.execute(
        "SELECT min(step), max(step), count(*) FROM step WHERE engine_id = $1", [engine_id]
    ).fetchall()
    if first is not None and last - first + 1 == count and _follow_each_other(db, first, count):
        return np.arange(first, last + 1, dtype=np.int64)
    columns: Any = db.execute("SELECT step FROM step WHERE engine_id = $1", [engine_id]).fetchnumpy()
    return np.ma.filled(columns["step"], MISSING)


def _follow_each_other(db: duckdb.DuckDBPyConnection, first: int, count: int) -> bool:
    """Whether the table in the file has `count` rows, and each row the number that follows from its place."""
    tables = "SELECT count(*) FROM duckdb_tables() WHERE database_name = $1 AND table_name = 'step'"
    if is_growing(db) or db.execute(tables, [FILE]).fetchall() != [(1,)]:
        return False  # the steps are in parts, or in a lake
    query = f"SELECT count(*), count(*) FILTER (WHERE step <> rowid + $1) FROM {FILE}.main.step"
    return bool(db.execute(query, [first]).fetchall() == [(count, 0)])


def distinct(numbers: NDArray[Any]) -> int:
    """How many different numbers there are."""
    if not len(numbers):
        return 0
    low, high = int(numbers.min()), int(numbers.max())
    if high - low > SPARSE * len(numbers):
        return len(np.unique(numbers))
    seen = np.zeros(high - low + 1, bool)
    seen[numbers - low] = True
    return int(np.count_nonzero(seen))
