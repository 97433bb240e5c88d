"""SIGKILL at random moments loses nothing that a flight recorder kept. `benchmarks/flight.py` does it 50 times."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.flight.keep_finisher import KeepFinisher
from tests.recorder.driven_flight import DrivenFlight
from tests.recorder.helpers import ENGINE, ROOT, fdtrace_here
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
        while not (flights / "flight.json").exists():
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
