"""The small database that is the trace while it is being recorded: views over the parts, and tables that stay small.

The original stays open beside the parts and is updated. A copy of it is published. To bind the views again each time
would take most of the time of a publication. So they ask a macro for the parts, and only the macro changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.live_parts import same_columns
from fdtrace.recorder.collector.tables import PLAIN_TEXT, create, insert
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.column_values import ColumnArrays

SMALL = {"trace": schema.TRACE, "engine": schema.ENGINE}
"""Tables that each published database contains completely."""

SCHEMA_VIEWS = {view.name: view.query for view in schema.VIEWS}


PARTS = "_parts"
"""The macro that gives the paths of each table's parts."""

BETWEEN = "//"
"""Between two paths in the macro, because a resolved path does not have it. A list of texts takes longer to plan."""


class Views:
    """The database at `path`, attached to `db` as `views`. `growing`: the tables that have parts.

    It is always made new: what an earlier collector left in it is published already.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path, growing: Sequence[Table]) -> None:
        self.db, self.path, self.growing = db, path, growing
        for old in (path, path.with_name(path.name + ".wal")):
            old.unlink(missing_ok=True)
        db.execute(
            f"ATTACH '{quoted(path)}' AS views (STORAGE_VERSION '{schema.STORAGE_VERSION}', BLOCK_SIZE 16384)"
        )
        for name, table in SMALL.items():
            create(db, f"views.{name}", table, PLAIN_TEXT)
        db.execute(f"CREATE TABLE views._collector (state {PLAIN_TEXT})")
        self._held: dict[str, ColumnArrays] = {}
        self._parts: dict[str, list[str]] = {}
        self._views: dict[str, str] = {}

    def differs(self, small: dict[str, ColumnArrays]) -> bool:
        """Whether the small tables are others than those of the last copy."""
        return not all(same_columns(self._held.get(name), small[name]) for name in SMALL)

    def copy(self, small: dict[str, ColumnArrays], parts: dict[str, list[str]], state: str, to: Path) -> None:
        """Update the database, and write a copy that is safe on the disk. `parts`: the paths of each table's parts."""
        db = self.db
        db.execute("BEGIN")
        for name, table in SMALL.items():
            if not same_columns(self._held.get(name), small[name]):
                db.execute(f"DELETE FROM views.{name}")
                insert(db, f"views.{name}", table, small[name])
        if parts != self._parts:
            db.execute(f"CREATE OR REPLACE MACRO views.{PARTS}() AS {_parts_value(parts)}")
        queries = {table.name: _query(table, has_parts=bool(parts[table.name])) for table in self.growing}
        changed = {name: query for name, query in queries.items() if self._views.get(name) != query}
        if changed:
            define_views(db, "views", changed if self._views else {**changed, **SCHEMA_VIEWS})
        db.execute("DELETE FROM views._collector")
        db.execute("INSERT INTO views._collector VALUES (?)", [state])
        db.execute("COMMIT")
        db.execute("CHECKPOINT views")
        self._held, self._parts, self._views = dict(small), dict(parts), queries
        to.unlink(missing_ok=True)
        with to.open("xb") as copy, self.path.open("rb") as own:
            shutil.copyfileobj(own, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def _parts_value(parts: dict[str, list[str]]) -> str:
    """The parts of each table that has some, as a value of SQL."""
    lists = (
        f"'{name}': string_split('{quoted(BETWEEN.join(paths))}', '{BETWEEN}')"
        for name, paths in parts.items()
        if paths
    )
    return f"{{{', '.join(lists)}}}" if any(parts.values()) else "NULL"


def _query(table: Table, *, has_parts: bool) -> str:
    """The query of the view of a table that grows."""
    if has_parts:
        return f"SELECT * FROM read_parquet({PARTS}().{table.name})"
    nothing = ", ".join(f"NULL::{column.type} AS {column.name}" for column in table.columns)
    return f"SELECT {nothing} WHERE false"


def define_views(db: duckdb.DuckDBPyConnection, database: str, queries: dict[str, str]) -> None:
    """Create or replace views, by name, in an attached database.

    Their queries name the tables without the database. DuckDB 1.5 would keep the database's name in the view, but
    another client opens the file under another name.
    """
    db.execute(f"USE {database}")
    for name, query in queries.items():
        db.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
    db.execute("USE memory")
