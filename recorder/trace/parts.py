"""Finds the parts of a recording in progress: Parquet files beside the trace. The collector's state names them.

The trace has views over its parts, but we do not use them: a view could name any file.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.shape import FILE, ColumnTypes, FileTables, check_columns, source_of
from fdtrace.recorder.trace_paths import parts_directory

PART_NAME = re.compile(r"[a-z_]+-\d+\.parquet\Z")

STATE = "_collector"
"""The table that holds the collector's state while it records."""

LIVE = "_live_"
"""The prefix of a table whose rows are in no part yet; the name of the schema's table follows."""


@dataclass(frozen=True)
class Parts:
    """The parts of a recording in progress: the files of each table, oldest first."""

    of: dict[str, tuple[Path, ...]]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for paths in self.of.values() for path in paths)


def find_parts(db: duckdb.DuckDBPyConnection, path: Path, tables: FileTables) -> Parts | None:
    """The parts that the attached trace names; None if it is complete.

    Raises:
        TraceError: the collector's state makes no sense, or a part is missing or is no regular file.
    """
    if STATE not in tables.columns:
        return None
    rows = db.execute(f"SELECT state::VARCHAR FROM {FILE}.main.{STATE} LIMIT 1").fetchall()
    names = _named_parts(path, rows[0][0] if rows else None)
    directory = parts_directory(path.resolve())
    return Parts(
        {table: tuple(_existing_part(path, directory / name) for name in names[table]) for table in names}
    )


def _named_parts(path: Path, state: str | None) -> dict[str, list[str]]:
    table_names = {table.name for table in schema.TABLES}
    try:
        parts: Any = json.loads(state or "")["parts"]
        part_names = {
            table: [name for level in reversed(levels) for name in level]
            for table, levels in parts.items()
            if table in table_names
        }
        if all(PART_NAME.match(name) for names in part_names.values() for name in names):
            return part_names
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise TraceError(
        f"{path} is damaged", why=f"the list of parts in its table `{STATE}` is not valid", hint=RECOVER
    )


RECOVER = "`fdtrace recover` it where it was recorded"


def _existing_part(path: Path, part: Path) -> Path:
    try:
        mode = os.lstat(part).st_mode
    except OSError:
        raise TraceError(
            f"{path} is a recording in progress whose parts are not beside it",
            why=f"there is no {part}",
            hint=f"read it where it is recorded, or copy {part.parent.name} too; {RECOVER} if it was cut off",
        ) from None
    if not stat.S_ISREG(mode):
        raise TraceError(f"{path} is damaged", why=f"{part} is no regular file")
    return part


def part_sources(
    db: duckdb.DuckDBPyConnection, path: Path, tables: FileTables, parts: Parts, *, earlier: bool
) -> dict[str, str]:
    """For each table that has parts, the query that reads it. The columns of the parts are checked.

    `earlier`: the trace's schema is older than ours.
    """
    sources = {}
    for table in schema.TABLES:
        if table.name not in parts.of:
            continue
        queries = []
        if parts.of[table.name]:
            listed = ", ".join(f"'{quoted(file)}'" for file in parts.of[table.name])
            source = f"read_parquet([{listed}])"
            queries.append(_checked(path, table, _columns_of(db, source), source, earlier))
        live_columns = tables.columns.get(LIVE + table.name)
        if live_columns is not None:
            queries.append(_checked(path, table, live_columns, f"{FILE}.main.{LIVE}{table.name}", earlier))
        sources[table.name] = " UNION ALL ".join(queries) or source_of(table, None, "")
    return sources


def _columns_of(db: duckdb.DuckDBPyConnection, source: str) -> ColumnTypes:
    return {str(row[0]): str(row[1]) for row in db.execute(f"DESCRIBE FROM {source}").fetchall()}


def _checked(path: Path, table: Table, columns: ColumnTypes, source: str, earlier: bool) -> str:
    check_columns(path, table, columns, earlier=earlier)
    return source_of(table, columns, source)
