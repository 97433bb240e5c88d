"""Makes the final trace: one DuckDB file that needs no others. It replaces the views; then the parts are removed."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.live_parts import LIVE
from fdtrace.recorder.collector.store import PARTED, Store
from fdtrace.recorder.collector.tables import create, insert
from fdtrace.recorder.collector.views import SCHEMA_VIEWS, SMALL, define_views
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.column_values import ColumnArrays

READERS_WAIT = 30.0
"""Most seconds to wait, before the parts are removed, for a client that still has the views open."""


def write_final(store: Store, small: dict[str, ColumnArrays]) -> None:
    """Copy all published rows into a native file beside the parts, then rename it over the file of the views.

    The requests that were still live in the last `publish` become ordinary rows. The views stay readable until the
    rename. If the collector is killed before the rename, the recording is still complete as parts, and `recover` can
    finish it.
    """
    final = remove_half(store)
    db = store.db
    create_final(db, final)
    for table in PARTED:
        _copy(db, store, table)
    db.execute("BEGIN")
    for name, table in {**SMALL, **LIVE}.items():
        insert(db, f"final.{table.name}", table, small[name])
    db.execute("COMMIT")
    db.execute("DETACH final")
    store.put(final)
    store.retired.add(str(path) for path in store.directory.glob("*.parquet"))


def create_final(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Attach a new file as `final`, with the schema's tables, empty, their comments, and its views."""
    if _EMPTY:
        path.write_bytes(_EMPTY[0])
        _attach(db, path)
        return
    _attach(db, path)
    db.execute(
        "BEGIN"
    )  # else each of some 150 statements is a transaction of its own, which waits for the disk
    for table in schema.TABLES:
        _create(db, table)
    define_views(db, "final", SCHEMA_VIEWS)
    db.execute("COMMIT")
    db.execute("DETACH final")
    _EMPTY.append(path.read_bytes())
    _attach(db, path)


_EMPTY: list[bytes] = []
"""The empty file, once this process has made it: the comments alone take longer than the rows of a short recording."""


def _attach(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    db.execute(
        f"ATTACH '{quoted(path)}' AS final "
        f"(STORAGE_VERSION '{schema.STORAGE_VERSION}', ROW_GROUP_SIZE {schema.ROW_GROUP_SIZE})"
    )


def remove_half(store: Store) -> Path:
    """Remove what a failed attempt left. Returns the path of the file to be made."""
    final = store.directory / "final.duckdb"
    for path in (final, final.with_name("final.duckdb.wal")):
        path.unlink(missing_ok=True)
    return final


def _create(db: duckdb.DuckDBPyConnection, table: Table) -> None:
    create(db, f"final.{table.name}", table)
    db.execute(f"COMMENT ON TABLE final.{table.name} IS '{quoted(table.comment)}'")
    for column in table.columns:
        db.execute(f"COMMENT ON COLUMN final.{table.name}.{column.name} IS '{quoted(column.comment)}'")


def _copy(db: duckdb.DuckDBPyConnection, store: Store, table: Table) -> None:
    """Copy a table's parts. They are in step order for each engine, so the rows of one engine need no sorting."""
    paths = store.part_paths(table.name)
    if not paths:
        return
    rows = db.execute("SELECT DISTINCT engine_id FROM read_parquet($1) ORDER BY ALL", [paths]).fetchall()
    engines: list[Any] = [row[0] for row in rows]
    if len(engines) == 1:
        db.execute(f"INSERT INTO final.{table.name} FROM read_parquet($1)", [paths])
        return
    for engine in engines:
        db.execute(
            f"INSERT INTO final.{table.name} FROM read_parquet($1) WHERE engine_id IS NOT DISTINCT FROM $2",
            [paths, engine],
        )


def remove_parts(store: Store) -> None:
    """Wait until no client reads the views that the final file replaced. Then remove the parts."""
    deadline = time.monotonic() + READERS_WAIT
    while not store.retired.sweep() and time.monotonic() < deadline:
        time.sleep(0.1)
    for path in store.directory.iterdir():
        with contextlib.suppress(OSError):  # if somebody has put a directory there, it stays
            path.unlink()
    with contextlib.suppress(OSError):
        store.directory.rmdir()
