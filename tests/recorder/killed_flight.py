"""A flight recorder that is killed at random moments, again and again."""

from __future__ import annotations

import random
import time
from pathlib import Path

from fdtrace.flights.flight_options import COLLECTOR
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.supervise import Supervisor
from tests.recorder.driven_flight import DrivenFlight
from tests.recorder.helpers import query

RATE = 100
"""Steps a second."""


def triggered(path: Path) -> list[int | None]:
    """The steps in which triggers fired, of a kept trace that must be whole; None: in no step."""
    ((first, last, count),) = query(path, "SELECT min(step), max(step), count(*) FROM step")
    assert last - first + 1 == count, f"{path} misses steps"
    return [step for (step,) in query(path, "SELECT step FROM event WHERE kind = 'triggered' ORDER BY step")]


def killed(directory: Path, kills: int, rng: random.Random | None = None) -> tuple[list[int], list[int]]:
    """Kill the collector so many times. Returns the steps of the triggers, and those that kept traces name."""
    rng = rng or random.Random(1)
    plan = FlightPlan(window_ns=20 * SECOND, after_ns=2 * SECOND, at_most_every_ns=0, keep=10_000)
    flight = DrivenFlight(directory, plan, ["exceeded"], rows=4, segments=32)
    flight.close_here()
    supervisor = Supervisor(flight.session, COLLECTOR)
    wanted = []
    for kill in range(kills):
        ready = False
        while not ready or supervisor.restarts < kill:
            ready |= any("ready" in message for message in supervisor.poll(0.02))
        until = time.monotonic() + rng.uniform(0.0, 2.0)
        while time.monotonic() < until:
            number = flight.number
            odd = number % 1000 == 999
            flight.step(number * SECOND // RATE, tokens=99 if odd else 1)
            wanted += [number] if odd else []
            if number % 20 == 0:
                supervisor.poll(0.01)
        supervisor.process.kill()
    flight.writer.close()
    supervisor.end("detach")
    while supervisor.finished is None:
        supervisor.poll(0.05)
    return wanted, sorted(
        step for path in flight.directory.kept for step in triggered(path) if step is not None
    )
