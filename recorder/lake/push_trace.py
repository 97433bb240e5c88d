"""Puts a finished trace into a lake: whole, once, or not at all.

All rows are written in one transaction of DuckLake: files first, which nobody sees, then the catalog, at once. A push
that is killed leaves files that no catalog names; `fdtrace lake expire` removes them. The commit is made under the
lake's lock, after another look whether somebody else has pushed the same trace.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError, UsageError
from fdtrace.recorder.lake.lake_connection import LAKE, check_extensions, open_lake
from fdtrace.recorder.lake.lake_errors import LakeError, is_conflict, lake_failed
from fdtrace.recorder.lake.lake_lock import lake_lock
from fdtrace.recorder.lake.lake_name import LakeName
from fdtrace.recorder.lake.lake_tables import KEY, ROW, TRACE_COLUMNS, is_complete, make_tables
from fdtrace.recorder.lake.trace_identity import identity_of
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.file import damaged, refuse_other_files
from fdtrace.recorder.trace.parts import STATE
from fdtrace.recorder.trace.shape import FILE, check_head, file_tables, table_sources

TRIES = 20
"""How often a push begins again because others changed the lake meanwhile."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A deployment, or the name of a label: a deployment is also the name of a folder in the lake."""
LONGEST_LABEL = 1000
AGAIN = "push it again: the lake holds the trace whole or not at all"


@dataclass(frozen=True)
class PushResult:
    """A trace that is in a lake now; `already`: it was there before. `num_rows`: of all its tables."""

    trace_id: str
    already: bool
    num_rows: int


@dataclass(frozen=True)
class PushLabels:
    """What a push says of its trace: the deployment, and labels by name.

    Raises:
        UsageError: the deployment or a label's name is no name, or a label is too long.
    """

    deployment: str
    labels: Mapping[str, str]

    def __post_init__(self) -> None:
        for what, name in (("deployment", self.deployment), *(("label", key) for key in self.labels)):
            if not NAME.fullmatch(name):
                raise UsageError(
                    f"{name} is no name of a {what}",
                    why="letters, digits, and . _ - are, at most 100 of them",
                )
        for key, value in self.labels.items():
            if len(value) > LONGEST_LABEL or "\0" in value or (not value.isascii() and not _is_text(value)):
                raise UsageError(f"the label {key} is no text of up to {LONGEST_LABEL} characters")


def push_trace(path: Path, lake: LakeName, pushed_as: PushLabels) -> PushResult:
    """Put one trace into a lake. Args, Returns, Raises: as of `LakeWriter` and its `push`."""
    with LakeWriter(lake) as writer:
        return writer.push(path, pushed_as)


class LakeWriter(AbstractContextManager["LakeWriter"]):
    """Pushes traces into a lake, one after the other, over one connection. It makes the lake if there is none.

    Raises:
        LakeError: the extra `fleet` is missing, or what the lake needs of it.
    """

    def __init__(self, lake: LakeName) -> None:
        check_extensions(lake)
        self.lake = lake
        self._opened = ExitStack()
        self._db: duckdb.DuckDBPyConnection | None = None

    def __exit__(self, *_: object) -> None:
        self._close()

    def push(self, path: Path, pushed_as: PushLabels) -> PushResult:
        """Put the trace at `path` into the lake.

        Args:
            path: a finished trace.
            pushed_as: its deployment and labels. Those of a trace that is there already stay as they are.

        Raises:
            TraceError: the file is no trace, is damaged, or still records.
            LakeError: the lake cannot be reached or written; the trace is in it whole, or not at all.
        """
        refuse_other_files(path)
        for attempt in range(TRIES):
            try:
                return _push(self._connection(), path, self.lake, pushed_as)
            except duckdb.Error as error:
                self._give_up()
                if not is_conflict(error):
                    raise lake_failed(self.lake, "was not written", error, hint=AGAIN) from None
                last = error
            except BaseException:
                self._give_up()
                raise
            time.sleep(random.uniform(0.05, 0.2) * (attempt + 1))
        raise lake_failed(self.lake, f"was not written in {TRIES} tries", last, hint=AGAIN)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._db is None:
            if not self._is_ready():
                self._close()
                _make_lake(self.lake)
                self._open()
            assert self._db is not None
            self._db.execute("SET threads = 1")  # each table becomes one file
        return self._db

    def _is_ready(self) -> bool:
        try:
            return is_complete(self._open())
        except LakeError:
            return False  # it is not there, or it cannot be reached: to make it says which

    def _open(self) -> duckdb.DuckDBPyConnection:
        self._db = self._opened.enter_context(open_lake(self.lake, read_only=False))
        return self._db

    def _give_up(self) -> None:
        """Close, and let go of the trace's file before: a database whose PostgreSQL is gone outlives its connection."""
        if self._db is not None:
            for statement in ("ROLLBACK", f"DETACH {FILE}"):
                with suppress(duckdb.Error):
                    self._db.execute(statement)
        self._close()

    def _close(self) -> None:
        self._db = None
        self._opened.close()


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _make_lake(lake: LakeName) -> None:
    """Create the lake and its tables where they are missing: one push does so, others wait for it."""
    with lake_lock(lake), open_lake(lake, create=True, read_only=False) as db:
        try:
            if not is_complete(db):
                make_tables(db, lake)
        except duckdb.Error as error:
            raise lake_failed(lake, "cannot be made", error, hint=AGAIN) from None


