"""The id of a trace in a lake: the same for every copy of it, another one for every other recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError

DIGITS = 16
"""Hexadecimal digits of the digest."""


def identity_of(db: duckdb.DuckDBPyConnection, sources: Mapping[str, str]) -> tuple[str, date]:
    """A trace's id, and the day on which its recording began, UTC.

    The digest is of the rows of `trace` and `engine`, and of how many rows each table has. Times are in nanoseconds, so
    two recordings differ. NULL and empty tables do not count: a later schema, which has more columns, leaves an id as
    it is.

    Raises:
        TraceError: the trace does not say when its recording began.
    """
    counts = {name: _count(db, source) for name, source in sources.items()}
    known = {
        "rows": {name: count for name, count in counts.items() if count},
        "trace": _texts(db, sources[schema.TRACE.name]),
        "engine": _texts(db, f"{sources[schema.ENGINE.name]} ORDER BY engine_id"),
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    moment = db.execute(
        f"SELECT strftime(created_at::TIMESTAMP, '%Y%m%dT%H%M%S'), created_at::DATE FROM ({sources['trace']})"
    ).fetchall()[0]
    if moment[0] is None:
        raise TraceError(
            "the trace does not say when its recording began", why="`created_at` of `trace` is NULL"
        )
    return f"{moment[0]}-{digest[:DIGITS]}", moment[1]


def _count(db: duckdb.DuckDBPyConnection, source: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM ({source})").fetchall()[0][0])


def _texts(db: duckdb.DuckDBPyConnection, source: str) -> list[dict[str, Any]]:
    rows = db.execute(f"SELECT COLUMNS(*)::VARCHAR FROM ({source})")
    names = [column[0] for column in rows.description or ()]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in rows.fetchall()
    ]
