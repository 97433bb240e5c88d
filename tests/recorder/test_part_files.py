"""The Parquet files of a recording in progress: DuckDB reads them as it reads those that it writes itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.collector.part_file import write_part
from fdtrace.recorder.collector.store import PARTED
from fdtrace.recorder.collector.tables import CODED, LIMITS, TEXT, values, writing_connection
from fdtrace.recorder.schema_tables import Column, Table
from fdtrace.recorder.trace.column_values import MISSING, NO_PRIORITY, ColumnArrays

TEXTS = ["", "length", "é 漢", "\x00\x7f", "x" * 300]


def drawn(table: Table, count: int, rng: random.Random) -> ColumnArrays:
    """Columns as the decoder gives them; in each, all, some or none of the values are known."""
    columns = {}
    for column in table.columns:
        known = rng.choice([0.0, 0.5, 1.0, 1.0])
        coded = CODED.get(column.name)
        if coded is not None and rng.random() < 0.8:
            codes = range(len(coded.names) + 2) if coded.first else range(2)
            drawn_codes = rng.choices(codes if rng.random() < 0.7 else [codes[1]], k=count)
            columns[coded.source] = np.array(drawn_codes, bool if not coded.first else np.int64)
        elif rng.random() < 0.9:
            columns[column.name] = _values(column, [rng.random() < known for _ in range(count)], rng)
    return columns or {"engine_id": np.zeros(count, np.int64)}


def _values(column: Column, known: list[bool], rng: random.Random) -> Any:
    if column.type in TEXT:
        return np.array([rng.choice(TEXTS) if one else None for one in known], dtype=object)
    if column.type.endswith("[]"):
        lists = [[rng.getrandbits(64) for _ in range(rng.randint(1, 9))] if one else [] for one in known]
        return np.array([",".join(map(str, numbers)) for numbers in lists], dtype=object)
    unknown = NO_PRIORITY if column.name == "priority" else MISSING
    if column.type == "DOUBLE":
        return np.array([rng.random() if one else unknown for one in known])
    if column.type == "BOOLEAN":
        return np.array([rng.randint(0, 2) if one else unknown for one in known], np.int64)
    low, high = LIMITS.get(column.type, (-(1 << 63), (1 << 63) - 1))
    least, most = rng.choice([(0, 5), (7, 7), (low + 2, high)])
    numbers = np.array([rng.randint(least, most) if one else unknown for one in known], np.int64)
    return rng.choice([numbers, np.repeat(numbers, 2)[::2]])  # a column of a table of numbers has gaps


@pytest.mark.parametrize("table", PARTED, ids=lambda table: table.name)
def test_what_it_writes_is_what_duckdb_writes(table: Table, tmp_path: Path) -> None:
    own, other = tmp_path / "own.parquet", tmp_path / "other.parquet"
    rng = random.Random(table.name)
    with writing_connection() as db:
        for count in (1, 2, 7, 8, 9, 64, 200, 1000):
            columns = drawn(table, count, rng)
            write_part(own, table, columns)
            decoded = {name: np.ascontiguousarray(column) for name, column in columns.items()}  # noqa: F841
            db.execute(f"COPY (SELECT {values(table, columns)} FROM decoded) TO '{other}' (FORMAT parquet)")
            for query in ("DESCRIBE", "SELECT *"):
                own_rows = db.execute(f"{query} FROM '{own}'").fetchall()
                assert own_rows == db.execute(f"{query} FROM '{other}'").fetchall()


def test_parts_of_many_rows_are_merged_by_duckdb(tmp_path: Path) -> None:
    rng, paths = random.Random(5), [tmp_path / f"{i}.parquet" for i in range(3)]
    for path in paths:
        write_part(path, schema.STEP_REQUEST, drawn(schema.STEP_REQUEST, 40_000, rng))
    with writing_connection() as db:
        merged = tmp_path / "merged.parquet"
        db.execute(f"COPY (FROM read_parquet({list(map(str, paths))})) TO '{merged}' (FORMAT parquet)")
        rows = [row for path in paths for row in db.execute(f"FROM '{path}'").fetchall()]
        assert db.execute(f"FROM '{merged}'").fetchall() == rows


@pytest.mark.parametrize(
    ("name", "number"),
    [("num_tokens", 1 << 31), ("num_tokens", -(1 << 31) - 1), ("ts", (1 << 63) - 1)],
)
def test_a_number_that_does_not_fit_is_refused_and_leaves_no_file(
    name: str, number: int, tmp_path: Path
) -> None:
    columns = {"engine_id": np.zeros(2, np.int64), name: np.array([1, number], np.int64)}
    with pytest.raises(ValueError, match=f"a {name} that no"):
        write_part(tmp_path / "step.parquet", schema.STEP, columns)
    assert list(tmp_path.iterdir()) == []
