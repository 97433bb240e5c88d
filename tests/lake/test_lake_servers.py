"""A lake for many machines: its catalog in a real PostgreSQL, its files in a real S3-compatible server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.lake import expire_traces as expiring
from fdtrace.recorder.lake import push_trace as pushing
from fdtrace.recorder.lake.expire_traces import expire_traces
from fdtrace.recorder.lake.lake_connection import check_extensions, open_lake
from fdtrace.recorder.lake.lake_errors import LakeError
from fdtrace.recorder.lake.lake_lock import lake_lock
from fdtrace.recorder.lake.lake_name import LakeName, LakeTraceName, parse_lake
from fdtrace.recorder.lake.pull_trace import list_traces, pull_trace
from fdtrace.recorder.lake.push_trace import PushLabels, push_trace
from tests.lake.conftest import OtherTrace
from tests.lake.servers import BUCKET, PASSWORD, SECRET, WAIT, Bucket, Postgres, postgres_bin, weed
from tests.lake.test_lake import PUSH_ALL, asked, contents, rows_of

pytestmark = pytest.mark.xdist_group("lake servers")

CHAT = PushLabels("chat", {"commit": "41677b9"})


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if postgres_bin() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    try:
        check_extensions(parse_lake("ducklake:postgres:dbname=x?data=s3://x"))
    except LakeError as error:
        pytest.skip(f"{error.why}: {error.hint}, or make test-fleet")
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    if weed() is None:
        pytest.skip("SeaweedFS is not installed: make test-fleet")
    server = Bucket()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def shared_lake(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LakeName:
    """A new lake: its catalog in a database of its own, its files in a folder."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return parse_lake(f"ducklake:postgres:{new_database(postgres)}?data={tmp_path / 'data'}")


@pytest.fixture
def bucket_lake(postgres: Postgres, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> LakeName:
    """A new lake: its catalog in a database of its own, its files in a bucket."""
    for name, value in {"PGPASSWORD": PASSWORD, **bucket.environment}.items():
        monkeypatch.setenv(name, value)
    return parse_lake(f"ducklake:postgres:{new_database(postgres)}?data=s3://{BUCKET}/{uuid4().hex}")


def new_database(postgres: Postgres) -> str:
    name = f"lake_{uuid4().hex}"
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    connection = ["-h", str(postgres.folder), "-U", "postgres"]
    subprocess.run([postgres.bin / "createdb", *connection, name], check=True, env=environment)
    return postgres.name.replace("dbname=postgres", f"dbname={name}")


def test_writers_at_once_lose_and_double_nothing(shared_lake: LakeName, another: OtherTrace) -> None:
    """They also make the lake at once, and each trace is pushed by two of them."""
    traces = [another(f"t{i}", host=f"host{i}") for i in range(6)]
    parts = (traces[:4], traces[2:], [*traces[4:], *traces[:2]])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", PUSH_ALL, str(shared_lake), *map(str, part)], stdout=subprocess.DEVNULL
        )
        for part in parts
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert sorted(row["host"] for row in list_traces(shared_lake)) == [f"host{i}" for i in range(6)]
    expected = contents(traces[0])
    for name, numbers in rows_of(shared_lake).items():
        assert numbers in ({len(expected[name])}, set()), name


def test_a_trace_in_a_bucket_is_the_one_that_was_pushed(
    recorded: Path, bucket_lake: LakeName, tmp_path: Path, bucket: Bucket, postgres: Postgres
) -> None:
    pushed = push_trace(recorded, bucket_lake, CHAT)
    assert push_trace(recorded, bucket_lake, CHAT).already
    without_data = LakeName(bucket_lake.catalog, bucket_lake.connection, None)
    pull_trace(LakeTraceName(without_data, pushed.trace_id), tmp_path / "t.duckdb")
    assert contents(tmp_path / "t.duckdb") == contents(recorded)
    database = bucket_lake.connection.split()[0].removeprefix("dbname=")
    dump = subprocess.run(
        [postgres.bin / "pg_dump", "-h", str(postgres.folder), "-U", "postgres", database],
        check=True, capture_output=True, env={**os.environ, "PGPASSWORD": PASSWORD},
    ).stdout  # fmt: skip
    assert b"ducklake_data_file" in dump
    assert PASSWORD.encode() not in dump
    assert SECRET.encode() not in dump


