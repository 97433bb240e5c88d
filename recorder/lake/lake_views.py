"""The schema's views over many traces: in a lake, an engine's number means an engine only together with its trace.

Each view of the schema joins, groups and orders by `engine_id`. Here it does so by the trace's key and `engine_id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import StuckQueryError
from fdtrace.recorder.lake.lake_connection import data_path, open_lake
from fdtrace.recorder.lake.lake_errors import lake_failed
from fdtrace.recorder.lake.lake_name import LakeName
from fdtrace.recorder.lake.lake_tables import KEY, lake_sources
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.trace import Trace

ENGINE_KEY = (*(column.name for column in KEY), "engine_id")
_EQUAL = re.compile(r"\b(\w+)\.engine_id = (\w+)\.engine_id\b")
_NAMED = re.compile(r"\b(\w+\.)?engine_id\b")


def of_many_traces(query: str) -> str:
    """The query of one of the schema's views, over tables that hold many traces."""
    joins: list[str] = []

    def join(found: re.Match[str]) -> str:
        left, right = found.groups()
        joins.append(" AND ".join(f"{left}.{name} = {right}.{name}" for name in ENGINE_KEY))
        return f"\0{len(joins) - 1}\0"

    text = _EQUAL.sub(join, query)
    text = _NAMED.sub(lambda found: ", ".join((found[1] or "") + name for name in ENGINE_KEY), text)
    return re.sub(r"\0(\d+)\0", lambda found: joins[int(found[1])], text)


@contextmanager
def open_lake_for_queries(
    lake: LakeName, *, memory: int | None = None, writable: Path | None = None
) -> Iterator[Trace]:
    """A lake, open within the `with` block for queries over the tables and views of all its traces.

    A query reaches the lake's files, and no other file, no network, no setting.

    Args:
        lake: the lake.
        memory: bytes that queries may use; None: half of the machine's.
        writable: a directory that `COPY … TO` may write to.

    Raises:
        LakeError: it is not there, cannot be reached, or holds no trace.
    """
    with open_lake(lake, memory=memory) as db:
        try:
            allowed = [data_path(db), *([f"{writable}/"] if writable is not None else [])]
            _lock_down(db, allowed)
            _make_lake_views(db, lake_sources(db, lake))
        except duckdb.Error as error:
            raise lake_failed(lake, "cannot be read", error, hint="see docs/fleet.md") from None
        try:
            yield Trace(Path(str(lake)), db, makes_views=False)
        except StuckQueryError:
            raise


def _lock_down(db: duckdb.DuckDBPyConnection, directories: list[str]) -> None:
    listed = ", ".join(f"'{quoted(entry)}'" for entry in directories)
    db.execute(f"SET allowed_directories = [{listed}]")
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")


def _make_lake_views(db: duckdb.DuckDBPyConnection, sources: Mapping[str, str]) -> None:
    for name, source in sources.items():
        db.execute(f"CREATE VIEW {name} AS {source}")
    for view in schema.VIEWS:
        db.execute(f"CREATE VIEW {view.name} AS {of_many_traces(view.query)}")
