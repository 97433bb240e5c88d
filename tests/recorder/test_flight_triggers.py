"""Which triggers of a flight recorder keep a trace, and what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fdtrace.flights.step_conditions import check_triggers
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.flight.firing import errors_in
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from tests.recorder.driven_flight import DrivenFlight
from tests.recorder.helpers import query

STEP = SECOND // 10
"""Ten steps a second."""


def plan(**limits: Any) -> FlightPlan:
    default: dict[str, Any] = {
        "window_ns": 16 * SECOND,
        "after_ns": 2 * SECOND,
        "at_most_every_ns": 30 * SECOND,
    }
    return FlightPlan(**default | limits)


def drive(flight: DrivenFlight, until: int, every: int = 20, **odd: Any) -> None:
    """Steps up to before number `until`, published `every` so many; `odd`: `s7={"tokens": 99}` of step 7."""
    while flight.number < until:
        number = flight.number
        flight.step(number * STEP, **odd.get(f"s{number}", {}))
        if number % every == every - 1:
            flight.publish()


def test_a_step_over_the_limit_keeps_what_was_before_and_after_it(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(), ["exceeded"])
    drive(flight, 340, s300={"tokens": 40})
    flight.end()
    ((first, last),) = flight.kept_steps().values()
    assert 120 < first <= 140, "the window, and at most an eighth more"
    assert 320 <= last <= 340, "two seconds, and what one publication brings"
    (path,) = flight.directory.kept
    ((reason, step, detail),) = query(path, "SELECT reason, step, detail FROM event WHERE kind = 'triggered'")
    assert (reason, step, json.loads(detail)["value"]) == ("exceeded", 300, 80 - 64)
    assert query(path, "SELECT step FROM exceeded") == [(300,)]


def test_a_condition_for_a_time_fires_when_it_has_held_so_long(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(), ["num_waiting > 5 for 3s"])
    waits: dict[str, Any] = {f"s{number}": {"waiting": 9} for number in (*range(100, 129), *range(200, 240))}
    drive(flight, 260, **waits)
    flight.end()
    (path,) = flight.directory.kept
    ((step, detail),) = query(path, "SELECT step, detail FROM event WHERE kind = 'triggered'")
    assert (step, json.loads(detail)["value"]) == (230, 9)


def test_a_trigger_soon_after_another_is_counted_and_keeps_nothing(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(), ["forward_us > 1000"])
    slow: dict[str, Any] = {f"s{number}": {"forward_us": 2000} for number in (50, 60, 150, 200, 400)}
    drive(flight, 420, **slow)
    flight.end()
    first, second = flight.directory.kept
    triggered = "SELECT step FROM event WHERE kind = 'triggered' ORDER BY step"
    assert query(first, triggered) == [(50,), (60,)], "the second fired before the trace had ended"
    assert query(second, triggered) == [(400,)]
    assert "kept nothing: `forward_us > 1000` 2" in query(second, "SELECT notes FROM trace")[0][0]
    assert flight.directory.status()["num_suppressed"] == 2


def test_a_killed_collector_is_followed_by_one_that_decides_the_same(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(), ["num_waiting > 5 for 3s"])
    waits: dict[str, Any] = {f"s{number}": {"waiting": 9} for number in range(100, 140)}
    for until in (115, 135, 145, 170):
        drive(flight, until, **waits)
        flight.close_here()
        flight.collect_anew()
    drive(flight, 180)
    flight.end()
    (path,) = flight.directory.kept
    assert query(path, "SELECT step FROM event WHERE kind = 'triggered'") == [(130,)]
    steps = [step for (step,) in query(path, "SELECT step FROM step ORDER BY step")]
    assert steps == list(range(steps[0], steps[-1] + 1))


def test_the_oldest_kept_traces_go_unless_somebody_has_them_open(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(keep=2, at_most_every_ns=0, after_ns=0), ["exceeded"])
    drive(flight, 40, s35={"tokens": 40})
    flight.collector.flight.finisher.finish_all()
    (oldest,) = flight.directory.kept
    hold = "import sys, time; f = open(sys.argv[1]); print(flush=True); time.sleep(900)"
    reader = subprocess.Popen([sys.executable, "-c", hold, str(oldest)], stdout=subprocess.PIPE)
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        drive(flight, 200, s100={"tokens": 40}, s140={"tokens": 40}, s180={"tokens": 40})
        flight.end()
        last = "SELECT step FROM event WHERE kind = 'triggered'"
        assert [query(path, last) for path in flight.directory.kept] == [[(35,)], [(180,)]]
    finally:
        reader.kill()
        reader.communicate()


def test_a_ring_of_bytes_stays_below_its_size(tmp_path: Path) -> None:
    limit = 1 << 17
    flight = DrivenFlight(tmp_path / "flights", FlightPlan(window_bytes=limit))
    sizes = []
    for until in range(100, 3000, 100):
        drive(flight, until, 100)
        names = [
            name for levels in flight.collector.store.parts.values() for level in levels for name in level
        ]
        sizes.append(sum((flight.directory.parts / name).stat().st_size for name in names))
    assert max(sizes) <= limit
    assert max(sizes) > limit / 2
    flight.end()


def test_an_engine_that_stands_still_keeps_one_trace(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(at_most_every_ns=0))
    flight.collector.flight.hangs.every = 0.0
    drive(flight, 40)
    for second in range(4, 40, 4):
        flight.stand_still(second * SECOND)
        flight.publish()
    flight.end()
    (path,) = flight.directory.kept
    ((reason, detail),) = query(path, "SELECT reason, detail FROM event WHERE kind = 'triggered'")
    assert reason == "hang"
    assert "lacks 7 KV blocks" in json.loads(detail)["why"]
    assert query(path, "SELECT max(step) FROM step") == [(39,)]


def test_a_standstill_is_noticed_even_if_no_further_call_comes(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(at_most_every_ns=0))
    flight.collector.flight.hangs.every = 0.0
    drive(flight, 40)
    for second in (4, 8):
        flight.stand_still(second * SECOND)
    flight.writer.end_idle()  # the last of such calls is in the ring now
    for _ in range(4):
        flight.publish()
    assert not flight.collector.is_idle, "it stands still, not yet for long enough"
    flight.collector.flight.newest += 20 * SECOND
    flight.publish()
    flight.end()
    (path,) = flight.directory.kept
    assert query(path, "SELECT reason FROM event WHERE kind = 'triggered'") == [("hang",)]


def test_a_flight_of_an_idle_engine_rests_until_time_brings_something(tmp_path: Path) -> None:
    flight = DrivenFlight(tmp_path / "flights", plan(window_ns=16 * SECOND))
    recorder = flight.collector.flight
    recorder.hangs.every = 0.0
    drive(flight, 40)
    for _ in range(4):
        flight.publish()
    assert flight.collector.is_idle
    request = flight.directory.ask("a test")
    assert not flight.collector.is_idle
    flight.directory.remove_request(request)
    assert flight.collector.is_idle
    recorder.newest += 17 * SECOND
    assert not flight.collector.is_idle, "its segments are too old"
    for _ in range(2):
        flight.publish()
    assert flight.collector.is_idle
    assert query(flight.directory.ring, "SELECT count(*) FROM step") == [(0,)]
    flight.stand_still(40 * SECOND)
    flight.publish()
    assert not flight.collector.is_idle
    flight.end()


@pytest.mark.parametrize(
    "text", ["num_tokns > 5", "num_tokens >", "num_tokens > 5 for 3 weeks", "__import__('os')"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_triggers([text])


def test_an_error_of_the_engine_is_a_trigger_and_one_of_a_request_is_none() -> None:
    rows = [
        (0, 5, 1, "error", None, "OutOfMemoryError in the forward", None, None),
        (0, 6, 2, "error", None, "KeyError in the forward", None, None),
        (0, 7, 3, "error", 4, "prompt too long", None, None),
    ]
    assert [(firing.trigger, firing.step) for firing in errors_in(rows)] == [
        ("out_of_memory", 5),
        ("error", 6),
    ]
