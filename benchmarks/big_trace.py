"""Makes a large trace: a recording of the sandbox engine, repeated until it has N steps. `opening.py` measures on it.

    python benchmarks/big_trace.py TRACE [--steps N] [--recording T]

The recording is made first (1,000 steps, up to 128 requests each), or it is the trace T of a sandbox. Each repetition
has its own numbers of steps, calls and requests, its own ids and times. The file is one that the collector could have
written: its tables, comments and views, rows in order, the same row groups. A million steps take about a gigabyte and a
minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.finish import create_final
from fdtrace.recorder.schema_tables import Table

SANDBOX = (
    "--steps 1000 --max-num-seqs 128 --max-num-batched-tokens 1408 --num-blocks 2600 --block-size 64 "
    "--max-model-len 2048 --prompt 64:512 --output 200:600 --backlog 4 --arrival-gap 0 --num-layers 1"
)
"""The load: nearly always 128 requests run; a request runs in about 130 steps."""

ONCE = ("trace", "engine")
"""Tables that are not repeated."""

SHIFTED = {
    "step": "steps", "first_step": "steps", "arrived_step": "steps", "call": "calls", "request": "requests",
    "head": "requests",
}  # fmt: skip
"""Column -> what its numbers count. Those of the next repetition follow those of the one before."""

AT_ONCE = 50
"""Repetitions that are written by one statement."""


def record(path: Path) -> None:
    """Record the sandbox engine."""
    fdtrace = [sys.executable, "-m", "fdtrace"]
    command = [*fdtrace, "record", "-o", str(path), "--", *fdtrace, "sandbox", *SANDBOX.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make(path: Path, steps: int, recording: Path) -> None:
    """Write a trace of at least so many steps, by repeating a complete recording of the sandbox."""
    with duckdb.connect() as db:
        db.execute(f"ATTACH '{recording}' AS recording (READ_ONLY)")
        lengths = dict(
            zip(("steps", "calls", "requests", "ns"), db.execute(
                "SELECT max(step) + 1, (SELECT max(call + num_calls) FROM recording.call), "
                "(SELECT max(request) + 1 FROM recording.request), "
                "epoch_ns(max(ts)) - epoch_ns(min(ts)) + 30000000 FROM recording.step"
            ).fetchall()[0], strict=True)
        )  # fmt: skip
        times = -(-steps // lengths["steps"])
        create_final(db, path)
        for table in schema.TABLES:
            if table.name in ONCE:
                db.execute(f"INSERT INTO final.{table.name} FROM recording.{table.name}")
                continue
            order = ", ".join(table.order_by)
            db.execute(
                f"CREATE TEMP TABLE unit AS SELECT {_shifted(table, lengths, 'k')} FROM recording.{table.name}, "
                f"range({min(times, AT_ONCE)}) r(k) ORDER BY {order}"
            )
            for first in range(0, times, AT_ONCE):
                end = (min(times, first + AT_ONCE) - first) * lengths[SHIFTED[table.order_by[1]]]
                db.execute(
                    f"INSERT INTO final.{table.name} SELECT {_shifted(table, lengths, first)} FROM unit "
                    f"WHERE {table.order_by[1]} < {end}"
                )
            db.execute("DROP TABLE unit")
        db.execute("DETACH final")


def _shifted(table: Table, lengths: dict[str, int], times: int | str) -> str:
    """The columns of a table, of the repetition after `times` others (a number, or SQL)."""
    fields = []
    for name, kind in ((column.name, column.type) for column in table.columns):
        if name in SHIFTED:
            fields.append(f"({name} + {times} * {lengths[SHIFTED[name]]})::{kind} AS {name}")
        elif kind == "TIMESTAMP_NS":
            fields.append(f"make_timestamp_ns(epoch_ns({name}) + {times} * {lengths['ns']}) AS {name}")
        elif name == "request_id":
            fields.append(f"request_id || '-' || {times} AS request_id")
        else:
            fields.append(name)
    return ", ".join(fields)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--recording", type=Path, metavar="T")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        recording = options.recording
        if recording is None:
            recording = Path(directory) / "sandbox.duckdb"
            record(recording)
        make(options.trace, options.steps, recording)
    with duckdb.connect(str(options.trace), read_only=True) as db:
        counts = db.execute(
            "SELECT (SELECT count(*) FROM step), (SELECT count(*) FROM step_request), (SELECT count(*) FROM request)"
        )
        num_steps, rows, requests = counts.fetchall()[0]
    size = options.trace.stat().st_size
    print(
        f"{num_steps:,} steps, {requests:,} requests, {rows:,} rows, {size:,} bytes, {size / rows:.2f} a row"
    )
    print(f"made in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
