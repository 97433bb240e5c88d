"""Makes the final trace: one self-contained DuckDB file at the path where the views were, then the parts go."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import duckdb
from fdtrace.recorder.trace.column_values import ColumnArrays

from fdtrace.recorder import schema
from fdtrace.recorder.collector.store import PARTED, Store
from fdtrace.recorder.collector.tables import create, insert
from fdtrace.recorder.collector.views import SCHEMA_VIEWS, SMALL, define_views
from fdtrace.recorder.sql_text import quoted

READERS_WAIT = 30.0
"""Seconds that the parts stay at most for a client that still has the views open."""


def write_final(store: Store, small: dict[str, ColumnArrays]) -> None:
    """Copy everything published into a native file beside the parts, then rename it over the views.

    The live request rows of the last `publish` become rows like any other. Until the rename the views stay readable;
    killed at any moment before, the recording is whole as parts and can be finished by `recover`.
    """
    final = remove_half(store)
    db = store.db
    db.execute(
        f"ATTACH '{quoted(final)}' AS final "
        f"(STORAGE_VERSION '{schema.STORAGE_VERSION}', ROW_GROUP_SIZE {schema.ROW_GROUP_SIZE})"
    )
    for table in schema.TABLES:
        _create(db, table)
    for table in PARTED:
        _copy(db, store, table)
    for name, table in SMALL.items():
        insert(db, f"final.{table.name}", table, small[name])
    define_views(db, "final", SCHEMA_VIEWS)
    db.execute("DETACH final")
    store.put(final)
    store.retired.add(str(path) for path in store.directory.glob("*.parquet"))


def remove_half(store: Store) -> Path:
    """Remove what an attempt left that failed; the path of the file to be made."""
    final = store.directory / "final.duckdb"
    for path in (final, final.with_name("final.duckdb.wal")):
        path.unlink(missing_ok=True)
    return final


def _create(db: duckdb.DuckDBPyConnection, table: schema.Table) -> None:
    create(db, f"final.{table.name}", table)
    db.execute(f"COMMENT ON TABLE final.{table.name} IS '{quoted(table.comment)}'")
    for column in table.columns:
        db.execute(f"COMMENT ON COLUMN final.{table.name}.{column.name} IS '{quoted(column.comment)}'")


def _copy(db: duckdb.DuckDBPyConnection, store: Store, table: schema.Table) -> None:
    """Parts come in step order for each engine, so one engine needs no sorting."""
    paths = store.part_paths(table.name)
    if not paths:
        return
    found = db.execute("SELECT DISTINCT engine_id FROM read_parquet($1) ORDER BY ALL", [paths]).fetchall()
    engines: list[Any] = [row[0] for row in found]
    if len(engines) == 1:
        db.execute(f"INSERT INTO final.{table.name} FROM read_parquet($1)", [paths])
        return
    for engine in engines:
        db.execute(
            f"INSERT INTO final.{table.name} FROM read_parquet($1) WHERE engine_id IS NOT DISTINCT FROM $2",
            [paths, engine],
        )


def remove_parts(store: Store) -> None:
    """Wait until no client reads the views that the final file replaced, then remove the parts."""
    deadline = time.monotonic() + READERS_WAIT
    while not store.retired.sweep() and time.monotonic() < deadline:
        time.sleep(0.1)
    for path in store.directory.iterdir():
        with contextlib.suppress(
            OSError
        ):  # a directory that somebody has put there, and what is in it, stays
            path.unlink()
    with contextlib.suppress(OSError):
        store.directory.rmdir()
