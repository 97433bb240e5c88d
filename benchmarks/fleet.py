"""8 writers push 200 traces at once into one lake on PostgreSQL; two of them are killed in the middle, and begin again.

    make bench-fleet

Checks that each trace is there once and whole, says how long that took, and how long a question over all of them takes:
which deployments exceeded their limit, when first, by how much. The files are in a folder; with --bucket in SeaweedFS.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.lake.lake_name import LakeName, parse_lake
from fdtrace.recorder.lake.lake_views import open_lake_for_queries
from fdtrace.recorder.lake.pull_trace import list_traces
from tests.lake.servers import BUCKET, PASSWORD, Bucket, Postgres
from tests.recorder.helpers import record_played

WRITERS, KILLED, DEPLOYMENTS = 8, 2, 10
WRITER = """
import sys
from pathlib import Path
from fdtrace.recorder.lake.lake_name import parse_lake
from fdtrace.recorder.lake.push_trace import LakeWriter, PushLabels
with LakeWriter(parse_lake(sys.argv[1])) as writer:
    for path in map(Path, sys.argv[2:]):
        writer.push(path, PushLabels(f"d{int(path.stem) % 10}", {}))
        print(path, flush=True)
"""
QUESTION = """
SELECT deployment, count(DISTINCT trace_id) AS traces, count(*) AS steps, min(ts) AS first, max(excess_tokens) AS most
FROM exceeded GROUP BY deployment ORDER BY deployment
"""


def main() -> None:
    """Make the traces, push them, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bucket", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fdtrace-fleet-"))
    postgres, bucket = Postgres(), Bucket() if args.bucket else None
    try:
        os.environ["PGPASSWORD"] = PASSWORD
        if bucket is not None:
            os.environ.update(bucket.environment)
        data = f"s3://{BUCKET}/fleet" if bucket is not None else f"{folder}/data"
        lake = parse_lake(f"ducklake:postgres:{postgres.name}?data={data}")
        paths = make_traces(folder, args.traces, args.steps)
        begun = time.perf_counter()
        again = push_all(lake, paths)
        took = time.perf_counter() - begun
        print(
            f"{len(paths)} traces of {args.steps} steps by {WRITERS} writers: {took:.1f} s, {len(paths) / took:.1f} a s"
        )
        print(f"{KILLED} writers were killed; they had {again} traces left, and pushed all theirs again")
        check(lake, paths)
        ask(lake)
    finally:
        postgres.close()
        if bucket is not None:
            bucket.close()
        shutil.rmtree(folder)


def make_traces(folder: Path, number: int, steps: int) -> list[Path]:
    """Copies of one recording, each of another host and moment."""
    first = folder / "first.duckdb"
    record_played(steps, first)
    paths = [folder / f"{i}.duckdb" for i in range(number)]
    for i, path in enumerate(paths):
        shutil.copy(first, path)
        with duckdb.connect(str(path)) as db:
            db.execute("UPDATE engine SET host = $1", [f"host{i}"])
            db.execute(f"UPDATE trace SET created_at = (created_at::TIMESTAMP - to_hours({i}))::TIMESTAMP_NS")
    return paths


def push_all(lake: LakeName, paths: list[Path]) -> int:
    """Push by 8 processes at once. Returns how many traces the killed ones had left."""
    shares = [paths[i::WRITERS] for i in range(WRITERS)]
    writers = [start(lake, share) for share in shares]
    left = 0
    for i in range(KILLED):
        stdout = writers[i].stdout
        assert stdout is not None
        done = [stdout.readline() for _ in range(len(shares[i]) // 2)]
        time.sleep(0.05 * i)
        writers[i].send_signal(signal.SIGKILL)
        left += len(shares[i]) - len(done)
        writers[i].communicate()
    check_whole(lake, paths)
    for i in range(KILLED):
        writers[i] = start(lake, shares[i])
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    return left


def start(lake: LakeName, paths: list[Path]) -> subprocess.Popen[bytes]:
    """A process that pushes these."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(lake), *map(str, paths)], stdout=subprocess.PIPE
    )


def check(lake: LakeName, paths: list[Path]) -> None:
    """Every trace once, and every table of it whole."""
    hosts = sorted(row["host"] for row in list_traces(lake))
    assert hosts == sorted(f"host{i}" for i in range(len(paths))), "each once"
    assert set(check_whole(lake, paths).values()) <= {0, len(paths)}
    print("every trace is there once, and whole")


def check_whole(lake: LakeName, paths: list[Path]) -> dict[str, int]:
    """Whatever is there is whole. Returns for each table how many traces have rows in it."""
    traces = {}
    with open_lake_for_queries(lake) as trace, duckdb.connect(str(paths[0]), read_only=True) as first:
        for table in schema.TABLES:
            expected = first.sql(f"SELECT count(*) FROM {table.name}").fetchall()[0][0]
            counts = f"SELECT trace_id, count(*) AS n FROM {table.name} GROUP BY trace_id"
            found = trace.query(f"SELECT count(*), min(n), max(n) FROM ({counts})").fetchall()[0]
            assert not found[0] or found[1:] == (expected, expected), table.name
            traces[table.name] = found[0]
    return traces


def ask(lake: LakeName) -> None:
    """Time the question: in one connection, and as a command."""
    for _ in range(3):
        begun = time.perf_counter()
        with open_lake_for_queries(lake) as trace:
            opened = time.perf_counter()
            rows = trace.query(QUESTION).fetchall()
        asked = time.perf_counter()
        print(
            f"question: {asked - begun:.2f} s, of which opening {opened - begun:.2f} s; {len(rows)} deployments"
        )
    command = [sys.executable, "-m", "fdtrace", "sql", str(lake), QUESTION]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"as `fdtrace sql`: {time.perf_counter() - begun:.2f} s")


if __name__ == "__main__":
    main()
