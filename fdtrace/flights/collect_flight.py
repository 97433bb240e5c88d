"""`python -m fdtrace.flights.collect_flight SESSION`: the collector of a flight recorder, with its conditions.

It is the collector of every recording (`recorder.collector`), with a ring and with what this package knows of steps.
SIGUSR1 keeps a trace of what is there.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from fdtrace.flights.dropped_sums import DroppedSums
from fdtrace.flights.step_conditions import check_triggers
from fdtrace.recorder.collector import __main__ as collecting
from fdtrace.recorder.flight.flight_collector import FlightCollector
from fdtrace.recorder.flight.flight_plan import FlightPlan
from fdtrace.recorder.session import Session


def flight_collector(session: Session) -> FlightCollector:
    """The collector of a flight's session."""
    plan = FlightPlan.from_json(session.flight)
    dropped = DroppedSums() if plan.counts else None
    collector = FlightCollector(session, check_triggers(list(plan.on)), dropped=dropped)
    collector.flight.tell = _tell

    def keep(_number: int, _frame: FrameType | None) -> None:
        collector.flight.asked = "SIGUSR1"

    signal.signal(signal.SIGUSR1, keep)
    return collector


def _tell(text: str) -> None:
    collecting.say(told=text)


if __name__ == "__main__":
    sys.exit(collecting.main(flight_collector))
