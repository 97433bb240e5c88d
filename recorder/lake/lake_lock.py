"""One commit at a time: whoever holds a lake's lock sees all that was committed, and nobody commits in between.

DuckLake has no unique keys. Without the lock, two pushes of the same trace could both find that it is not there. It
also saves DuckLake the retries of commits that come at once. Files are written before, without the lock.

With SQLite it is a lock of a file beside the catalog, with PostgreSQL an advisory lock of a transaction. Either ends
with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import duckdb

from fdtrace.recorder.lake.lake_connection import close_quietly, extension_path
from fdtrace.recorder.lake.lake_errors import LakeError, lake_failed
from fdtrace.recorder.lake.lake_name import LakeName
from fdtrace.recorder.sql_text import quoted

PATIENCE = 300.0
"""Seconds to wait for the lock. A commit takes some tenths of a second; hundreds may wait."""
PAUSE = 0.02
KEY = 0x66647472616365
"""The number of the advisory lock: `fdtrace` in ASCII."""
LOCK = f"SELECT pg_try_advisory_xact_lock({KEY}) AS held"
HELD = (
    "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() "
    f"AND ((classid::bigint << 32) | objid::bigint) = {KEY}"
)

Check = Callable[[], None]
"""Raises a LakeError if the lock was lost."""


@contextmanager
def lake_lock(lake: LakeName, db: duckdb.DuckDBPyConnection | None = None) -> Iterator[Check]:
    """Hold the lake's lock within the `with` block. Yields what checks that it is still held.

    Args:
        lake: the lake.
        db: a connection to it, if there is one: that saves the time to open another database of DuckDB.

    Raises:
        LakeError: the catalog cannot be reached, or others hold the lock for too long.
    """
    with _file_lock(lake) if lake.catalog == "sqlite" else _advisory_lock(lake, db) as check:
        yield check


@contextmanager
def _file_lock(lake: LakeName) -> Iterator[Check]:
    path = f"{lake.connection}.lock"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise LakeError(f"{lake} cannot be written", why=f"{path}: {error.strerror}") from None
    try:
        _wait_until(lambda: _try_flock(fd), lake)
        yield lambda: None
    finally:
        os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _advisory_lock(lake: LakeName, shared: duckdb.DuckDBPyConnection | None) -> Iterator[Check]:
    """The lock, held by a connection to PostgreSQL of its own, which stays in one transaction."""
    with ExitStack() as stack:
        try:
            db = duckdb.connect(":memory:") if shared is None else shared.cursor()
            stack.callback(close_quietly, db)
            if shared is None:
                db.execute(f"LOAD '{quoted(extension_path('postgres_scanner'))}'")
            db.execute(
                f"ATTACH IF NOT EXISTS '{quoted(lake.connection)}' AS guard (TYPE postgres, READ_ONLY)"
            )
            db.execute("BEGIN")
            _wait_until(lambda: bool(_ask(db, LOCK)), lake)
        except duckdb.Error as error:
            raise lake_failed(lake, "cannot be reached", error, hint=AGAIN) from None

        def check() -> None:
            try:
                held = _ask(db, HELD)
            except duckdb.Error as error:
                raise lake_failed(lake, "has lost the lock", error, hint=AGAIN) from None
            if not held:
                raise LakeError(f"{lake} has lost the lock", hint=AGAIN)

        yield check


AGAIN = "do it again: nothing was changed"


def _ask(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute("FROM postgres_query('guard', $1)", [query]).fetchone()
    return int(row[0]) if row else 0


def _wait_until(held: Callable[[], bool], lake: LakeName) -> None:
    deadline = time.monotonic() + PATIENCE
    while not held():
        if time.monotonic() > deadline:
            raise LakeError(
                f"{lake} is locked",
                why=f"another push or `fdtrace lake` has held its lock for {PATIENCE:.0f} s",
                hint="look for one that hangs, then do it again: nothing was changed",
            )
        time.sleep(random.uniform(PAUSE / 2, 2 * PAUSE))
