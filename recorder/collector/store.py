"""Writes decoded rows into immutable Parquet parts, and publishes them as a small database of views.

DuckDB locks a file that is open for writing, and a reader of a recording in progress must never wait. So a published
file is never written again. Instead come new parts, and then a new small database that lists the parts and holds the
collector's state. It is renamed to the trace's path. That rename commits both.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.replaced_files import Retired
from fdtrace.recorder.collector.tables import values
from fdtrace.recorder.collector.views import SMALL, Views
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.column_values import ColumnArrays
from fdtrace.recorder.trace_paths import parts_directory

PARTED = (
    *(schema.STEP, schema.STEP_REQUEST, schema.CALL, schema.CALL_REQUEST),
    *(schema.RANK_MEMORY, schema.REQUEST, schema.EVENT),
)
"""The tables that grow. The other tables are complete in each published database."""

COMPACT_AT = 24
"""When one level has so many parts, they are merged into one part of the next level."""


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove the file if writing it fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


class Store:
    """The trace at `path` while it is being recorded."""

    def __init__(self, path: Path, parts: dict[str, list[list[str]]] | None = None, serial: int = 0) -> None:
        self.path, self.directory = path, parts_directory(path)
        self.directory.mkdir(exist_ok=True)
        self.parts = parts or {table.name: [[]] for table in PARTED}
        self.serial = serial
        self.retired = Retired(path)
        self.views: Views | None = None
        self.published = identity_of(path)
        """The identity of our file at `path`. No other file is replaced."""
        self.committed: str | None = None
        """The state that was published last; None: not known."""
        self._connect()
        committed_names = {name for levels in self.parts.values() for level in levels for name in level}
        for file in self.directory.glob("*.parquet"):
            if file.name not in committed_names:
                file.unlink()  # written but never committed: the rings still hold its rows

    def _connect(self) -> None:
        self.db = duckdb.connect()
        self.db.execute("SET threads = 1")
        self.db.execute("SET preserve_insertion_order = true")

    def reset(self) -> None:
        """After a failure: drop what DuckDB may have half done, and start with a new connection."""
        self.views = None
        with contextlib.suppress(duckdb.Error):
            self.db.close()
        self._connect()

    def part_paths(self, table: str) -> list[str]:
        """The parts of a table, oldest first, as absolute paths."""
        levels = self.parts[table]
        return [str(self.directory.resolve() / name) for level in reversed(levels) for name in level]

    def _new_part(self, table: str) -> Path:
        self.serial += 1
        return self.directory / f"{table}-{self.serial:08d}.parquet"

    def add(self, table: Table, columns: ColumnArrays) -> None:
        """Write one part. It belongs to the trace from the next `publish` on."""
        rows = len(next(iter(columns.values())))
        if not rows:
            return
        part = self._new_part(table.name)
        decoded = columns  # noqa: F841  DuckDB finds it in this frame; to register a view of it would take longer
        with removed_on_failure(part):
            self.db.execute(
                f"COPY (SELECT {values(table, columns)} FROM decoded) TO '{quoted(part)}' (FORMAT parquet)"
            )
        self.parts[table.name][0].append(part.name)

    def compact(self) -> None:
        """Merge small parts: even a recording of days is a few files. The old parts go when nobody reads them."""
        for table, levels in self.parts.items():
            for level, names in enumerate(levels):
                if len(names) >= COMPACT_AT:
                    self.merge(table, level)
                    break

    def merge(self, table: str, level: int) -> None:
        """Merge all parts of one level into one part of the next level."""
        levels = self.parts[table]
        part = self._new_part(table)
        paths = [str(self.directory / name) for name in levels[level]]
        with removed_on_failure(part):
            self.db.execute(
                f"COPY (FROM read_parquet($1)) TO '{quoted(part)}' (FORMAT parquet, COMPRESSION zstd)",
                [paths],
            )
        if level + 1 == len(levels):
            levels.append([])
        levels[level + 1].append(part.name)
        levels[level] = []
        self.retired.add(paths)

    def publish(self, small: dict[str, ColumnArrays], state: dict[str, Any]) -> None:
        """Commit the parts so far, the small tables (`views.SMALL`) and the state. If all are as they were, nothing is
        written: a recording of an idle engine costs nothing.

        Raises:
            TraceError: somebody has put another file at `path`.
        """
        self.views = self.views or Views(self.db, self.directory / "views.duckdb")
        text = json.dumps(dict(state, parts=self.parts, serial=self.serial))
        if text != self.committed or self.published != identity_of(self.path) or self.views.differs(small):
            self.committed = None
            fresh = self.directory / "next.duckdb"
            self.views.copy(small, {table.name: self._source(table) for table in PARTED}, text, fresh)
            self.put(fresh)
            self.committed = text
        self.retired.sweep()

    def put(self, fresh: Path) -> None:
        """Rename a file of ours over the one published before. A file that somebody else put there stays."""
        current = identity_of(self.path)
        if current not in (None, self.published):
            raise TraceError(
                f"{self.path} was replaced by another file",
                why="somebody put it there while it was being recorded to",
                hint=f"move that file away, then `fdtrace recover {self.path}`",
            )
        self.retired.replacing()
        os.replace(fresh, self.path)
        self.published = identity_of(self.path)

    def _source(self, table: Table) -> str:
        paths = ", ".join(f"'{quoted(path)}'" for path in self.part_paths(table.name))
        parts = f"SELECT * FROM read_parquet([{paths}])" if paths else ""
        live = f"_live_{table.name}"
        if live in SMALL:
            return f"{parts} UNION ALL SELECT * FROM {live}" if parts else f"FROM {live}"
        if parts:
            return parts
        nothing = ", ".join(f"NULL::{column.type} AS {column.name}" for column in table.columns)
        return f"SELECT {nothing} WHERE false"

    def close(self) -> None:
        """Close the in-memory database."""
        self.db.close()
