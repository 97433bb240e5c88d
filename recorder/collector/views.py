"""The small database that is the trace while it is being recorded: views over the parts, and tables that stay small.

The original stays open beside the parts and is updated. A copy of it is published. To bind the views again each time
would take most of the time of a publication.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb
import numpy as np

from fdtrace.recorder import schema
from fdtrace.recorder.collector.tables import create, insert
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.column_values import ColumnArrays

SMALL = {
    "trace": schema.TRACE,
    "engine": schema.ENGINE,
    "_live_request": schema.REQUEST,
    "_live_call": schema.CALL,
}
"""Tables that each published database contains completely."""

SCHEMA_VIEWS = {view.name: view.query for view in schema.VIEWS}


class Views:
    """The database at `path`, attached to `db` as `views`.

    It is always made new: what an earlier collector left in it is published already.
    """

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

    def differs(self, small: dict[str, ColumnArrays]) -> bool:
        """Whether the small tables are others than those of the last copy."""
        return not all(_equal(self._held.get(name), small[name]) for name in SMALL)

    def copy(self, small: dict[str, ColumnArrays], sources: dict[str, str], state: str, to: Path) -> None:
        """Update the database, and write a copy that is safe on the disk. `sources`: the query of each view."""
        db, first = self.db, not self._sources
        db.execute("BEGIN")
        for name, table in SMALL.items():
            if not _equal(self._held.get(name), small[name]):
                db.execute(f"DELETE FROM views.{name}")
                insert(db, f"views.{name}", table, small[name])
        changed = {name: query for name, query in sources.items() if self._sources.get(name) != query}
        define_views(db, "views", {**changed, **SCHEMA_VIEWS} if first else changed)
        db.execute("DELETE FROM views._collector")
        db.execute("INSERT INTO views._collector VALUES (?)", [state])
        db.execute("COMMIT")
        db.execute("CHECKPOINT views")
        self._held, self._sources = dict(small), dict(sources)
        to.unlink(missing_ok=True)
        with to.open("xb") as copy, self.path.open("rb") as own:
            shutil.copyfileobj(own, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def _equal(before: ColumnArrays | None, now: ColumnArrays) -> bool:
    return before is not None and all(np.array_equal(before[name], now[name]) for name in now)


def define_views(db: duckdb.DuckDBPyConnection, database: str, queries: dict[str, str]) -> None:
    """Create or replace views, by name, in an attached database.

    Their queries name the tables without the database. DuckDB 1.5 would keep the database's name in the view, but
    another client opens the file under another name.
    """
    db.execute(f"USE {database}")
    for name, query in queries.items():
        db.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
    db.execute("USE memory")
