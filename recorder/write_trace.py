"""Writes a whole trace at once, from columns in memory: the file that a recording ends with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.finish import create_final
from fdtrace.recorder.collector.tables import check_range, insert, writing_connection
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.column_values import ColumnArrays


def write_trace(path: Path, tables: Mapping[str, ColumnArrays]) -> None:
    """Write a complete trace to a path where nothing is.

    Args:
        path: the file. It appears there whole, or not at all.
        tables: by name of a table of the schema its columns, -1 for NULL; those that are left out are empty or NULL.

    Raises:
        TraceError: something is at the path, or it cannot be written there; or a number does not fit its column.
    """
    check_free(path)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(half, tables)
        os.link(half, path)  # unlike a rename, it replaces nothing that came in the meantime
    except (OSError, duckdb.Error, ValueError) as error:
        raise TraceError(f"{path} cannot be written", why=str(error).splitlines()[0]) from None
    finally:
        for left in (half, half.with_name(f"{half.name}.wal")):
            left.unlink(missing_ok=True)


def check_free(path: Path) -> None:
    """TraceError if something is at the path."""
    if os.path.lexists(path):
        raise TraceError(
            f"{path} exists already",
            why="a trace never overwrites another file",
            hint="choose another -o, or remove it",
        )


def _write(path: Path, tables: Mapping[str, ColumnArrays]) -> None:
    with writing_connection() as db:
        create_final(db, path)
        for table in schema.TABLES:
            columns = tables.get(table.name)
            if columns:
                check_range(table, columns)
                insert(db, f"final.{table.name}", table, columns)
        db.execute("DETACH final")
