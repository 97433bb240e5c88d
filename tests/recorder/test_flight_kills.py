"""SIGKILL at random moments loses nothing that a flight recorder kept. `benchmarks/flight.py` does it 50 times."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from fdtrace.recorder.collector.live_parts import LIVE
from fdtrace.recorder.collector.tables import create
from fdtrace.recorder.flight.finish_keep import finish_keep
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.flight.keep_finisher import KeepFinisher
from fdtrace.recorder.flight.keep_spool import KEEP, STATE
from tests.recorder.driven_flight import DrivenFlight
from tests.recorder.helpers import ENGINE, ROOT, fdtrace_here, query
from tests.recorder.killed_flight import killed, triggered

PLAN = FlightPlan(window_ns=16 * SECOND, after_ns=2 * SECOND)


def test_a_collector_killed_again_and_again_keeps_each_trace_once_and_whole(tmp_path: Path) -> None:
    wanted, kept = killed(tmp_path / "flights", 2)
    assert wanted
    assert kept == wanted


def driven(directory: Path, steps: int, odd: int) -> DrivenFlight:
    """A flight of so many steps, ten a second, that was killed after the last; step `odd` exceeds the limit."""
    flight = DrivenFlight(directory, PLAN, ["exceeded"])
    for number in range(steps):
        flight.step(number * SECOND // 10, tokens=99 if number == odd else 1)
        if number % 20 == 19:
            flight.publish()
    flight.close_here()
    return flight


def test_recover_keeps_what_waited_and_what_the_ring_holds(tmp_path: Path) -> None:
    flight = driven(tmp_path / "flights", 205, odd=195)
    assert flight.directory.kept == []
    done = fdtrace_here("recover", flight.directory.path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    waited, rest = flight.directory.kept
    assert (triggered(waited), triggered(rest)) == ([195], [None])
    assert flight.kept_steps() == {"exceeded": (20, 204), "death": (20, 204)}
    assert {path.name for path in flight.directory.path.iterdir()} == {waited.name, rest.name, "flight.json"}
    assert fdtrace_here("recover", flight.directory.path).returncode == 3


def test_a_trace_that_was_being_made_is_made_by_whoever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeepFinisher, "poll", lambda self: None)  # as if it were killed whenever it begins
    flight = driven(tmp_path / "flights", 200, odd=100)
    (spool,) = flight.directory.spools
    (spool / "final.duckdb").write_bytes(b"half")
    (flight.directory.path / "20330518T033329.990Z-exceeded.half").mkdir()
    flight.collect_anew()
    flight.end()
    (path,) = flight.directory.kept
    assert triggered(path) == [100]
    assert {path.name for path in flight.directory.path.iterdir()} == {path.name, "flight.json"}


def as_before(spool: Path) -> None:
    """Make a spool one of the version before: its rows that are not final are in tables of the published database."""
    about, state = json.loads((spool / KEEP).read_text()), spool / STATE
    live, content = about.pop("live"), state.read_bytes()
    (spool / KEEP).write_text(json.dumps(about))
    state.unlink()  # it is the published database itself
    state.write_bytes(content)
    with duckdb.connect(str(state)) as db:
        for name, table in LIVE.items():
            create(db, name, table)
            if table.name in live:
                db.execute(f"INSERT INTO {name} FROM '{spool / live[table.name]}'")
                (spool / live[table.name]).unlink()


def test_a_spool_of_the_version_before_is_made_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeepFinisher, "poll", lambda self: None)
    flight = driven(tmp_path / "flights", 200, odd=100)
    (spool,) = flight.directory.spools
    as_before(spool)
    path = finish_keep(spool)
    assert path is not None
    assert triggered(path) == [100]
    assert query(path, "SELECT count(*) FROM request WHERE finished_at IS NULL") == [(2,)]
    flight.session.discard()


def test_a_trace_that_another_process_makes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed collector leaves the process that makes a trace: the next one must not end before it is there."""
    monkeypatch.setattr(KeepFinisher, "poll", lambda self: None)
    flight = driven(tmp_path / "flights", 200, odd=100)
    (spool,) = flight.directory.spools
    other = os.open(spool / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(other, fcntl.LOCK_EX)
    released = threading.Timer(0.5, os.close, (other,))
    released.start()
    flight.collect_anew()
    flight.end()
    released.join()
    (path,) = flight.directory.kept
    assert triggered(path) == [100]


def test_the_command_keeps_what_is_asked_for_and_the_death_of_what_it_started(tmp_path: Path) -> None:
    flights, said = tmp_path / "flights", tmp_path / "said"
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "record",
        "--flight",
        "90s",
        "-o",
        str(flights),
        "--on",
        "exceeded",
    ]
    server = [sys.executable, str(ENGINE), "--sleep", "0.01"]
    with said.open("w") as errors:
        recorder = subprocess.Popen(
            [*command, "--", *server], cwd=ROOT, stderr=errors, stdout=subprocess.PIPE, text=True
        )
        assert recorder.stdout is not None
        engine = int(recorder.stdout.readline().split()[1])
        ring = flights / "flight.duckdb"
        while not (ring.exists() and query(ring, "SELECT step FROM exceeded LIMIT 1")):
            time.sleep(0.05)
        kept = fdtrace_here("keep", flights, "--because", "a test")
        assert kept.returncode == 0, kept.stderr
        assert triggered(Path(kept.stdout.strip())) == [None]
        assert f"flight in {flights}" in fdtrace_here("status").stdout
        os.kill(engine, signal.SIGKILL)
        assert recorder.wait(900) == 128 + signal.SIGKILL
        recorder.stdout.close()
    names = sorted(path.stem.partition("Z-")[2] for path in flights.glob("*.duckdb"))
    assert names == ["death", "exceeded", "keep"]
    assert "`death` (signal 9)" in said.read_text()
