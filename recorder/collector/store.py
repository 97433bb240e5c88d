"""Puts decoded rows into immutable Parquet parts, and publishes them as a small database of views at the trace's path.

DuckDB locks a file that is open for writing; a reader of a recording in progress must never wait. So nothing that is
published is ever written again: new parts, then a new small database that lists them and holds the collector's state,
renamed into place. That rename is the commit of both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from recorder import schema
from recorder.agent import wire
from recorder.collector.columns import Columns
from recorder.collector.retire import Retired
from recorder.session import parts_directory
from recorder.sql import quoted

PARTED = (schema.STEP, schema.STEP_REQUEST, schema.RANK_MEMORY, schema.REQUEST, schema.EVENT)
"""The tables that grow; the others are whole in each published database."""

COMPACT_AT = 24
"""So many parts of one level are merged to one of the next."""

TEXT = {"VARCHAR"}


def _value(column: schema.Column, have: Columns) -> str:
    """The SQL expression that makes a column of the schema from the decoder's numpy columns (-1 is NULL)."""
    name = column.name
    if name == "kind" and "prefill" in have:
        return "CASE WHEN prefill THEN 'prefill' ELSE 'decode' END AS kind"
    if name == "not_admitted" and "reason" in have:
        names = ", ".join(f"'{reason}'" for reason in wire.NOT_ADMITTED[1:])
        return f"[{names}][nullif(reason, 0)] AS not_admitted"
    value = f"nullif({name}, -1)::{column.type}"
    if name not in have:
        value = f"NULL::{column.type}"
    elif column.type.endswith("[]"):
        value = f"string_split(nullif({name}, ''), ',')::{column.type}"
    elif column.type == "TIMESTAMP_NS":
        value = f"make_timestamp_ns(nullif({name}, -1))"
    elif column.type in TEXT:
        value = f"{name}::{column.type}"
    return f"{value} AS {name}"


def columns_of(table: schema.Table, rows: list[tuple[Any, ...]]) -> Columns:
    """Columns of rows in the schema's order: text as objects, lists as text, all else as int64 with -1 for None."""
    columns: Columns = {}
    for i, column in enumerate(table.columns):
        values = [row[i] for row in rows]
        if column.type.endswith("[]"):
            texts = [",".join(map(str, value or ())) for value in values]
            columns[column.name] = np.array(texts, dtype=object)
        elif column.type in TEXT:
            columns[column.name] = np.array(values, dtype=object)
        else:
            columns[column.name] = np.array([-1 if v is None else v for v in values], np.int64)
    return columns


class Store:
    """The trace at `path` while it records."""

    def __init__(self, path: Path, parts: dict[str, list[list[str]]] | None = None, serial: int = 0) -> None:
        self.path, self.directory = path, parts_directory(path)
        self.directory.mkdir(exist_ok=True)
        self.parts = parts or {table.name: [[]] for table in PARTED}
        self.serial = serial
        self.retired = Retired(path)
        self.db = duckdb.connect()
        self.db.execute("SET threads = 1")
        self.db.execute("SET preserve_insertion_order = true")
        known = {name for levels in self.parts.values() for level in levels for name in level}
        for file in self.directory.glob("*.parquet"):
            if file.name not in known:
                file.unlink()  # written, but its commit never came: the rings still hold what it holds

    def part_paths(self, table: str) -> list[str]:
        """The parts of a table, oldest first, as absolute paths."""
        levels = self.parts[table]
        return [str(self.directory.resolve() / name) for level in reversed(levels) for name in level]

    def _new_part(self, table: str) -> Path:
        self.serial += 1
        return self.directory / f"{table}-{self.serial:08d}.parquet"

    def add(self, table: schema.Table, columns: Columns) -> None:
        """Write one part; it becomes part of the trace with the next `publish`."""
        rows = len(next(iter(columns.values())))
        if not rows:
            return
        part = self._new_part(table.name)
        select = ", ".join(_value(column, columns) for column in table.columns)
        self.db.register("decoded", columns)
        self.db.execute(f"COPY (SELECT {select} FROM decoded) TO '{quoted(part)}' (FORMAT parquet)")
        self.db.unregister("decoded")
        self.parts[table.name][0].append(part.name)

    def compact(self) -> None:
        """Merge small parts, so that a recording of days is still a few files; the merged go when nobody reads them."""
        for table, levels in self.parts.items():
            for level, names in enumerate(levels):
                if len(names) < COMPACT_AT:
                    continue
                part = self._new_part(table)
                paths = [str(self.directory / name) for name in names]
                self.db.execute(
                    f"COPY (FROM read_parquet($1)) TO '{quoted(part)}' (FORMAT parquet, COMPRESSION zstd)",
                    [paths],
                )
                if level + 1 == len(levels):
                    levels.append([])
                levels[level + 1].append(part.name)
                levels[level] = []
                self.retired.add(paths)
                break

    def publish(self, small: dict[str, Columns], state: dict[str, Any]) -> None:
        """Commit: the parts so far, the small tables (`trace`, `engine`, live `request` rows) and the state."""
        fresh = self.directory / "next.duckdb"
        fresh.unlink(missing_ok=True)
        state = dict(state, parts=self.parts, serial=self.serial)
        db = self.db
        db.execute(f"ATTACH '{quoted(fresh)}' AS fresh (STORAGE_VERSION '{schema.STORAGE_VERSION}')")
        db.execute("BEGIN")
        for table in (schema.TRACE, schema.ENGINE):
            self._small_table(table.name, table, small[table.name])
        self._small_table("_live_request", schema.REQUEST, small["request"])
        db.execute("CREATE TABLE fresh._collector (state VARCHAR)")
        db.execute("INSERT INTO fresh._collector VALUES (?)", [json.dumps(state)])
        for table in PARTED:
            db.execute(f"CREATE VIEW fresh.{table.name} AS {self._source(table)}")
        create_views(db, "fresh")
        db.execute("COMMIT")
        db.execute("DETACH fresh")
        self.retired.replacing()
        os.replace(fresh, self.path)
        self.retired.sweep()

    def _small_table(self, name: str, table: schema.Table, columns: Columns) -> None:
        types = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        self.db.execute(f"CREATE TABLE fresh.{name} ({types})")
        self.insert_small(f"fresh.{name}", table, columns)

    def insert_small(self, name: str, table: schema.Table, columns: Columns) -> None:
        """Insert columns into a table of an attached database."""
        select = ", ".join(_value(column, columns) for column in table.columns)
        self.db.register("decoded", columns)
        self.db.execute(f"INSERT INTO {name} SELECT {select} FROM decoded")
        self.db.unregister("decoded")

    def _source(self, table: schema.Table) -> str:
        paths = ", ".join(f"'{quoted(path)}'" for path in self.part_paths(table.name))
        parts = f"SELECT * FROM read_parquet([{paths}])" if paths else ""
        if table is schema.REQUEST:
            return (
                f"{parts} UNION ALL SELECT * FROM fresh._live_request"
                if parts
                else "FROM fresh._live_request"
            )
        if parts:
            return parts
        nothing = ", ".join(f"NULL::{column.type} AS {column.name}" for column in table.columns)
        return f"SELECT {nothing} WHERE false"

    def close(self) -> None:
        """Close the in-memory database."""
        self.db.close()


def create_views(db: duckdb.DuckDBPyConnection, database: str) -> None:
    """Create the schema's views in an attached database."""
    db.execute(f"USE {database}")
    for view in schema.VIEWS:
        db.execute(f"CREATE VIEW {view.name} AS {view.query}")
    db.execute("USE memory")
