"""Any DuckDB client may read a recording in progress, again and again, and across its end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.recorder.collector import replaced_files
from fdtrace.recorder.collector.process import PUBLISH
from fdtrace.recorder.trace import file
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    armed_environment,
    collected,
    finish,
    has_steps,
    logged,
    num_logged,
    pump,
    query,
    recorded,
    start_engine,
    stop_engine,
)

HOLD = "import duckdb, sys; db = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); input()"

READER = """
import sys, duckdb
path, stop, log = sys.argv[1:]
import os
reads, last, log = 0, -1, open(log, "w", buffering=1)
while not os.path.exists(stop):
    with duckdb.connect(path, read_only=True) as db:
        rows = db.execute("SELECT count(*) FROM step").fetchone()[0]
        db.execute("SELECT count(*), sum(num_tokens) FROM step_request").fetchall()
        db.execute("SELECT max(excess_tokens) FROM exceeded").fetchall()
        db.execute("SELECT count(*) FROM request JOIN event USING (engine_id, request)").fetchall()
    assert rows >= last, (rows, last)
    last = rows
    reads += 1
    print(rows, file=log)
print(reads, last)
"""

HOLDER = """
import sys, duckdb
db = duckdb.connect(sys.argv[1], read_only=True)
print(db.execute("SELECT count(*) FROM step").fetchone()[0], flush=True)
sys.stdin.readline()
print(db.execute("SELECT count(*) FROM step_request JOIN step USING (step)").fetchone()[0] > 0, flush=True)
"""


def has_lines(path: Path, count: int) -> bool:
    return path.exists() and num_logged(path) >= count


def test_readers_never_fail_while_it_records_and_when_it_ends(tmp_path: Path) -> None:
    trace, log, stop = tmp_path / "t.duckdb", tmp_path / "log", tmp_path / "stop"
    reads = [tmp_path / "reads0", tmp_path / "reads1"]
    with collected(trace) as (session, supervisor):
        engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
        while not trace.exists():
            supervisor.poll(0.02)
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(trace), str(stop), str(path)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for path in reads
        ]
        until = time.monotonic() + 3
        pump(supervisor, lambda: time.monotonic() >= until and all(has_lines(path, 6) for path in reads))
        stop_engine(engine)
        finish(supervisor)
        time.sleep(0.5)
        stop.touch()
        said = [reader.communicate(timeout=900)[0].split() for reader in readers]
    assert all(reader.returncode == 0 for reader in readers)
    assert all(int(count) > 5 for count, _ in said)
    assert all(int(last) == len(logged(log)) for _, last in said)


def test_a_trace_that_is_replaced_while_it_is_opened_is_read_in_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts and its own tables are of one state: else events name requests that are in neither."""
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    attach, attached = file.attached, []
    with collected(trace) as (session, supervisor):
        engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
        pump(supervisor, has_steps(trace))

        def attach_late(path: Path, *arguments: Any) -> duckdb.DuckDBPyConnection:
            """Twice, wait until the collector has replaced the trace that was looked at."""
            attached.append(path.stat().st_ino)
            if len(attached) in (2, 3):
                pump(supervisor, lambda: path.stat().st_ino != attached[-1])
            return attach(path, *arguments)

        monkeypatch.setattr(file, "attached", attach_late)
        with open_trace(trace) as opened:
            unknown = "SELECT count(*) AS n FROM event WHERE request NOT IN (SELECT request FROM request)"
            assert opened.rows(unknown) == [{"n": 0}]
            assert opened.recording().num_steps > 0
        assert len(attached) == 4
        stop_engine(engine)
        finish(supervisor)


def test_a_client_that_holds_an_earlier_state_open_still_finds_its_parts(tmp_path: Path) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    with collected(trace) as (session, supervisor):
        engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
        pump(supervisor, has_steps(trace))
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(trace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert int(holder.stdout.readline()) > 0
        stop_engine(engine)
        pump(supervisor, lambda: supervisor.ended is not None)
        supervisor.end("exit")
        time.sleep(4.5)  # longer than the parts stay where nobody reads them
        assert parts_directory(trace).exists()
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline().strip() == "True"
        holder.communicate(timeout=900)
        pump(supervisor, lambda: supervisor.finished is not None)
    assert not parts_directory(trace).exists()
    assert recorded(trace) == logged(log)


@pytest.mark.parametrize("leases", [True, False], ids=["by leases", "by locks"])
def test_a_replaced_file_stays_for_who_has_the_database_open(
    leases: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not leases:
        monkeypatch.setattr(replaced_files, "is_open", lambda fd: None)
        monkeypatch.setattr(replaced_files, "GRACE", 0.3)
    trace, part = tmp_path / "t.duckdb", tmp_path / "step-00000001.parquet"
    duckdb.connect(str(trace)).close()
    part.touch()
    retired = replaced_files.ReplacedFiles(trace)
    reader = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(trace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    retired.add([str(part)])
    retired.replacing()
    trace.unlink()
    time.sleep(2 * max(replaced_files.SETTLE, 0.3))
    assert not retired.sweep()
    assert part.exists()
    reader.communicate(b"\n")
    while not retired.sweep():
        time.sleep(0.02)
    assert not part.exists()


def test_a_reader_sees_more_steps_time_and_again_while_it_records(tmp_path: Path) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"

    def count() -> int:
        time.sleep(0.1)  # a publication comes in 1.5 s
        return int(query(trace, "SELECT count(*) FROM step")[0][0]) if trace.exists() else 0

    with collected(trace) as (session, supervisor):
        engine = start_engine("--log", log, "--sleep", 0.005, env=armed_environment(session))
        seen = 0
        for _ in range(3):
            before = seen
            pump(supervisor, lambda: count() > before)  # noqa: B023
            seen = count()
        assert engine.poll() is None, "all this was read while the engine ran"
        stop_engine(engine)
        finish(supervisor)
    assert PUBLISH < 2.0, "what docs/trace.md promises of a recording in progress"
    assert recorded(trace) == logged(log)