def _push(db: duckdb.DuckDBPyConnection, path: Path, lake: LakeName, pushed_as: PushLabels) -> PushResult:
    sources = _attach_trace(db, path)
    try:
        trace_id, day = identity_of(db, sources)
        num_rows = sum(_rows(db, sources).values())
    except duckdb.Error as error:
        raise damaged(path, error) from None
    pushed = PushResult(trace_id, _is_there(db, trace_id, day), num_rows)
    if not pushed.already:
        db.execute("BEGIN")
        _insert(db, sources, (trace_id, pushed_as.deployment, day), pushed_as.labels)
        pushed = _commit(db, lake, pushed, day)
    db.execute(f"DETACH {FILE}")
    return pushed


def _commit(db: duckdb.DuckDBPyConnection, lake: LakeName, pushed: PushResult, day: date) -> PushResult:
    """Commit, unless somebody else has pushed the same trace since this transaction began."""
    with lake_lock(lake, db) as check:
        with db.cursor() as now:
            if _is_there(now, pushed.trace_id, day):
                db.execute("ROLLBACK")
                return replace(pushed, already=True)
        check()
        db.execute("COMMIT")
    return pushed


def _attach_trace(db: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Attach the trace as `FILE`. Returns the query of each table of the schema. Only its tables are ever read."""
    try:
        db.execute(f"ATTACH '{quoted(path.resolve())}' AS {FILE} (READ_ONLY, TYPE duckdb)")
        tables = file_tables(db)
        earlier = check_head(db, path, tables) < schema.SCHEMA_VERSION
        if STATE in tables.columns:
            raise TraceError(
                f"{path} still records",
                why="a lake takes finished traces",
                hint=f"`fdtrace detach` ends a recording; if it was cut off: fdtrace recover {path}",
            )
        return table_sources(path, tables, (), earlier=earlier)
    except duckdb.Error as error:
        raise damaged(path, error) from None


def _rows(db: duckdb.DuckDBPyConnection, sources: Mapping[str, str]) -> dict[str, int]:
    return {
        name: int(db.execute(f"SELECT count(*) FROM ({source})").fetchall()[0][0])
        for name, source in sources.items()
    }


def _is_there(db: duckdb.DuckDBPyConnection, trace_id: str, day: date) -> bool:
    query = f"SELECT count(*) FROM {LAKE}.main.trace WHERE day = $1 AND trace_id = $2"
    return bool(db.execute(query, [day, trace_id]).fetchall()[0][0])


def _insert(
    db: duckdb.DuckDBPyConnection,
    sources: Mapping[str, str],
    key: tuple[str, str, date],
    labels: Mapping[str, str],
) -> None:
    """Write every table of the trace."""
    columns = ", ".join(f"${i} AS {column.name}" for i, column in enumerate(KEY, 1))
    numbered = {name: _numbered(name, source) for name, source in sources.items()}
    for name, source in numbered.items():
        if name != schema.TRACE.name:
            db.execute(f"INSERT INTO {LAKE}.main.{name} BY NAME SELECT {columns}, * FROM ({source})", [*key])
    figures = _figures(sources)
    more = ", ".join(f"({figures[column.name]})::{column.type} AS {column.name}" for column in TRACE_COLUMNS)
    db.execute(
        f"INSERT INTO {LAKE}.main.trace BY NAME SELECT {columns}, {more}, * FROM ({numbered['trace']})",
        [*key, list(labels), list(labels.values())],
    )


def _numbered(table: str, source: str) -> str:
    """The query of a trace's table, with a number for each row. A table that an older trace lacks has no row."""
    place = f" FROM {FILE}.main.{table}"
    return source.replace(place, f", rowid AS {ROW.name}{place}") if place in source else source


def _figures(sources: Mapping[str, str]) -> dict[str, str]:
    """The expressions of what `trace` says of a trace in a lake."""
    engine, step = sources["engine"], sources["step"]
    exceeded = next(view.query for view in schema.VIEWS if view.name == "exceeded")
    return {
        "host": f"SELECT arg_min(host, engine_id) FROM ({engine})",
        "labels": "map($4::VARCHAR[], $5::VARCHAR[])",
        "pushed_at": "now() AT TIME ZONE 'UTC'",
        "num_engines": f"SELECT count(*) FROM ({engine})",
        "num_steps": f"SELECT count(*) FROM ({step})",
        "num_requests": f"SELECT count(*) FROM ({sources['request']})",
        "num_exceeded": f"WITH engine AS ({engine}), step AS ({step}), event AS ({sources['event']}), "
        f"call AS ({sources['call']}) "
        f"SELECT count(DISTINCT (engine_id, step)) FROM ({exceeded})",
    }
