"""Writes decoded rows into immutable Parquet parts, and publishes them as a small database of views.

DuckDB locks a file that is open for writing, and a reader of a recording in progress must never wait. So a published
file is never written again. Instead come new parts, and then a new small database that lists the parts and holds the
collector's state. It is renamed to the trace's path. That rename commits both.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.live_parts import LiveParts
from fdtrace.recorder.collector.part_file import removed_on_failure, write_part
from fdtrace.recorder.collector.replaced_files import ReplacedFiles
from fdtrace.recorder.collector.tables import writing_connection
from fdtrace.recorder.collector.views import Views
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


class Store:
    """The trace at `path` while it is being recorded."""

    def __init__(
        self, path: Path, parts: dict[str, list[list[str]]] | None = None, serial: int = 0,
        live: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.directory = path, parts_directory(path)
        self.directory.mkdir(exist_ok=True)
        self.parts = parts or {table.name: [[]] for table in PARTED}
        self.serial = serial
        self.live = LiveParts(self.directory, live or {})
        self.retired = ReplacedFiles(path)
        self.views: Views | None = None
        self.published = identity_of(path)
        """The identity of our file at `path`. No other file is replaced."""
        self.committed: str | None = None
        """The state that was published last; None: not known."""
        self._connect()
        committed_names = {name for levels in self.parts.values() for level in levels for name in level}
        committed_names |= {*self.live.names.values()}
        for file in self.directory.glob("*.parquet"):
            if file.name not in committed_names:
                file.unlink()  # written but never committed: the rings still hold its rows

    def _connect(self) -> None:
        self.db = writing_connection()

    def reset(self) -> None:
        """After a failure: drop what DuckDB may have half done, and start with a new connection."""
        self.views = None
        with contextlib.suppress(duckdb.Error):
            self.db.close()
        self._connect()

    def part_paths(self, table: str) -> list[str]:
        """The parts of a table, oldest first, as absolute paths."""
        levels = self.parts[table]
        directory = self.directory.resolve()
        return [f"{directory}/{name}" for level in reversed(levels) for name in level]

    def _new_part(self, table: str) -> Path:
        self.serial += 1
        return self.directory / f"{table}-{self.serial:08d}.parquet"

    def add(self, table: Table, columns: ColumnArrays) -> None:
        """Write one part. It belongs to the trace from the next `publish` on."""
        rows = len(next(iter(columns.values())))
        if not rows:
            return
        part = self._new_part(table.name)
        write_part(part, table, columns)
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
        """Commit the parts so far, the small tables (`views.SMALL`), the rows that go on (`live_parts.LIVE`) and the
        state. If all are as they were, nothing is written: a recording of an idle engine costs nothing.

        Raises:
            TraceError: somebody has put another file at `path`.
        """
        self.views = self.views or Views(self.db, self.directory / "views.duckdb", PARTED)
        for replaced in self.live.write(small):
            self.retired.add([replaced])
        text = json.dumps(dict(state, parts=self._listed_parts(), live=self.live.names, serial=self.serial))
        if text != self.committed or not self.is_published or self.views.differs(small):
            self.committed = None
            fresh = self.directory / "next.duckdb"
            self.views.copy(small, {table.name: self._all_paths(table.name) for table in PARTED}, text, fresh)
            self.put(fresh)
            self.committed = text
        self.retired.sweep()

    def _listed_parts(self) -> dict[str, list[list[str]]]:
        """The names of all parts, as readers take them from the state."""
        live = self.live.names
        return {
            table: [[*levels[0], live[table]], *levels[1:]] if table in live else levels
            for table, levels in self.parts.items()
        }

    def _all_paths(self, table: str) -> list[str]:
        """The paths of all parts of a table, as readers take them from the views."""
        live = self.live.names.get(table)
        return self.part_paths(table) + ([] if live is None else [str(self.directory.resolve() / live)])

    @property
    def is_published(self) -> bool:
        """Whether the file at `path` is the one that was published last."""
        return self.committed is not None and self.published == identity_of(self.path)

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

    def close(self) -> None:
        """Close the in-memory database."""
        self.db.close()
