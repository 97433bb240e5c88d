"""Flights of a live process, and of each segment the trace that would be kept if it were the oldest one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.collector import __main__ as collecting
from fdtrace.recorder.flight import flight_plan, flight_segments
from fdtrace.recorder.flight.finish_keep import finish_keep
from fdtrace.recorder.flight.firing import FiredTrigger
from fdtrace.recorder.flight.flight_collector import FlightCollector
from fdtrace.recorder.flight.flight_directory import MAKING
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.flight.flight_segments import FlightSegments
from fdtrace.recorder.flight.keep_queue import ScheduledKeep, name_at
from fdtrace.recorder.flight.keep_spool import set_aside
from fdtrace.recorder.session import Session
from tests.stands import UntilExit

ENOUGH = 5
"""A flight goes on until so many segments begin with a checkpoint: how long that takes depends on the machine."""


class UntilFlown(UntilExit):
    """As `UntilExit`; `end` is called once enough segments of the flight begin with a checkpoint."""

    def __init__(
        self, process: subprocess.Popen[str], segments: FlightSegments, end: Callable[[], object]
    ) -> None:
        super().__init__(process)
        self.segments, self.end = segments, end

    def next(self, timeout: float) -> dict[str, Any] | None:
        calls = [cut.call for segment in self.segments.all for cut in segment.cuts.values()]
        if sum(call is not None and max(call.call, call.step) > 0 for call in calls) >= ENOUGH:
            self.end()
        return super().next(timeout)


def fly(directory: Path, start: Callable[[Session], subprocess.Popen[str]]) -> list[Path]:
    """Fly with the process that `start` starts, until enough segments begin with a checkpoint; then it gets SIGTERM.

    Returns:
        What is kept of each segment, oldest first; the first is the whole flight.
    """
    directory.mkdir()
    plan = FlightPlan(window_ns=1000 * SECOND)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flight_plan, "LEAST_CHECKPOINT_NS", SECOND // 2)
        patched.setattr(flight_plan, "SEGMENTS", 2000)
        patched.setattr(flight_segments, "LEAD_NS", SECOND // 4)
        patched.setattr(collecting, "PUBLISH", 0.1)
        session = Session.create(directory / "flight.duckdb", flight=plan.as_json())
        process = start(session)
        collector = FlightCollector(session)
        collector.publish()
        flight = collector.flight
        orders = UntilFlown(process, flight.segments, process.terminate)
        collector.prepare_end(collecting.run(collector, orders))
        collector.publish()
        for segment in flight.segments.all[:-1]:
            firing = FiredTrigger("test", flight.newest)
            keep = ScheduledKeep(name_at(segment.begins, "segment"), flight.newest, segment.serial, [firing])
            window = flight.segments.window(segment.serial, flight.newest)
            if any(cut.call is None for cut in window.cuts.values()):
                break  # it ended before the next checkpoint
            set_aside(flight.directory, flight.store, plan, keep, window, flight._undated)
            finish_keep(flight.directory.path / f"{keep.name}{MAKING}")
        collector.finish("detach")
    return sorted(directory.glob("*-segment.duckdb"))
