"""Removes old traces from a lake, and the files that nothing needs any more.

DuckLake keeps what was removed as long as one of its snapshots shows it: a query that runs meanwhile still finds its
files. So files go with the next expiry after the grace.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.lake.lake_connection import CATALOG, LAKE, open_lake
from fdtrace.recorder.lake.lake_errors import lake_failed
from fdtrace.recorder.lake.lake_lock import lake_lock
from fdtrace.recorder.lake.lake_name import LakeName
from fdtrace.recorder.lake.lake_tables import lake_sources, present_tables

LONGEST_PUSH = timedelta(days=1)
"""A file that no catalog names is younger than this only if a push that still runs has written it."""
AGAIN = "do it again: each of its steps is whole or not at all"


@dataclass(frozen=True)
class ExpiredTraces:
    """The traces that were removed, and how many files."""

    trace_ids: tuple[str, ...]
    num_files: int


def expire_traces(
    lake: LakeName,
    before: datetime,
    *,
    deployment: str | None = None,
    grace: timedelta,
    dry_run: bool = False,
) -> ExpiredTraces:
    """Remove the traces whose recording began before a time.

    Args:
        lake: the lake.
        before: that time, with its zone.
        deployment: of this one alone.
        grace: how long queries that have begun may still need what was removed.
        dry_run: only say which traces.

    Raises:
        LakeError: the lake cannot be reached or written.
    """
    now = datetime.now(timezone.utc)
    with lake_lock(lake), open_lake(lake, read_only=dry_run) as db:
        try:
            found = _before(db, lake, before, deployment)
            if dry_run:
                return ExpiredTraces(found, 0)
            if found:
                _delete(db, found, before)
            files = _clean(db, now - grace, now - max(grace, LONGEST_PUSH))
        except duckdb.Error as error:
            raise lake_failed(lake, "was not cleaned", error, hint=AGAIN) from None
    return ExpiredTraces(found, files)


def compact_lake(lake: LakeName) -> int:
    """Merge the small files of each deployment and day. Returns how many files were written.

    Raises:
        LakeError: the lake cannot be reached or written.
    """
    with lake_lock(lake), open_lake(lake, read_only=False) as db:
        try:
            return len(db.execute(f"CALL ducklake_merge_adjacent_files('{LAKE}')").fetchall())
        except duckdb.Error as error:
            raise lake_failed(lake, "was not compacted", error, hint=AGAIN) from None


def _before(
    db: duckdb.DuckDBPyConnection, lake: LakeName, before: datetime, deployment: str | None
) -> tuple[str, ...]:
    rows = db.execute(
        f"SELECT trace_id FROM ({lake_sources(db, lake)['trace']}) WHERE created_at < $1::TIMESTAMP "
        "AND ($2 IS NULL OR deployment = $2) ORDER BY trace_id",
        [_utc(before), deployment],
    ).fetchall()
    return tuple(row[0] for row in rows)


def _delete(db: duckdb.DuckDBPyConnection, trace_ids: tuple[str, ...], before: datetime) -> None:
    present = present_tables(db)
    db.execute("BEGIN")
    for table in schema.TABLES:
        if table.name in present:
            db.execute(
                f"DELETE FROM {LAKE}.main.{table.name} "
                "WHERE day <= $1::TIMESTAMP::DATE AND list_contains($2, trace_id)",
                [_utc(before), list(trace_ids)],
            )
    db.execute("COMMIT")


def _clean(db: duckdb.DuckDBPyConnection, unseen: datetime, unnamed: datetime) -> int:
    """Forget snapshots before `unseen`, then remove their files, and those before `unnamed` that no catalog names.

    DuckLake counts the age of a file that is to go from the moment at which its last snapshot is forgotten. Nobody has
    needed such a file since `unseen`, so it goes at once. Only if files wait that a compaction has replaced since then,
    which a query may still read, all wait for the next time.
    """
    removed = _removed(db, "cleanup_old_files", f"older_than => TIMESTAMPTZ '{unseen.isoformat()}'")
    waiting = f"SELECT count(*) FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
    ((num_waiting,),) = db.execute(waiting).fetchall()
    db.execute(f"CALL ducklake_expire_snapshots('{LAKE}', older_than => TIMESTAMPTZ '{unseen.isoformat()}')")
    if not num_waiting:
        removed += _removed(db, "cleanup_old_files", "cleanup_all => true")
    return removed + _removed(
        db, "delete_orphaned_files", f"older_than => TIMESTAMPTZ '{unnamed.isoformat()}'"
    )


def _removed(db: duckdb.DuckDBPyConnection, function: str, which: str) -> int:
    """How many files a function of DuckLake has removed."""
    return len(db.execute(f"CALL ducklake_{function}('{LAKE}', {which})").fetchall())


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat(sep=" ")
