"""Opening a large trace and finding its exceeded steps: seconds and milliseconds, at a million steps of 128 requests.

    python benchmarks/big_trace.py [--steps N] [--requests N] [--keep PATH]

The trace is made in DuckDB itself, with the schema, the order and the row groups of a real one (half the steps exactly
at the limit, one in a thousand above it). Each figure is from a process of its own; the first is what a user waits for
after the file was written, the others follow with the file in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector.views import SCHEMA_VIEWS, define_views

MEASURED = """
import json, sys, time
begun = time.perf_counter()
from pathlib import Path
from fdtrace.recorder.trace.trace import open_trace
imported = time.perf_counter()
with open_trace(Path(sys.argv[1])) as trace:
    opened = time.perf_counter()
    exceeded = trace.rows("SELECT step, excess_tokens FROM exceeded ORDER BY step")
    first = time.perf_counter()
    trace.rows("SELECT step, excess_tokens FROM exceeded ORDER BY step")
    found = time.perf_counter()
    recording = trace.recording()
    loaded = time.perf_counter()
    trace.rows("SELECT * FROM step_request WHERE step = 777777 % (SELECT count(*) FROM step)")
    looked = time.perf_counter()
times = [imported - begun, opened - imported, first - opened, found - first, loaded - found, looked - loaded]
print(json.dumps({"exceeded": len(exceeded), "times": times}))
"""

STEPS = """
INSERT INTO big.step BY NAME SELECT 0 AS engine_id, i AS step,
    make_timestamp_ns(1790000000000000000 + i * 20000000) AS ts,
    2048 AS token_budget, 2048 AS num_scheduled_tokens,
    (CASE WHEN i % 1000 = 7 THEN 2048 + i % 300 + 1 WHEN i % 2 = 0 THEN 2048
          ELSE 700 + hash(i) % 1300 END)::INT AS num_tokens,
    num_tokens - 640 AS num_prefill_tokens, 640 AS num_decode_tokens, 512 AS num_draft_tokens,
    (hash(i + 1) % 512)::INT AS num_accepted_tokens, {requests} AS num_running, (hash(i + 2) % 9)::INT AS num_waiting,
    0 AS num_preempted, 0 AS num_stalled, (100 + hash(i + 3) % 50)::INT AS num_free_blocks, 3000 AS num_blocks,
    (60 + i // 100000)::BIGINT << 30 AS reserved_bytes, (300 + hash(i + 4) % 100)::INT AS schedule_us,
    (18000 + hash(i + 5) % 4000)::INT AS forward_us
FROM range({steps}) r(i)
"""

ROWS = """
INSERT INTO big.step_request BY NAME SELECT 0 AS engine_id, i AS step, ((i // 200) * 7 + j)::INT AS request,
    'decode' AS kind, 5 AS num_tokens, (500 + (i % 200) * 3 + j)::INT AS num_computed_tokens, 4 AS num_draft_tokens,
    (hash(i * 128 + j) % 5)::INT AS num_accepted_tokens, (8 + (i % 200) // 20)::INT AS num_blocks
FROM range({first}, {last}) r(i), range({requests}) q(j)
"""

LABELS = (
    "import",
    "open",
    "exceeded, first",
    "exceeded, again",
    "load for the screen",
    "one step's requests",
)


def make(path: Path, steps: int, requests: int) -> None:
    """Write the trace."""
    with duckdb.connect() as db:
        options = f"STORAGE_VERSION '{schema.STORAGE_VERSION}', ROW_GROUP_SIZE {schema.ROW_GROUP_SIZE}"
        db.execute(f"ATTACH '{path}' AS big ({options})")
        for table in schema.TABLES:
            columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
            db.execute(f"CREATE TABLE big.{table.name} ({columns})")
        version = [schema.SCHEMA_VERSION, __version__]
        db.execute(
            "INSERT INTO big.trace BY NAME SELECT $1 AS schema_version, $2 AS fdtrace_version, 'complete' AS state",
            version,
        )
        db.execute(
            "INSERT INTO big.engine BY NAME SELECT 0 AS engine_id, 'benchmark' AS name, "
            "2048 AS max_num_batched_tokens, 256 AS max_num_seqs, 4 AS num_speculative_tokens, "
            "'mtp' AS spec_method, 64 AS block_size, "
            "3000 AS num_blocks"
        )
        db.execute(STEPS.format(steps=steps, requests=requests))
        for first in range(0, steps, 50_000):
            db.execute(ROWS.format(first=first, last=min(steps, first + 50_000), requests=requests))
        define_views(db, "big", SCHEMA_VIEWS)
        db.execute("DETACH big")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--keep", type=Path, help="write the trace there, and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = options.keep or Path(directory) / "big.duckdb"
        begun = time.perf_counter()
        if not path.exists():
            make(path, options.steps, options.requests)
        rows = options.steps * options.requests
        size = path.stat().st_size
        print(f"{options.steps:,} steps, {rows:,} rows, {size:,} bytes, {size / rows:.2f} a row")
        print(f"made in {time.perf_counter() - begun:.0f} s")
        runs = []
        for _ in range(5):
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, str(path)], stdout=subprocess.PIPE, check=True
            )
            runs.append(json.loads(done.stdout))
        print(f"{runs[0]['exceeded']} exceeded steps; ms: first run, then the median of the others")
        for i, label in enumerate(LABELS):
            later = sorted(run["times"][i] * 1e3 for run in runs[1:])
            print(f"  {label:<22}{runs[0]['times'][i] * 1e3:9.1f} {later[len(later) // 2]:9.1f}")


if __name__ == "__main__":
    main()
