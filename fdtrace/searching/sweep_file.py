"""The DuckDB file of a sweep's results: one table, `sweep`, which `fdtrace sql` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.result_file import RESULT_TABLE
from fdtrace.replayer.search.sweep_grid import SweepRow


def save_sweep(
    path: Path, rows: Sequence[SweepRow], allowed: Sequence[SweepRow], front: Sequence[SweepRow]
) -> None:
    """Write the table. UsageError if the file cannot be written."""
    import duckdb

    allowed_ids, front_ids = {id(row) for row in allowed}, {id(row) for row in front}
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = [_kind([row.get(name) for row in rows]) for name in names]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(names, kinds, strict=True))
    values = [
        [*(row.get(name) for name in names), id(row) in allowed_ids, id(row) in front_ids] for row in rows
    ]
    try:
        with duckdb.connect(str(path)) as db:
            db.execute(f"CREATE TABLE {RESULT_TABLE} ({columns}, allowed BOOLEAN, best BOOLEAN)")
            db.executemany(f"INSERT INTO {RESULT_TABLE} VALUES ({', '.join('?' * (len(names) + 2))})", values)
    except duckdb.IOException as error:
        raise UsageError(f"{path} cannot be written", why=str(error).split("\n", maxsplit=1)[0]) from None


def _kind(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int) for value in known):
        return "BIGINT"
    return "DOUBLE" if known and all(isinstance(value, (int, float)) for value in known) else "VARCHAR"
