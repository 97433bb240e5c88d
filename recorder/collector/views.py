"""The small database that a trace is while it records: views over the parts, and the tables that never grow much.

It is kept beside the parts, open and brought up to date; what is published is a copy. To bind the views afresh each
time would take most of what a publication costs.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from fdtrace.recorder.trace.column_values import ColumnArrays

from fdtrace.recorder import schema
from fdtrace.recorder.collector.tables import create, insert
from fdtrace.recorder.sql_text import quoted

SMALL = {
    "trace": schema.TRACE,
    "engine": schema.ENGINE,
    "_live_request": schema.REQUEST,
    "_live_call": schema.CALL,
}
"""Tables that are whole in each published database."""

SCHEMA_VIEWS = {view.name: view.query for view in schema.VIEWS}


class Views:
    """The database at `path`, attached to `db` as `views`; made anew: what an earlier collector left is published."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path) -> None:
        self.db, self.path = db, path
        for old in (path, path.with_name(path.name + ".wal")):
            old.unlink(missing_ok=True)
        db.execute(f"ATTACH '{quoted(path)}' AS views (STORAGE_VERSION '{schema.STORAGE_VERSION}')")
        for name, table in SMALL.items():
            create(db, f"views.{name}", table)
        db.execute("CREATE TABLE views._collector (state VARCHAR)")
        self._held: dict[str, ColumnArrays] = {}
        self._sources: dict[str, str] = {}

    def copy(
        self, small: dict[str, ColumnArrays], sources: dict[str, str], state: dict[str, Any], to: Path
    ) -> None:
        """Bring it up to date, and leave a copy that is safe on the disk; `sources`: each view's query."""
        db, first = self.db, not self._sources
        db.execute("BEGIN")
        for name, table in SMALL.items():
            if not _same(self._held.get(name), small[name]):
                db.execute(f"DELETE FROM views.{name}")
                insert(db, f"views.{name}", table, small[name])
        changed = {name: query for name, query in sources.items() if self._sources.get(name) != query}
        define_views(db, "views", {**changed, **SCHEMA_VIEWS} if first else changed)
        db.execute("DELETE FROM views._collector")
        db.execute("INSERT INTO views._collector VALUES (?)", [json.dumps(state)])
        db.execute("COMMIT")
        db.execute("CHECKPOINT views")
        self._held, self._sources = dict(small), dict(sources)
        to.unlink(missing_ok=True)
        with to.open("xb") as copy, self.path.open("rb") as mine:
            shutil.copyfileobj(mine, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def _same(before: ColumnArrays | None, now: ColumnArrays) -> bool:
    return before is not None and all(np.array_equal(before[name], now[name]) for name in now)


def define_views(db: duckdb.DuckDBPyConnection, database: str, queries: dict[str, str]) -> None:
    """Create or replace views, by name, in an attached database.

    Their queries name its tables without it: a view keeps the name of the database as it is written (DuckDB 1.5), and
    whoever opens the file gives it another.
    """
    db.execute(f"USE {database}")
    for name, query in queries.items():
        db.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
    db.execute("USE memory")
