"""A flight recorder: a ring of the last steps, and traces that are kept of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fdtrace.recorder.flight.flight_collector import FlightCollector
from fdtrace.recorder.flight.flight_directory import FlightDirectory
from fdtrace.recorder.flight.flight_plan import FlightPlan
from fdtrace.recorder.session import Session
from tests.made_once import made_once
from tests.recorder.helpers import armed_environment, logged, num_logged, query, recorded, start_engine

WINDOW = 1 << 19


def fly(directory: Path) -> None:
    """Fly with a played engine; a trace is kept when the ring has dropped its beginning, and the engine then ends."""
    directory.mkdir()
    plan = FlightPlan(window_bytes=WINDOW)
    session = Session.create(directory / "flight.duckdb", flight=plan.as_json())
    collector = FlightCollector(session)
    log = directory / "log"
    engine = start_engine("--log", log, "--sleep", 0.0005, env=armed_environment(session))
    segments = collector.flight.segments
    while len(segments.all) < 4 or not segments.all[0].cuts or num_logged(log) < 1000:
        collector.discover()
        collector.read()
        collector.publish()
        time.sleep(0.02)
    collector.flight.asked = "SIGUSR1"
    collector.publish()
    engine.kill()
    engine.wait()
    collector.finish("exit")


@pytest.fixture(scope="module")
def flown(shared: Path) -> Path:
    """The directory of a flight that has ended."""
    return made_once(shared / "flown", fly)


def kept_for(directory: Path, trigger: str) -> Path:
    (path,) = [path for path in FlightDirectory(directory).kept if path.stem.endswith(trigger)]
    return path


@pytest.mark.parametrize("trigger", ["sigusr1", "death"])
def test_a_kept_trace_has_the_last_steps_exactly_as_the_engine_ran_them(flown: Path, trigger: str) -> None:
    found, log = recorded(kept_for(flown, trigger)), logged(flown / "log")
    first, last = min(found), max(found)
    assert first > 0
    assert last - first > 50
    assert list(found) == list(range(first, last + 1))
    assert found == {step: log[step] for step in found if step in log} | {
        step: rows for step, rows in found.items() if step == len(log)
    }
    if trigger == "death":
        assert set(log) - set(found) == set(range(first))


def test_a_kept_trace_says_what_kept_it(flown: Path) -> None:
    path = kept_for(flown, "death")
    ((ended_by, notes),) = query(path, "SELECT ended_by, notes FROM trace")
    assert ended_by == "keep"
    assert "`death` (exit)" in json.loads(notes)[0]
    assert query(path, "SELECT kind, reason FROM event WHERE kind = 'triggered'") == [("triggered", "death")]


def test_nothing_is_left_of_the_ring(flown: Path) -> None:
    left = {path.name for path in flown.iterdir()} - {path.name for path in FlightDirectory(flown).kept}
    assert left == {"log", "flight.json"}
    assert FlightDirectory(flown).status()["state"] == "ended"
