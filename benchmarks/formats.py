"""Formats at size: requests of a trace to a case, and Perfetto, FPM and OTLP files of steps at 32 requests.

    python benchmarks/formats.py [--large] [--requests N] [--steps N] [--keep DIRECTORY]

`--large`: a million requests, a million steps; without it a fiftieth of these.

Each part runs in a process of its own: seconds, MiB of the result, and the most memory that the process held, beside
the same at a tenth of the size. Memory of the first part must not grow; that of the second grows with the number of
requests and by some bytes a step.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector.views import SCHEMA_VIEWS, define_views

MEASURED = """
import resource, sys, time
from fdtrace.cli import main
begun = time.perf_counter()
assert main(sys.argv[1:]) == 0
print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

LIVES = 200
"""Steps of a request: 4 of its prefill, then decodes."""

STEPS = """
INSERT INTO big.step BY NAME SELECT 0 AS engine_id, i AS step,
    make_timestamp_ns(1790000000000000000 + i * 20000000) AS ts, 2048 AS token_budget,
    2048 AS num_scheduled_tokens, (1200 + hash(i) % 900)::INT AS num_tokens, num_tokens - 640 AS num_prefill_tokens,
    640 AS num_decode_tokens, 512 AS num_draft_tokens, (hash(i + 1) % 512)::INT AS num_accepted_tokens,
    {requests} AS num_running, (hash(i + 2) % 9)::INT AS num_waiting, 0 AS num_preempted, 0 AS num_stalled,
    (100 + hash(i + 3) % 50)::INT AS num_free_blocks, 3000 AS num_blocks, (60 + i // 100000)::BIGINT << 30
    AS reserved_bytes, (300 + hash(i + 4) % 100)::INT AS schedule_us, (18000 + hash(i + 5) % 1000)::INT AS forward_us
FROM range({steps}) r(i)
"""
ROWS = f"""
INSERT INTO big.step_request BY NAME SELECT 0 AS engine_id, i AS step,
    (((i + j * {LIVES} // {{requests}}) // {LIVES}) * {{requests}} + j)::INT AS request,
    (i + j * {LIVES} // {{requests}}) % {LIVES} AS age, CASE WHEN age < 4 THEN 'prefill' ELSE 'decode' END AS kind,
    CASE WHEN age < 4 THEN 160 ELSE 5 END AS num_tokens,
    (CASE WHEN age < 4 THEN age * 160 ELSE 640 + (age - 4) * 3 END)::INT AS num_computed_tokens,
    CASE WHEN age < 4 THEN 0 ELSE 4 END AS num_draft_tokens, CASE WHEN age < 4 THEN 0 ELSE 2 END AS num_accepted_tokens
FROM range({{first}}, {{last}}) r(i), range({{requests}}) q(j)
"""
REQUESTS = """
INSERT INTO big.request BY NAME SELECT 0 AS engine_id, request, 'request-' || request AS request_id,
    min(step) AS arrived_step, make_timestamp_ns(1790000000000000000 + min(step) * 20000000 - 3000000) AS arrived_at,
    640 AS num_prompt_tokens, 588 AS num_output_tokens FROM big.step_request GROUP BY request ORDER BY request
"""


def make_trace(path: Path, steps: int, requests: int) -> None:
    """Write a trace of so many steps at so many running requests."""
    with duckdb.connect() as db:
        db.execute(
            f"ATTACH '{path}' AS big (STORAGE_VERSION '{schema.STORAGE_VERSION}', ROW_GROUP_SIZE 983040)"
        )
        for table in schema.TABLES:
            columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
            db.execute(f"CREATE TABLE big.{table.name} ({columns})")
        db.execute(
            "INSERT INTO big.trace BY NAME SELECT $1 AS schema_version, $2 AS fdtrace_version, 'complete' AS state",
            [schema.SCHEMA_VERSION, __version__],
        )
        db.execute(
            "INSERT INTO big.engine BY NAME SELECT 0 AS engine_id, 'benchmark' AS name, 2048 AS "
            "max_num_batched_tokens, 256 AS max_num_seqs, 64 AS block_size, 3000 AS num_blocks, "
            "8192 AS max_model_len, 'mixed' AS role"
        )
        db.execute(STEPS.format(steps=steps, requests=requests))
        for first in range(0, steps, 50_000):
            last = min(steps, first + 50_000)
            rows = ROWS.format(first=first, last=last, requests=requests)
            db.execute(rows.replace("BY NAME SELECT", "BY NAME SELECT * EXCLUDE age FROM (SELECT") + ")")
        db.execute(REQUESTS)
        define_views(db, "big", SCHEMA_VIEWS)
        db.execute("DETACH big")


def make_requests(path: Path, count: int) -> None:
    """Write a Mooncake trace of so many requests of some 8,000 tokens."""
    chance = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for at in range(count):
            blocks = chance.randint(1, 32)
            ids = [*range(blocks // 2), *range(40 * at + 1000, 40 * at + 1000 + blocks - blocks // 2)]
            request = {
                "timestamp": 27 * at,
                "input_length": 512 * blocks,
                "output_length": 150,
                "hash_ids": ids,
            }
            file.write(json.dumps(request) + "\n")


def measured(*arguments: str | Path) -> tuple[float, float]:
    """Seconds and MiB of a command of fdtrace."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true", help="a million requests, a million steps")
    parser.add_argument("--requests", type=int, help="of the request trace")
    parser.add_argument("--steps", type=int, help="of the recording")
    parser.add_argument("--keep", type=Path, help="leave the files there")
    options = parser.parse_args()
    size = 1_000_000 if options.large else 20_000
    num_requests, num_steps = options.requests or size, options.steps or size
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        for count in (num_requests // 10, num_requests):
            source, case = directory / f"{count}.jsonl", directory / f"{count}.case.json"
            make_requests(source, count)
            seconds, memory = measured("workload", source, "--force", "-o", case)
            figures = f"{seconds:5.1f} s, {case.stat().st_size / 2**20:7.1f} MiB, memory {memory:5.0f} MiB"
            print(f"{count:>9,} requests of Mooncake to a case: {figures}")
        for steps in (num_steps // 10, num_steps):
            trace = directory / f"{steps}.duckdb"
            if not trace.exists():
                begun = time.perf_counter()
                make_trace(trace, steps, 32)
                print(f"  trace of {steps:,} steps made in {time.perf_counter() - begun:.0f} s")
            for name, ending in (("perfetto", "pftrace"), ("fpm", "fpm.jsonl.gz"), ("otlp", "spans.json")):
                out = directory / f"{steps}.{ending}"
                seconds, memory = measured("export", trace, "--to", name, "--force", "-o", out)
                figures = f"{seconds:5.1f} s, {out.stat().st_size / 2**20:7.1f} MiB, memory {memory:5.0f} MiB"
                print(f"{steps:>9,} steps at 32 requests, --to {name}: {figures}")
                if options.keep is None:
                    out.unlink()
    print(f"this process itself: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
