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

from fdtrace.recorder import schema
from fdtrace.recorder.collector.columns import Columns
from fdtrace.recorder.collector.tables import create, insert
from fdtrace.recorder.sql import quoted

SMALL = {"trace": schema.TRACE, "engine": schema.ENGINE, "_live_request": schema.REQUEST}
"""Tables that are whole in each published database."""


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
        self._held: dict[str, Columns] = {}
        self._sources: dict[str, str] = {}

    def copy(
        self, small: dict[str, Columns], sources: dict[str, str], state: dict[str, Any], to: Path
    ) -> None:
        """Bring it up to date, and leave a copy that is safe on the disk; `sources`: each view's query."""
        db, first = self.db, not self._sources
        db.execute("BEGIN")
        for name, table in SMALL.items():
            if not _same(self._held.get(name), small[name]):
                db.execute(f"DELETE FROM views.{name}")
                insert(db, f"views.{name}", table, small[name])
        for name, query in sources.items():
            if self._sources.get(name) != query:
                db.execute(f"CREATE OR REPLACE VIEW views.{name} AS {query}")
        if first:
            create_views(db, "views")
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


def _same(before: Columns | None, now: Columns) -> bool:
    return before is not None and all(np.array_equal(before[name], now[name]) for name in now)


def create_views(db: duckdb.DuckDBPyConnection, database: str) -> None:
    """Create the schema's views in an attached database."""
    db.execute(f"USE {database}")
    for view in schema.VIEWS:
        db.execute(f"CREATE VIEW {view.name} AS {view.query}")
    db.execute("USE memory")