@pytest.mark.parametrize("when", ["files", "commit"])
def test_postgres_goes_in_the_middle_of_a_push(
    when: str, shared_lake: LakeName, postgres: Postgres, another: OtherTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = push_trace(another("first", host="first"), shared_lake, CHAT)
    path = another("second", host="second")
    crash = _before_insert(postgres.stop) if when == "files" else _before_commit(postgres.stop)
    with monkeypatch.context() as patched:
        crash(patched)
        with pytest.raises(LakeError) as failed:
            push_trace(path, shared_lake, CHAT)
    assert "again" in failed.value.hint
    assert PASSWORD not in str(failed.value)
    duckdb.connect(str(path)).close()  # nothing of the failed push holds the trace any more
    with pytest.raises(LakeError, match="cannot be opened"):
        list_traces(shared_lake)
    postgres.start()
    assert [row["trace_id"] for row in list_traces(shared_lake)] == [first.trace_id]
    assert all(len(numbers) <= 1 for numbers in rows_of(shared_lake).values())
    assert not push_trace(path, shared_lake, CHAT).already
    assert len(list_traces(shared_lake)) == 2


def test_the_bucket_goes_in_the_middle_of_a_push(
    bucket_lake: LakeName,
    bucket: Bucket,
    another: OtherTrace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    push_trace(another("first", host="first"), bucket_lake, CHAT)
    path = another("second", host="second")
    with monkeypatch.context() as patched:
        _before_insert(bucket.stop)(patched)
        with pytest.raises(LakeError) as failed:
            push_trace(path, bucket_lake, CHAT)
    assert "push it again" in failed.value.hint
    assert SECRET not in str(failed.value)
    bucket.start()
    assert [row["host"] for row in listed_again(bucket_lake)] == ["first"]
    pushed = push_trace(path, bucket_lake, CHAT)
    assert not pushed.already
    pull_trace(LakeTraceName(bucket_lake, pushed.trace_id), tmp_path / "t.duckdb")
    assert contents(tmp_path / "t.duckdb") == contents(path)


def test_old_traces_and_what_killed_pushes_left_go_from_a_bucket(
    bucket_lake: LakeName, another: OtherTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_path = another("new")
    new = push_trace(new_path, bucket_lake, CHAT).trace_id
    only_new = objects_of(bucket_lake)
    old = push_trace(another("old", days=40), bucket_lake, CHAT).trace_id
    with_old = objects_of(bucket_lake)
    assert only_new < with_old
    with open_lake(bucket_lake) as db:
        left = f"{bucket_lake.data}ducklake-left.parquet"
        db.execute(f"COPY (SELECT 1 AS x) TO '{left}' (FORMAT parquet)")
    before, now = datetime.now(timezone.utc) - timedelta(days=30), timedelta(0)
    expired = expire_traces(bucket_lake, before, grace=timedelta(days=1))
    assert expired.trace_ids == (old,)
    assert [row["trace_id"] for row in list_traces(bucket_lake)] == [new]
    assert objects_of(bucket_lake) >= {*with_old, left}, "a query or a push that runs may still need them"
    assert expire_traces(bucket_lake, before, grace=now).num_files == len(with_old - only_new)
    assert objects_of(bucket_lake) == {*only_new, left}
    monkeypatch.setattr(expiring, "LONGEST_PUSH", now)
    assert expire_traces(bucket_lake, before, grace=now).num_files == 1
    assert objects_of(bucket_lake) == only_new
    pull_trace(LakeTraceName(bucket_lake, new), tmp_path / "t.duckdb")
    assert contents(tmp_path / "t.duckdb") == contents(new_path)


def test_a_lock_that_is_lost_is_noticed_before_the_commit(
    shared_lake: LakeName, postgres: Postgres, recorded: Path
) -> None:
    push_trace(recorded, shared_lake, CHAT)
    with open_lake(shared_lake) as db, lake_lock(shared_lake) as check:
        check()
        db.execute(
            "FROM postgres_query('__ducklake_metadata_lake', 'SELECT pg_terminate_backend(pid)::int AS n FROM pg_locks "
            "WHERE locktype = ''advisory''')"
        ).fetchall()
        with pytest.raises(LakeError, match="lost the lock"):
            check()


def test_one_at_a_time_holds_the_lock(shared_lake: LakeName) -> None:
    order: list[str] = []
    with lake_lock(shared_lake):
        waiting = threading.Thread(target=_hold, args=(shared_lake, order))
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_a_query_cannot_write_through_the_catalog(shared_lake: LakeName, recorded: Path) -> None:
    push_trace(recorded, shared_lake, CHAT)
    for query in (
        "FROM postgres_query('__ducklake_metadata_lake', 'DELETE FROM ducklake_snapshot RETURNING snapshot_id')",
        "FROM postgres_execute('__ducklake_metadata_lake', 'CREATE TABLE planted (x int)')",
    ):
        with pytest.raises((UsageError, duckdb.Error)):
            asked(shared_lake, query)
    assert asked(shared_lake, "SELECT count(*) FROM trace") == [(1,)]


def test_a_wrong_password_is_not_printed(shared_lake: LakeName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "a-wrong-one")
    with pytest.raises(LakeError) as failed:
        list_traces(shared_lake)
    assert "authentication failed" in failed.value.why
    assert "a-wrong-one" not in str(failed.value)


def objects_of(lake: LakeName) -> set[str]:
    """What is in the lake's part of its bucket."""
    with open_lake(lake) as db:
        return {name for (name,) in db.execute("SELECT file FROM glob($1)", [f"{lake.data}**"]).fetchall()}


def listed_again(lake: LakeName) -> list[dict[str, Any]]:
    """What the lake holds, once its bucket serves its files again: that takes some seconds after it answers."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            return list_traces(lake)
        except LakeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _hold(lake: LakeName, order: list[str]) -> None:
    with lake_lock(lake):
        order.append("second")


def _before_insert(action: Any) -> Any:
    """Makes `action` happen once a push has begun to write: what is written first is there, the rest is not."""
    insert = pushing._insert

    def patch(patched: pytest.MonkeyPatch) -> None:
        def half(db: duckdb.DuckDBPyConnection, sources: Any, *rest: Any) -> None:
            insert(
                db,
                {name: sources[name] for name in ("engine", "trace", "step", "request", "event", "call")},
                *rest,
            )
            action()
            insert(db, sources, *rest)

        patched.setattr(pushing, "_insert", half)

    return patch


def _before_commit(action: Any) -> Any:
    """Makes `action` happen when all files are written, and the catalog is not."""
    insert = pushing._insert

    def patch(patched: pytest.MonkeyPatch) -> None:
        def whole(*arguments: Any) -> None:
            insert(*arguments)
            action()

        patched.setattr(pushing, "_insert", whole)

    return patch
